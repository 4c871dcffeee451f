"""Where a server records its prompts: what a document may name for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from ..tiers import ConfigError
from .text.wording import quoted

FIELD = "trace"


def refuse_inside(
    trace: Path | None, directories: Iterable[tuple[Path, str]], canonical: Callable[[Path], str]
) -> None:
    """Refuse a file in the directory of a tier, which belongs to the tier alone.

    Args:
        directories: each with the place of its tier in the document.

    Raises:
        ConfigError: it is in one.
    """
    if trace is None:
        return
    for directory, owner in directories:
        if Path(canonical(trace)).is_relative_to(canonical(directory)):
            raise ConfigError(
                FIELD, f"{quoted(trace)} lies in the directory of {owner}; choose one beside it"
            )


def refuse_absent(trace: Path | None) -> None:
    """Refuse what could be no file on this machine.

    Raises:
        ConfigError: it is a directory, or would be in none.
    """
    if trace is None:
        return
    if trace.is_dir():
        raise ConfigError(FIELD, f"{quoted(trace)} is a directory; name a file in it")
    if not trace.parent.is_dir():
        raise ConfigError(FIELD, f"there is no directory {quoted(trace.parent)}; make it, or name another")
