"""A finding of `kvtier doctor`: what was looked at, how it stands, and what to do."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.StrEnum):
    """How something stands."""

    OK = "ok"
    WARNING = "warning"  # works, slower or less safely than it might
    FAULT = "fault"  # a server does not start, or is ended
    UNKNOWN = "unknown"  # this machine does not tell


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        check: what was looked at; the same name on every machine.
        text: what was found.
        fix: what to do; empty where there is nothing to do.
    """

    check: str
    state: State
    text: str
    fix: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check, State.OK, text)


def warning(check: str, text: str, fix: str) -> Finding:
    return Finding(check, State.WARNING, text, fix)


def fault(check: str, text: str, fix: str) -> Finding:
    return Finding(check, State.FAULT, text, fix)


def unknown(check: str, text: str) -> Finding:
    return Finding(check, State.UNKNOWN, text)
