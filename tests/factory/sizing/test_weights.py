from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtier.factory.sizing.weights import INDEX, weights_bytes

ODD = ('"x"', "1e400", "{}", "[1]", "-5", "1.5", "true", "null", "0")


def test_weights_are_as_large_as_their_files(tmp_path: Path) -> None:
    assert weights_bytes(tmp_path) is None
    (tmp_path / "a.safetensors").write_bytes(bytes(1000))
    (tmp_path / "b.safetensors").write_bytes(bytes(500))
    assert weights_bytes(tmp_path) == 1500


def test_an_index_says_it_where_the_files_are_not_there(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 16_060_522_496}}))
    assert weights_bytes(tmp_path) == 16_060_522_496


@pytest.mark.parametrize(
    "text", ["[]", "[" * 100_000, *(f'{{"metadata": {{"total_size": {size}}}}}' for size in ODD)]
)
def test_an_index_that_says_nothing_of_use_is_left_aside(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    assert weights_bytes(tmp_path) is None
