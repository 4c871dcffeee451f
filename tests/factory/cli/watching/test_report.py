"""`kvtier report`: one page, whatever the numbers and labels."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from boards import FACTS, board, tier

from kvtier.engine.live import reader
from kvtier.engine.live.board import Board

Run = Callable[..., tuple[int, str, str]]
BAD = '</script><b onload="x">&' + "x" * 70_000


class Balanced(HTMLParser):
    """Collects the text of a page; fails where a tag closes that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def written(
    run: Run, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, Balanced]]:
    """The page about the store with these engines on it, and what a parser makes of it."""

    def write(*boards: Board) -> tuple[str, Balanced]:
        monkeypatch.setattr(reader, "boards_of", lambda path: list(boards))
        target = tmp_path / "page.html"
        status, output, errors = run("report", path, "-o", target)
        assert (status, output, errors) == (0, f"wrote {target}\n", "")
        text, parsed = target.read_text(), Balanced()
        parsed.feed(text)
        parsed.close()
        assert parsed.open == []
        return text, parsed

    return write


def seen(seconds: int, pid: int = 7, **more: int) -> Board:
    history = [
        {"unix_s": float(at), "tiers": {"nvme": {"hits": at, "misses": at, "loaded_bytes": 1024 * at}}}
        for at in range(seconds)
    ]
    return replace(
        board(float(seconds), pid, started_unix_s=0.0, nvme=tier(hits=seconds, misses=seconds, **more)),
        history=history,
    )


def test_a_page_needs_nothing_from_elsewhere_and_runs_nothing(written: Any) -> None:
    text, page = written(seen(100))
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|<img", text.replace("</", "<"))
    assert "svg" in page.tags
    assert "40 chunks" in page.text


def test_without_engines_it_says_so_and_shows_the_store(written: Any) -> None:
    _, page = written()
    assert "No engine that uses it can be seen" in page.text
    assert "Room and wear" in page.text


def test_one_look_draws_no_line(written: Any) -> None:
    _, page = written(board(nvme=tier(hits=1)))
    assert "Not enough was seen yet" in page.text


def test_a_day_of_several_engines_stays_small(written: Any) -> None:
    text, _ = written(*(seen(1500, pid) for pid in range(8)))
    assert len(text.encode()) <= 300 * 1024


def test_foreign_text_is_text(written: Any) -> None:
    text, page = written(replace(seen(3), facts=replace(FACTS, model=BAD)))
    assert '</script><b onload="x">&xx' in page.text, "as it is, and cut"
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert len(text) < 50_000


def test_what_is_wrong_is_told_with_what_to_do(written: Any) -> None:
    _, page = written(seen(3, corrupt_chunks=1, late_loads=2, dropped_chunks=0))
    assert "What to do" in page.text
    assert "kvtier fsck" in page.text
    assert "nvme: the breaker is open" in page.text
    assert "were dropped" not in page.text


def test_a_directory_that_is_no_store_is_refused(run: Run, tmp_path: Path) -> None:
    status, _, errors = run("report", tmp_path)
    assert status == 2
    assert "is not a kvtier store" in errors


def test_a_page_that_cannot_be_written_is_one_line(run: Run, path: Path, tmp_path: Path) -> None:
    status, _, errors = run("report", path, "-o", tmp_path / "absent" / "page.html")
    assert status == 2
    assert "No such file or directory" in errors
