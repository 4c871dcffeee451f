"""Options that choose chunks of a store."""

from __future__ import annotations

from typing import Annotated

import typer

from ....tiers import ConfigError

Namespace = Annotated[
    str | None, typer.Option(help="A label, or at least 8 hex digits of a digest.", show_default=False)
]
KeyPrefix = Annotated[
    str | None, typer.Option(help="The first bytes of the key, in hex.", show_default=False)
]


def key_prefix_of(option: str | None) -> bytes:
    """What --key-prefix gives in hex; empty where it is not given.

    Raises:
        ConfigError: it is no hex.
    """
    try:
        return bytes.fromhex(option or "")
    except ValueError:
        raise ConfigError(
            "--key-prefix", f'should be pairs of hex digits, not "{option}"; for example 00ff'
        ) from None
