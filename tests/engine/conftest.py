"""A spec whose tiers do as they are told, and ends of an engine that take no time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lifetime_rig import SHORT_S, Spec

from kvtier.engine import lifetime, loop


@pytest.fixture
def spec() -> Iterator[Spec]:
    spec = Spec()
    yield spec
    spec.disk.lets_go.set()


@pytest.fixture
def _short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime, "STEP_S", SHORT_S)
    monkeypatch.setattr(lifetime, "TIERS_S", SHORT_S)
    monkeypatch.setattr(loop, "JOIN_S", SHORT_S)
