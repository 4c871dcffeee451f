from collections.abc import AsyncIterator

import pytest

from kvtier.tiers.null import NullTier
from kvtier.tiers.testing import TierContract


class TestNullTierContract(TierContract):
    KEEPS = False

    @pytest.fixture
    async def tier(self) -> AsyncIterator[NullTier]:
        tier = NullTier()
        yield tier
        await tier.close()
