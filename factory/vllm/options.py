"""kvtier's options in vLLM's `kv_connector_extra_config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...tiers.errors import ConfigError
from ..composite import CompositeSpec

KEY = "kvtier"


def composite_spec(extra_config: Mapping[str, Any]) -> CompositeSpec:
    """Build the chain's spec from the document under `kvtier`, given inline or by path.

    Raises:
        ConfigError: it is missing or wrong.
    """
    document = extra_config.get(KEY)
    if document is None:
        raise ConfigError(
            f"kv_connector_extra_config.{KEY}",
            "is missing; set it to the tier-config document, or to the path of a JSON file with it",
        )
    return CompositeSpec.from_config(document)
