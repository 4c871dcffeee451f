"""`kvtier top`: shows what the engines on a store do, again and again."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..exits import EXIT_NO
from ..output import AsJson, emit, is_terminal, one_line, print_records

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ....engine.live.board import Board
    from .shapes import EngineNow

INTERVAL_MIN_S = 0.1  # boards are written once a second: more looks show nothing new
ONCE_MIN_S = 1.2  # between the two looks of `--once`, for the same reason


def top(
    path: Annotated[
        Path | None,
        typer.Argument(help="The directory of an nvme tier; without, every engine.", show_default=False),
    ] = None,
    interval: Annotated[
        float, typer.Option(min=INTERVAL_MIN_S, help="Seconds between two looks.", metavar="SECONDS")
    ] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print one look, and its rates since one before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what the engines on a store do, live.

    Ctrl-C or q ends it. "hit %" is of all lookups, by the tier that had the chunk. Rates are since the look
    before. In a pipe it prints one look: each line is one tier of one engine, in columns apart by tabs:
    process id, model, and the values of a tier in the order of --json. Exit status: 1 if no engine tells
    anything.
    """
    if path is not None:
        from ..store.opened import refuse_no_store

        refuse_no_store(path)
    if as_json or once or not is_terminal():
        _print_once(path, interval, as_json)
    else:
        _watch(path, interval)


def _print_once(path: Path | None, interval_s: float, as_json: bool) -> None:
    from .looks import Looks
    from .shapes import Top

    looks = Looks()
    if engines := looks.add(_boards(path), time.time()):
        time.sleep(max(interval_s, ONCE_MIN_S))
        engines = looks.add(_boards(path), time.time())
    if as_json:
        emit("top", Top(engines))
    elif is_terminal():
        _console().print(_screen(engines))
    else:
        print_records(_records(engines))
    if not engines:
        if not as_json:
            typer.echo(_nobody(path), err=True)
        raise typer.Exit(EXIT_NO)


def _watch(path: Path | None, interval_s: float) -> None:
    from rich.live import Live
    from rich.text import Text

    from .looks import Looks

    looks = Looks()
    with _keys() as asks_to_end, Live(console=_console(), screen=True, auto_refresh=False) as live:
        while True:
            engines = looks.add(_boards(path), time.time())
            live.update(_screen(engines) if engines else Text(_nobody(path)), refresh=True)
            if asks_to_end(interval_s):
                return


class _AsksToEnd:
    """Waits for so long, or until somebody presses q."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def __call__(self, wait_s: float) -> bool:
        end_s = time.monotonic() + wait_s
        while self._fd is not None and (left_s := end_s - time.monotonic()) > 0:
            ready, _, _ = select.select([self._fd], [], [], left_s)
            if ready:
                pressed = os.read(self._fd, 64)
                if not pressed or b"q" in pressed.lower():
                    return True
        time.sleep(max(0.0, end_s - time.monotonic()))
        return False


@contextmanager
def _keys() -> Iterator[_AsksToEnd]:
    """Take single keys from the terminal, where our input is one."""
    import termios
    import tty

    if sys.stdin is None or not sys.stdin.isatty():
        yield _AsksToEnd(None)
        return
    fd = sys.stdin.fileno()
    found = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield _AsksToEnd(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, found)


def _boards(path: Path | None) -> list[Board]:
    from ....engine.live.reader import boards_of

    return boards_of(path)


def _console() -> Console:
    from rich.console import Console

    return Console(markup=False, highlight=False)


def _screen(engines: tuple[EngineNow, ...]) -> RenderableType:
    from .top_screen import screen

    return screen(engines, _console().width)


def _records(engines: tuple[EngineNow, ...]) -> Iterator[tuple[object, ...]]:
    for engine in engines:
        for tier in engine.tiers:
            fields = ("" if value is None else value for value in astuple(tier))
            yield (engine.pid, one_line(engine.model), *fields)


def _nobody(path: Path | None) -> str:
    where = "" if path is None else f" on {path}"
    return (
        f"no engine{where} tells anything: none runs, or it runs as another user or in another container "
        "(run top there), or KVTIER_LIVE=0 keeps it from telling"
    )
