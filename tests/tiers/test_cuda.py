"""What can be shown of the CUDA module without a device: the calls that it makes, and their layout."""

import ctypes

import numpy as np
import pytest

from kvtier.tiers.cuda import BatchedMemcpy, MemcpyPerRun, _Attributes

STREAM = 0x5A5A


def memory(*chunks):
    arrays = [np.frombuffer(bytearray(chunk), np.uint8) for chunk in chunks]
    return arrays, np.array([array.ctypes.data for array in arrays], np.int64)


def test_the_attributes_have_the_layout_of_the_driver_header():
    # enum, {enum, int}, {enum, int}, unsigned: all four bytes wide, so 24 bytes without padding.
    assert ctypes.sizeof(_Attributes) == 24
    offsets = [getattr(_Attributes, name).offset for name, _ in _Attributes._fields_]
    assert offsets == [0, 4, 12, 20]


def batch_driver(result=0, failed_at=0):
    """cuMemcpyBatchAsync as the driver reads its arguments, with host memory for a device."""
    calls = []

    def function(targets, sources, sizes, count, attributes, first, attribute_count, fail_index, stream):
        columns = [(ctypes.c_int64 * count).from_address(column) for column in (targets, sources, sizes)]
        given = _Attributes.from_address(attributes)
        calls.append(
            {
                "count": count,
                "stream": stream,
                "order": given.src_access_order,
                "attributes": [ctypes.c_size_t.from_address(first).value, attribute_count],
            }
        )
        if result:
            ctypes.c_size_t.from_address(fail_index).value = failed_at
            return result
        for target, source, size in zip(*columns, strict=True):
            ctypes.memmove(target, source, size)
        return 0

    return BatchedMemcpy(BatchedMemcpy.PROTOTYPE(function)), calls


def test_a_whole_plan_is_one_call_of_the_driver():
    batched, calls = batch_driver()
    sources, source_addresses = memory(b"abcd", b"efgh", b"ijkl")
    targets, target_addresses = memory(b"....", b"....", b"....")
    batched(target_addresses, source_addresses, np.array([4, 2, 3]), STREAM)
    assert [bytes(target) for target in targets] == [b"abcd", b"ef..", b"ijk."]
    assert calls == [{"count": 3, "stream": STREAM, "order": 1, "attributes": [0, 1]}]
    assert len(sources) == 3


def test_an_error_of_the_driver_says_which_run():
    batched, _ = batch_driver(result=700, failed_at=2)
    _, addresses = memory(b"abcd", b"efgh", b"ijkl")
    with pytest.raises(RuntimeError, match=r"CUDA error 700 at run 2"):
        batched(addresses, addresses, np.array([4, 4, 4]), STREAM)


def test_without_the_batched_call_each_run_is_one_memcpy():
    calls = []

    def memcpy(target, source, size, kind, stream):
        calls.append((kind, stream))
        ctypes.memmove(target, source, size)
        return 0

    _sources, source_addresses = memory(b"abcd", b"efgh")
    targets, target_addresses = memory(b"....", b"....")
    MemcpyPerRun(memcpy, 4)(target_addresses, source_addresses, np.array([4, 1]), STREAM)
    assert [bytes(target) for target in targets] == [b"abcd", b"e..."]
    assert calls == [(4, STREAM)] * 2


def test_a_failing_run_is_named():
    results = iter([0, 1])
    with pytest.raises(RuntimeError, match="error 1 at run 1"):
        MemcpyPerRun(lambda *_: next(results))(np.array([1, 2]), np.array([1, 2]), np.array([1, 2]), STREAM)
