"""Which tiers a request loads from, as vLLM's own filter says."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import Locality, Medium, ReqContext, TierFilter, TierMatcher

from kvtier.factory.vllm.places import below

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what vLLM imports
]

LOWER = ["nvme", "tape"]


@pytest.mark.parametrize(
    ("matchers", "loads_from"),
    [
        ([], []),
        ([TierMatcher()], LOWER),
        ([TierMatcher(Medium.CPU)], []),
        ([TierMatcher(Medium.STORAGE)], LOWER),
        ([TierMatcher(None, Locality.LOCAL)], LOWER),
        ([TierMatcher(None, Locality.REMOTE)], ["tape"]),
        ([TierMatcher(Medium.STORAGE, Locality.REMOTE)], ["tape"]),
        ([TierMatcher(Medium.CPU, Locality.LOCAL), TierMatcher(Medium.STORAGE, Locality.LOCAL)], LOWER),
        ([TierMatcher(Medium.CPU, Locality.LOCAL), TierMatcher(Medium.STORAGE, Locality.REMOTE)], ["tape"]),
    ],
)
def test_each_tier_below_is_chosen_by_its_own_medium_and_locality(
    matchers: list[TierMatcher], loads_from: list[str]
) -> None:
    context = ReqContext(req_id="r", load_tier_filter=TierFilter(tuple(matchers)))
    assert below(context, LOWER, {"tape"}) == loads_from, "where another package keeps chunks is unknown"


def test_a_request_that_does_not_choose_loads_from_all() -> None:
    assert below(ReqContext(req_id="r"), LOWER, {"tape"}) is None
