from __future__ import annotations

import json
from collections.abc import Callable

from kvtier.factory.schema import config_schema

Run = Callable[..., tuple[int, str, str]]


def test_the_schema_is_printed(run: Run) -> None:
    status, output, errors = run("schema")
    assert (status, errors) == (0, "")
    assert json.loads(output) == config_schema()
