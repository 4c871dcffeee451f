from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_asks_kvtier(run: Run, shell: str) -> None:
    status, output, errors = run("completion", shell)
    assert (status, errors) == (0, "")
    assert f"_KVTIER_COMPLETE=complete_{shell}" in output


@pytest.mark.parametrize(
    ("words", "answer"),
    [("kvtier f", ["fsck"]), ("kvtier ls --so", ["--sort"]), ("kvtier rm --lr", ["--lru"])],
)
def test_a_shell_that_asks_is_answered(words: str, answer: list[str]) -> None:
    asking = {
        "_KVTIER_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    command = [sys.executable, "-m", "kvtier.factory"]
    output = subprocess.check_output(command, env={**os.environ, **asking}, text=True)
    assert output.split() == answer


def test_an_unknown_shell_is_wrong_input(run: Run) -> None:
    status, output, errors = run("completion", "tcsh")
    assert (status, output, "'tcsh'" in errors) == (2, "", True)
