from __future__ import annotations

import pytest
import typer

from kvtier.factory.cli.app import Commands
from kvtier.factory.cli.exits import EXIT_INTERRUPTED, EXIT_NO, EXITS, interruptible


def test_ctrl_c_is_one_line_and_the_status_that_a_shell_reports(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, interruptible():
        raise KeyboardInterrupt
    assert caught.value.exit_code == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


class Keyboard:
    """A standard input where somebody presses a key at a question."""

    def __init__(self, pressed: type[BaseException]) -> None:
        self._pressed = pressed

    def readline(self) -> str:
        raise self._pressed


@pytest.mark.parametrize(
    ("pressed", "status", "said"),
    [(KeyboardInterrupt, EXIT_INTERRUPTED, "interrupted\n"), (EOFError, EXIT_NO, "Aborted")],
)
def test_ctrl_c_at_a_question_interrupts_and_the_end_of_input_is_a_no(
    pressed: type[BaseException],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asking = typer.Typer(cls=Commands)

    @asking.command()
    def ask() -> None:
        typer.confirm("Remove it?")

    @asking.command()
    def other() -> None:
        pass

    monkeypatch.setattr("sys.stdin", Keyboard(pressed))
    with pytest.raises(SystemExit) as caught:
        asking(["ask"])
    assert caught.value.code == status
    assert capsys.readouterr().err.startswith(said)


def test_every_status_has_a_meaning() -> None:
    assert list(EXITS) == [0, 1, 2, 130, 141]
    assert all(EXITS.values())
