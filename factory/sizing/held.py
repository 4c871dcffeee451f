"""How much KV each tier of a document holds: chunks, tokens, prompts."""

from __future__ import annotations

from dataclasses import dataclass

from ...tiers.nvme.format.codec import FIRST_BLOCK, SegmentName
from ...tiers.nvme.format.open_segment import OpenSegment
from ...tiers.nvme.format.segment_file import SegmentFile
from ...tiers.nvme.io.files import Files
from ...tiers.nvme.log.budget import Budget, Plan, facts_for

BATCH_CHUNKS = 64  # a prompt's chunks as a server stores them, each batch with a table
KEY = bytes(36)  # as long as vLLM's: a hash and the group


@dataclass(frozen=True, slots=True)
class Held:
    """What a tier holds when it is full.

    Attributes:
        prompts: of the length that was asked about; a fraction below ten.
    """

    capacity_bytes: int
    chunks: int
    tokens: int
    prompts: float


def held(capacity_bytes: int, chunks: int, *, chunk_tokens: float, prompt_tokens: int) -> Held:
    """So many chunks in tokens and prompts."""
    tokens = int(chunks * chunk_tokens)
    return Held(capacity_bytes, chunks, tokens, tokens / prompt_tokens)


def chunks_in_log(made_for_bytes: int, room_bytes: int, chunk_bytes: int) -> int:
    """How many chunks a store that was made for a capacity holds at least, once all its room is taken.

    Beside them lie tables, the index's checkpoints, and segments that are kept ready for what comes.
    """
    facts = facts_for(made_for_bytes, chunk_bytes)
    budget = Budget(room_bytes, 0, facts.segment_bytes, facts.chunk_bytes)
    if room_bytes < budget.least_bytes:
        return 0
    plan = Plan.of(budget, namespaces_count=1)
    full = max(1, plan.segments - plan.ahead - plan.kept)
    return full * _chunks_in_segment(budget.segment_bytes, chunk_bytes)


def _chunks_in_segment(segment_bytes: int, chunk_bytes: int) -> int:
    # No file at all: what is asked of it is its size.
    room = OpenSegment(SegmentFile(Files(), -1, SegmentName(b"", 0, 0), segment_bytes), FIRST_BLOCK)
    keys, lengths_bytes, chunks = [KEY] * BATCH_CHUNKS, [chunk_bytes] * BATCH_CHUNKS, 0
    while (placement := room.place(keys, lengths_bytes)) is not None:
        chunks += placement.chunks
    return chunks
