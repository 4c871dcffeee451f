"""How messages show values and suggest names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path

SHOWN_CHARS_MAX = 60  # a longer value would hide the sentence around it

NEAR_RATIO_MIN = 0.6  # difflib's own default: one or two slips in a short word


def shown(value: object) -> str:
    """`value` as it would stand in the document, shortened."""
    try:
        text = _printable(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARS_MAX else f"{text[:SHOWN_CHARS_MAX]}…"


def quoted(text: str | Path) -> str:
    """A name or path in quotes, whole, however long it is: half of it would be of no use."""
    return _printable(json.dumps(str(text), ensure_ascii=False))


def _printable(text: str) -> str:
    """Half a character, which JSON can name and no output can encode, stays the escape that names it."""
    return text.encode(errors="backslashreplace").decode()


def listed(names: Iterable[str]) -> str:
    """The names, quoted and sorted: `"a", "b" and "c"`."""
    *first, last = [quoted(name) for name in sorted(names)]
    return f"{', '.join(first)} and {last}" if first else last


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that `word` was probably meant to be; upper and lower case count as equal."""
    by_lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_lowered, n=1, cutoff=NEAR_RATIO_MIN)
    return by_lowered[near[0]] if near else None


def suggested(word: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest one, or all of them."""
    names = tuple(names)
    near = nearest(word, names)
    return f"choose from {listed(names)}" if near is None else f"did you mean {quoted(near)}?"


def reason_of(error: Exception) -> str:
    """What the system says about a call that failed, as part of a sentence."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{reason[:1].lower()}{reason[1:]}"
