import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.tiers.device.copyplan import KVLayout, Page, Rows, Spans

CHUNK_STRIDE = 1 << 20  # far apart, so that no two chunks are neighbours in host memory


def one_tensor(stride_bytes, row_bytes, blocks_per_chunk):
    return KVLayout([Rows(0, stride_bytes, row_bytes, 50)], [[Page(0, row_bytes)]], blocks_per_chunk)


def runs(plan):
    return list(zip(plan.device.tolist(), plan.host.tolist(), plan.sizes.tolist(), strict=True))


def copied_bytes(plan):
    """Every single byte that the plan copies, as (device, host)."""
    return sorted((d + i, h + i) for d, h, size in runs(plan) for i in range(size))


def expected_bytes(tensors, groups, blocks_per_chunk, spans, chunks):
    """The same by the definition, one byte at a time."""
    pairs, first_block, first_chunk = [], 0, 0
    for pages, count, index in zip(groups, spans.group_sizes, spans.block_indices, strict=True):
        touched = 0
        for j, block in enumerate(spans.block_ids[first_block : first_block + count].tolist()):
            chunk = (index + j) // blocks_per_chunk - index // blocks_per_chunk
            touched = chunk + 1
            for tensor, page_bytes in pages:
                before = sum(rows.row_bytes for rows in tensors[:tensor]) * blocks_per_chunk
                rows = tensors[tensor]
                host = int(chunks[first_chunk + chunk]) + before
                host += ((index + j) % blocks_per_chunk) * rows.row_bytes
                device = rows.base + block * rows.stride_bytes
                pairs += [(device + i, host + i) for i in range(page_bytes)]
        first_block, first_chunk = first_block + count, first_chunk + touched
    return sorted(pairs)


@st.composite
def transfers(draw):
    blocks_per_chunk = draw(st.integers(1, 4))
    tensors = []
    for index in range(draw(st.integers(1, 4))):
        row_bytes = draw(st.integers(1, 6))
        tensors.append(Rows((index + 1) << 40, row_bytes + draw(st.integers(0, 2)), row_bytes, 12))
    groups, ids, sizes, indices, chunk_count = [], [], [], [], 0
    for _ in range(draw(st.integers(1, 3))):
        used = draw(st.lists(st.integers(0, len(tensors) - 1), min_size=1, unique=True))
        groups.append([Page(i, draw(st.integers(1, tensors[i].row_bytes))) for i in used])
        blocks = draw(st.lists(st.integers(0, 11), max_size=7, unique=True))
        index = draw(st.integers(0, 9))
        ids += blocks
        sizes.append(len(blocks))
        indices.append(index)
        if blocks:
            chunk_count += (index + len(blocks) - 1) // blocks_per_chunk - index // blocks_per_chunk + 1
    spans = Spans(np.array(ids, np.int64), sizes, indices)
    places = draw(st.permutations(range(chunk_count)))
    return tensors, groups, blocks_per_chunk, spans, np.array(places, np.int64) * CHUNK_STRIDE + (1 << 50)


@given(transfers())
def test_a_plan_copies_every_byte_to_its_place_and_no_other(transfer):
    tensors, groups, blocks_per_chunk, spans, chunks = transfer
    plan = KVLayout(tensors, groups, blocks_per_chunk).plan(spans, chunks)
    assert copied_bytes(plan) == expected_bytes(tensors, groups, blocks_per_chunk, spans, chunks)
    assert plan.size_bytes == int(plan.sizes.sum())


def test_neighbours_on_both_sides_are_one_run():
    layout = one_tensor(100, 100, 4)
    plan = layout.plan(Spans(np.array([7, 8, 9, 20]), [4], [0]), np.array([5000]))
    assert runs(plan) == [(700, 5000, 300), (2000, 5300, 100)]


def test_no_run_goes_beyond_its_chunk_even_where_the_next_one_follows() -> None:
    layout = one_tensor(100, 100, 2)
    plan = layout.plan(Spans(np.array([4, 5, 6, 7]), [4], [0]), np.array([5000, 5200]))
    assert runs(plan) == [(400, 5000, 200), (600, 5200, 200)]


def test_padded_rows_are_not_merged_over_the_padding():
    layout = one_tensor(128, 100, 2)
    plan = layout.plan(Spans(np.array([0, 1]), [2], [0]), np.array([5000]))
    assert runs(plan) == [(0, 5000, 100), (128, 5100, 100)]


def test_a_first_chunk_that_is_partly_covered_is_entered_in_the_middle():
    layout = one_tensor(10, 10, 4)
    plan = layout.plan(Spans(np.array([1, 3, 5]), [3], [6]), np.array([1000, 2000]))
    assert runs(plan) == [(10, 1020, 10), (30, 1030, 10), (50, 2000, 10)]


def test_no_blocks_are_no_runs():
    plan = one_tensor(10, 10, 1).plan(Spans(np.empty(0, np.int64), [0], [0]), np.empty(0, np.int64))
    assert (runs(plan), plan.size_bytes) == ([], 0)


@pytest.mark.parametrize("block", [-1, 50])
def test_a_block_that_the_device_does_not_have_is_refused(block):
    layout = one_tensor(10, 10, 1)
    with pytest.raises(ValueError, match=rf"block {block} is not on the device, which has blocks 0 to 49"):
        layout.plan(Spans(np.array([block]), [1], [0]), np.array([0]))


@pytest.mark.parametrize("chunks", [1, 3])
def test_chunks_that_do_not_match_the_blocks_are_refused(chunks):
    layout = one_tensor(10, 10, 1)
    with pytest.raises(ValueError, match="chunks"):
        layout.plan(Spans(np.array([1, 2]), [2], [0]), np.zeros(chunks, np.int64))


def test_a_slot_holds_the_rows_of_all_tensors_side_by_side():
    tensors = [Rows(0, 16, 10, 50), Rows(1000, 8, 8, 50)]
    layout = KVLayout(tensors, [[Page(0, 10)], [Page(1, 5)]], 2)
    assert layout.part_bytes == 36
    spans = Spans(np.array([1, 2, 3, 4]), [2, 2], [0, 0])
    assert runs(layout.plan(spans, np.array([5000, 6000]))) == [
        (16, 5000, 10),
        (32, 5010, 10),
        (1024, 6020, 5),
        (1032, 6028, 5),
    ]
