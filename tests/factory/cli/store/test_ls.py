from __future__ import annotations

from pathlib import Path

import pytest
from nvme_rig import keys_of, stored
from store_cli import CHUNKS, run, run_json, with_tier
from typer.testing import CliRunner

from kvtier.factory.cli.app import app
from kvtier.factory.cli.store import ls
from kvtier.tiers.nvme.store.namespaces import Identity

LONG = "/models/the work of a year/" + "x" * 150 + "\n/Llama 3.1 8B"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a terminal of 80 columns."""
    monkeypatch.setattr(ls, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")


def add(path: Path, fields: dict[str, str], chunks: int = 3) -> None:
    with_tier(path, lambda tier: stored(tier, keys_of(0, chunks)), identity=Identity(fields))


def test_each_namespace_is_one_line_of_a_pipe_whatever_its_label(path: Path) -> None:
    add(path, {"model": LONG})
    found = {one["label"]: one for one in run_json("ls", str(path))["namespaces"]}
    code, text = run("ls", str(path))
    assert code == 0
    rows = {row[0]: row for row in (line.split("\t") for line in text.splitlines())}
    assert len(rows) == len(text.splitlines()) == 2
    long, m = found[LONG], found["m"]
    assert rows[long["digest"][:12]][-1] == LONG.replace("\n", "\\n")
    counts = [m["epoch"], m["chunks"], m["chunk_bytes"], m["never_read_chunks"], m["hits"]]
    assert rows[m["digest"][:12]][1:] == [
        *map(str, [*counts, m["newest_unix_s"], m["oldest_unix_s"]]),
        "m",
    ]


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_a_long_label_is_cut_in_its_middle(path: Path) -> None:
    add(path, {"model": LONG})
    code, text = run("ls", str(path))
    assert code == 0
    heading, long, short = text.splitlines()
    assert heading.split() == " ".join(ls.COLUMNS).split()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" in long
    assert long.endswith("8B")
    assert short.endswith("  m")


def test_ls_shows_each_namespace_and_its_fields(path: Path) -> None:
    add(path, {"model": "other", "dtype": "float16"})
    found = {one["label"]: one for one in run_json("ls", str(path))["namespaces"]}
    assert {label: one["chunks"] for label, one in found.items()} == {"m": CHUNKS, "other": 3}
    assert found["m"]["never_read_chunks"] == CHUNKS - 10
    assert found["m"]["hits"] == 10
    assert found["other"]["fields"] == {"model": "other", "dtype": "float16"}
    _, text = run("ls", str(path), "--fields")
    assert f"{found['other']['digest'][:12]}\tdtype\tfloat16" in text.splitlines()


@pytest.mark.usefixtures("terminal")
def test_ls_says_in_which_fields_two_namespaces_of_one_model_differ(path: Path) -> None:
    add(path, {"model": "m", "dtype": "float16", "tp": "2"})
    code, text = run("ls", str(path))
    assert code == 0
    after = text[text.index("differs from namespaces of the same label") :]
    assert "bfloat16" in after
    assert "float16" in after
    assert "model" not in after


@pytest.mark.parametrize(
    ("sort", "labels"),
    [
        ("name", ["Big", "empty", "m"]),
        ("bytes", ["Big", "m", "empty"]),
        ("hits", ["m", "Big", "empty"]),
        ("never-read", ["Big", "m", "empty"]),
        ("oldest", ["m", "Big", "empty"]),
    ],
)
def test_ls_sorts(path: Path, sort: str, labels: list[str]) -> None:
    add(path, {"model": "Big"}, chunks=CHUNKS + 5)
    add(path, {"model": "empty"}, chunks=0)
    found = run_json("ls", str(path), "--sort", sort)["namespaces"]
    if sort == "oldest" and found[0]["oldest_unix_s"] == found[1]["oldest_unix_s"]:
        labels = ["Big", "m", "empty"]  # all of one second: by name
    assert [one["label"] for one in found] == labels


def test_ls_names_the_models_that_are_asked_for(path: Path) -> None:
    add(path, {"model": "meta/Llama"})
    code, text = run("ls", str(path), "--model", "llama")
    assert (code, text.splitlines()[0].split("\t")[-1], text.count("\n")) == (0, "meta/Llama", 1)
    result = CliRunner().invoke(app, ["ls", str(path), "--model", "gpt"])
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "nothing matches\n")
    assert CliRunner().invoke(app, ["ls", str(path), "--sort", "colour"]).exit_code == 2
