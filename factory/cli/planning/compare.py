"""Alternatives to a document, side by side: twice a tier, another policy, another admission."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ....engine.replay.replay import ReplayFigures
from ....tiers.pinned.eviction import POLICIES
from .replay_plan import SECOND_TOUCH, ReplayPlan
from .sweep import a_day, drives_bytes, written_a_day
from .table import table

NOW = "as configured"

_HEADINGS = ("alternative", "hit rate", "tokens saved", "prefill saved a day", "to drives a day")


class Alternative(NamedTuple):
    """One chain, and what to call it."""

    name: str
    plan: ReplayPlan


class Savings(NamedTuple):
    """What one alternative did for the trace.

    Attributes:
        saved_tokens: of prompts, that were not computed.
        saved_prefill_s_a_day: None where the trace or the user does not say enough.
    """

    name: str
    hit_rate_percent: float
    saved_tokens: int
    saved_prefill_s_a_day: float | None
    drives_written_bytes_a_day: float | None


def alternatives(plan: ReplayPlan) -> list[Alternative]:
    """The chain as it is, and each of its alternatives."""
    return [Alternative(NOW, plan), *_larger(plan), *_policies(plan), *_admissions(plan)]


def savings(
    name: str,
    figures: ReplayFigures,
    *,
    chunk_tokens: float,
    span_s: float | None,
    prefill_tokens_per_s: float | None,
) -> Savings:
    """What the figures mean."""
    saved_tokens = round(figures.hits_chunks * chunk_tokens)
    saved_s = None if prefill_tokens_per_s is None else saved_tokens / prefill_tokens_per_s
    return Savings(
        name,
        figures.hit_rate_percent,
        saved_tokens,
        None if saved_s is None else _rounded(a_day(saved_s, span_s)),
        _rounded(a_day(drives_bytes(figures), span_s)),
    )


def as_text(found: Sequence[Savings]) -> str:
    """One line an alternative."""
    rows = [_HEADINGS]
    for one in found:
        saved_s = "-" if one.saved_prefill_s_a_day is None else f"{one.saved_prefill_s_a_day:,.0f} s"
        rows.append(
            (
                one.name,
                f"{one.hit_rate_percent:.1f}%",
                f"{one.saved_tokens:,}",
                saved_s,
                written_a_day(one.drives_written_bytes_a_day),
            )
        )
    return "\n".join(table(rows))


def as_json(found: Sequence[Savings]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [one._asdict() for one in found]


def _larger(plan: ReplayPlan) -> Iterator[Alternative]:
    for name, size_bytes in plan.capacities_bytes.items():
        yield Alternative(f"2x {name}", plan.resized(name, 2 * size_bytes))


def _policies(plan: ReplayPlan) -> Iterator[Alternative]:
    for policy in POLICIES:
        if policy != plan.policy:
            yield Alternative(f"policy {policy}", plan.with_policy(policy))


def _admissions(plan: ReplayPlan) -> Iterator[Alternative]:
    for log in plan.logs:
        admission = "always" if log.admission == SECOND_TOUCH else SECOND_TOUCH
        yield Alternative(f"{log.name} {admission}", plan.admitting(log.name, admission))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
