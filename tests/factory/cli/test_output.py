from __future__ import annotations

import json

import pytest

from kvtier.factory.cli.output import emit, print_pairs, progress


def test_json_says_first_what_printed_it_and_in_which_shape(capsys: pytest.CaptureFixture[str]) -> None:
    emit("du", {"stores": []})
    assert list(json.loads(capsys.readouterr().out).items()) == [
        ("command", "du"),
        ("version", 1),
        ("stores", []),
    ]


def test_values_stand_below_each_other_and_no_line_ends_in_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    print_pairs(("chunks", "40"), ("read back", "10"), ("segments", ""))
    assert capsys.readouterr().out == "chunks     40\nread back  10\nsegments\n"


def test_no_bar_is_drawn_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("removing") as bar:
        bar(1, 2)
        bar(2, 2)
    assert capsys.readouterr() == ("", "")
