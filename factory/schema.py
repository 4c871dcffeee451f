"""The JSON Schema of the tier-config document, for editors and other validators."""

from __future__ import annotations

import logging
from typing import Any

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from .base import TierConfig
from .config import BUILTIN_CONFIGS
from .drives import PATH_SCHEMA
from .registry import tier_factory, tier_types

logger = logging.getLogger(__name__)

DIALECT = "https://json-schema.org/draft/2020-12/schema"

MODE: JsonSchemaMode = "validation"


def config_schema() -> dict[str, Any]:
    """The schema of a whole document, with every registered type of tier."""
    models = {name: model for name in tier_types() if (model := _model(name)) is not None}
    references, definitions = models_json_schema([(model, MODE) for model in models.values()])
    for own in BUILTIN_CONFIGS.values():  # theirs is the type alone
        del definitions["$defs"][own.__name__]["properties"]["module_path"]
    entries = [references[(model, MODE)] for model in models.values()]
    return {
        "$schema": DIALECT,
        "title": "kvtier tier config",
        "description": "The tiers for the KV cache of an LLM server, fastest first.",
        "type": "object",
        "required": ["version", "tiers"],
        "additionalProperties": False,
        "properties": {
            "$schema": {
                "type": "string",
                "description": "Where editors find this schema. kvtier does not read it.",
            },
            "version": {"const": 1, "description": "The format of this document."},
            "weights_epoch": {
                "type": "integer",
                "minimum": 0,
                "default": 0,
                "description": "Raise it when the weights change under the same name. Nothing stored before "
                "is served again.",
            },
            "on_reset": {
                "enum": ["invalidate", "keep"],
                "default": "invalidate",
                "description": "What happens when the server resets its cache, as a weight update does. "
                "invalidate: nothing stored before is served again. keep: chunks stay; use it only if "
                "the weights stay the same.",
            },
            "recompute": {
                "enum": ["auto", "never"],
                "default": "auto",
                "description": "What happens to chunks below the pinned tier that take longer to load than "
                "to compute. auto: they are computed, once both rates are known. never: they are loaded.",
            },
            "trace": {
                **PATH_SCHEMA,
                "description": "A file to which a server records its prompts: a salted number for each "
                "chunk, without content. `kvtier replay` reads it. By default nothing is recorded.",
            },
            "tiers": {
                "type": "array",
                "minItems": 2,
                "description": 'The tiers in order: "gpu", then "pinned", then the drives.',
                "items": {"oneOf": [*entries, _foreign(list(models))]},
            },
        },
        "$defs": definitions["$defs"],
    }


def _model(name: str) -> type[TierConfig] | None:
    """The model of a type's entries; None where the package that brings the type cannot be imported."""
    try:
        model: type[TierConfig] = BUILTIN_CONFIGS.get(name) or tier_factory(name).Config
    except (Exception, SystemExit) as error:  # whatever stands in a module of somebody else
        logger.warning("the tier %r is not in the schema: %s: %s", name, type(error).__name__, error)
        return None
    return model


def _foreign(known_types: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": "A tier of another package.",
        "required": ["type", "module_path"],
        "properties": {
            "type": {
                "type": "string",
                "not": {"enum": known_types},
                "description": "The name of its factory class.",
            },
            "module_path": {"type": "string", "description": "The module of that class."},
        },
    }
