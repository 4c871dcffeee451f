"""The comparison of tokens can fail: wrong bytes on the device are seen in what the server generates."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm_phases import MakeServer, Phase, Tokens, in_pairs
from vllm_server import tier_document

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def sabotaged(make_server: MakeServer, directory: Path) -> dict[str, Phase]:
    """Hits in the pinned tier, loaded as they are, with two blocks exchanged, and as zeros."""
    order = directory / "sabotage"
    order.write_text("none")
    with make_server(
        tiers=tier_document(pinned="256MiB"),
        spec=("saboteurs", "SaboteurSpec"),
        extra={"sabotage": str(order)},
    ) as server:
        in_pairs(server)
        phases = {}
        for kind in ("none", "swap", "zero"):
            order.write_text(kind)
            phases[kind] = in_pairs(server)
        server.kill()
    return phases


def test_loads_left_alone_pass_the_comparison(
    sabotaged: dict[str, Phase], expected: Tokens, reusable: list[int]
) -> None:
    assert sabotaged["none"].tokens == expected
    assert sabotaged["none"].cached_tokens == reusable


@pytest.mark.parametrize("kind", ["swap", "zero"])
def test_spoilt_loads_fail_the_comparison(
    sabotaged: dict[str, Phase], expected: Tokens, reusable: list[int], kind: str
) -> None:
    assert sabotaged[kind].cached_tokens == reusable
    assert sabotaged[kind].tokens != expected
