"""`kvtier schema`: prints the JSON Schema of the tier-config document."""

from __future__ import annotations

import json

import typer


def schema() -> None:
    """Print the JSON Schema of the tier-config document."""
    from ..schema import config_schema

    typer.echo(json.dumps(config_schema(), indent=2))
