"""The pages of docs/reference are what the code gives, and have every field, command, option and metric."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from typing import Any

import pytest
import typer
from markdown_files import ROOT, documents

from kvtier.engine.events import ChainEvent
from kvtier.engine.metrics.names import METRICS
from kvtier.factory.cli.app import app
from kvtier.factory.cli.exits import EXITS
from kvtier.factory.cli.shapes import SHAPES
from kvtier.factory.config import BUILTIN_CONFIGS, KvtierConfig
from kvtier.tiers import RemoveReason

REFERENCE = ROOT / "docs" / "reference"
TOOL = ROOT / "tools" / "reference_pages.py"
METRIC = re.compile(r"(?<![\w/])kvtier:[a-z_]+")  # and no mount of a container

EXPORTED = {metric.exported for metric in METRICS}
NAMES = {metric.name for metric in METRICS}


def page(name: str) -> str:
    return (REFERENCE / name).read_text()


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_the_pages_are_what_the_code_gives() -> None:
    ended = subprocess.run(
        [sys.executable, str(TOOL), "--check"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"{ended.stdout}{ended.stderr}run make reference"


@pytest.mark.parametrize("tier", BUILTIN_CONFIGS)
def test_the_tier_document_has_every_field_of_a_tier(tier: str) -> None:
    text = section(page("config.md"), f"`{tier}`")
    fields = [name for name in BUILTIN_CONFIGS[tier].model_fields if name != "module_path"]
    assert not [name for name in fields if f"| `{name}` |" not in text]


def test_the_tier_document_has_every_field_of_its_own() -> None:
    text = section(page("config.md"), "The document")
    assert not [name for name in KvtierConfig.model_fields if f"| `{name}` |" not in text]


def test_the_command_line_has_every_command_option_and_exit_status() -> None:
    text, group = page("cli.md"), typer.main.get_command(app)
    commands: dict[str, Any] = group.commands  # type: ignore[attr-defined]  # a group's
    for name, command in commands.items():
        part = section(text, f"kvtier {name}")
        options = [option for param in command.params for option in param.opts if option.startswith("--")]
        assert not [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", part)]
    assert all(f"| {status} |" in section(text, "Exit status") for status in EXITS)


def test_every_metric_has_its_row_once() -> None:
    rows = re.findall(r"^\| `(kvtier:\w+)` \|", page("metrics.md"), re.MULTILINE)
    assert sorted(rows) == sorted(EXPORTED)
    assert all(f"`{reason}`" in page("metrics.md") for reason in RemoveReason)


def test_no_page_names_another_metric() -> None:
    known = EXPORTED | NAMES
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in documents()
        for name in METRIC.findall(path.read_text())
        if name not in known
    }
    assert not wrong


def test_the_api_page_has_what_the_library_exports() -> None:
    text = page("api.md")
    import kvtier.engine as engine

    assert ChainEvent.__name__ in engine.__all__
    assert not [
        name for name in engine.__all__ if not re.search(rf"^::: kvtier\.[\w.]+\.{name}$", text, re.M)
    ]


@pytest.mark.parametrize("command", SHAPES)
def test_the_json_of_a_command_has_all_its_keys(command: str) -> None:
    text = section(page("json.md"), f"`{command}`")
    for field in dataclasses.fields(SHAPES[command]):
        assert f"| `{field.name}` |" in text, field.name
