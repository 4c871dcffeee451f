from __future__ import annotations

import pytest
import typer

from kvtier.factory.cli.exits import EXIT_INTERRUPTED, interruptible


def test_ctrl_c_is_one_line_and_the_status_that_a_shell_reports(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, interruptible():
        raise KeyboardInterrupt
    assert caught.value.exit_code == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
