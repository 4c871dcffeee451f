from pathlib import Path

from kvtier.factory.text.wording import SHOWN_CHARS_MAX, listed, nearest, quoted, shown, suggested


def test_a_value_is_shown_as_json_and_shortened() -> None:
    assert shown({"a": [1, None]}) == '{"a": [1, null]}'
    assert shown("ü") == '"ü"'
    assert shown("x" * 1000) == '"' + "x" * (SHOWN_CHARS_MAX - 1) + "…"


def test_a_value_that_is_no_json_is_shown_by_its_kind() -> None:
    assert shown({1, 2}) == "a set"
    circle: list[object] = []
    circle.append(circle)
    assert shown(circle) == "a list"


def test_a_path_is_quoted_whole() -> None:
    path = Path("/" + "x" * 1000)
    assert quoted(path) == f'"{path}"'


def test_names_are_listed_in_order() -> None:
    assert listed(["b", "c", "a"]) == '"a", "b" and "c"'
    assert listed(["a"]) == '"a"'


def test_the_nearest_name_is_found_in_any_case() -> None:
    assert nearest("S3FIFo", ["lru", "s3fifo"]) == "s3fifo"
    assert nearest("zzz", ["lru", "s3fifo"]) is None


def test_a_suggestion_is_the_nearest_name_or_all() -> None:
    assert suggested("lur", ["lru", "arc"]) == 'did you mean "lru"?'
    assert suggested("zzz", ["lru", "arc"]) == 'choose from "arc" and "lru"'
