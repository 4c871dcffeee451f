from __future__ import annotations

import pytest
import typer

from kvtier.factory.cli.exits import EXIT_INTERRUPTED, EXITS, interruptible


def test_ctrl_c_is_one_line_and_the_status_that_a_shell_reports(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, interruptible():
        raise KeyboardInterrupt
    assert caught.value.exit_code == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_every_status_has_a_meaning() -> None:
    assert list(EXITS) == [0, 1, 2, 130, 141]
    assert all(EXITS.values())
