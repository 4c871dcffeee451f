"""A second release of vLLM, the furthest from the installed one that runs in its environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from vllm_server import has_vllm

MATRIX = Path(__file__).parents[3] / "tools" / "vllm_matrix.py"

RELEASE = "0.27.0"


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_another_release_generates_the_same_tokens_from_every_tier() -> None:
    if not has_vllm():
        pytest.skip("needs vLLM; `make install` installs it")
    ended = subprocess.run(
        [sys.executable, str(MATRIX), RELEASE], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
