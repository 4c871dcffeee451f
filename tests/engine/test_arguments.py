"""What a library user may pass, and what he is told where he may not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_rig import BLOCKS, EngineRig, config

from kvtier.engine import OffloadEngine
from kvtier.tiers.device.tensors import whole_numbers

KV = torch.zeros((8, 2, 16, 64))


@pytest.fixture(scope="module")
def rig() -> Iterator[EngineRig]:
    tiers = [{"type": "gpu"}, {"type": "pinned", "capacity": "1MiB"}]
    rig = EngineRig({"version": 1, "tiers": tiers})
    rig.load(rig.store([b"a", b"b"]))  # all threads that it will have are there
    yield rig
    rig.engine.close()


def register(tensors: Any, **options: Any) -> None:
    tiers = [{"type": "gpu"}, {"type": "pinned", "capacity": "4MiB"}]
    with OffloadEngine.open({"version": 1, "tiers": tiers}) as engine:
        engine.register_kv_caches(tensors, **options)
        assert engine.store([b"k"], range(options.get("blocks_per_chunk", 1))).wait(10).succeeded == (b"k",)


@pytest.mark.parametrize(
    "tensors",
    [
        [KV, KV.clone()],
        (KV,),
        {"layer.0": KV, "layer.1": KV.clone()},
        iter([KV, KV.clone()]),
        [KV.transpose(0, 1)[0], KV.transpose(0, 1)[1]],
        [torch.zeros((2, 8, 16, 64))[0], torch.zeros((2, 8, 16, 64))[1]],
        [torch.zeros((8, 2, 64))],
        [torch.zeros((2, 2, 16, 64))],
        [torch.zeros((8, 128))[:, :64]],
    ],
    ids=range(9),
)
def test_tensors_may_come_in_any_collection(tensors: Any) -> None:
    register(tensors)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (KV, r"in a list, \[tensor\]; this is one of shape \(8, 2, 16, 64\)"),
        (KV.numpy(), "list of torch tensors, not in a ndarray"),
        ([KV, KV.numpy()], "tensor 1 is a numpy array; pass torch.from_numpy"),
        ({"layer.0": KV.numpy()}, "tensor 0 is a numpy array"),
        ([[KV]], "tensor 0 is no torch tensor but a list"),
        (["kv"], "tensor 0 is no torch tensor but a str"),
        (None, "not in a NoneType"),
        (5, "not in a int"),
        ([], "no KV tensors were given"),
        ({}, "no KV tensors were given"),
        ([torch.zeros((2, 8, 16, 64))], r"shape \(2, 8, 16, 64\).*pass \[kv\[0\], kv\[1\]\]"),
        ([torch.zeros((2, 8, 4, 64))], r"pass \[kv\[0\], kv\[1\]\]"),
        ([torch.zeros((2, 8, 16, 4, 64))], r"pass \[kv\[0\], kv\[1\]\]"),
        ([torch.zeros((2, 8, 16, 64)).transpose(0, 1)], r"pass \[kv\[0\], kv\[1\]\]"),
        ([torch.zeros((8, 64)), torch.zeros((4, 64))], "equally many rows"),
        ([torch.zeros((8, 64)), torch.zeros(())], "equally many rows"),
        ([torch.zeros(8)], r"must be \(num_blocks, ...\)"),
        ([torch.zeros(())], r"must be \(num_blocks, ...\)"),
        ([torch.zeros((8, 64), device="meta")], "not on meta"),
        ([torch.zeros((8, 64)).to_sparse()], "no rows in memory"),
        ([torch.zeros((8, 16, 64)).transpose(1, 2)], "is not contiguous"),
    ],
)
def test_other_tensors_are_refused_with_what_to_pass_instead(tensors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register(tensors)


def test_tensors_that_were_refused_may_be_mended(tmp_path: Path) -> None:
    with OffloadEngine.open(config(tmp_path / "nvme")) as engine:
        with pytest.raises(ValueError, match="pass"):
            engine.register_kv_caches([torch.zeros((2, 8, 16, 64))])
        kv = torch.zeros((2, 8, 16, 8))
        engine.register_kv_caches([kv[0], kv[1]])
        assert engine.lookup([b"a"]) == 0


@pytest.mark.parametrize("count", [True, 1.5, 2.0, "2", None, 0, -1])
def test_blocks_per_chunk_is_a_whole_number(count: Any) -> None:
    with pytest.raises(ValueError, match="blocks_per_chunk must be"):
        register([KV], blocks_per_chunk=count)


@pytest.mark.parametrize(
    "blocks",
    [
        [3, 4],
        (3, 4),
        range(3, 5),
        (block for block in (3, 4)),
        np.array([3, 4]),
        np.array([3, 4], np.uint64),
        [np.int32(3), 4],
        torch.tensor([3, 4]),
        torch.tensor([3, 4], dtype=torch.int32),
        [torch.tensor(3), torch.tensor(4)],
    ],
    ids=range(10),
)
def test_block_ids_may_be_whole_numbers_of_any_kind(rig: EngineRig, blocks: Any) -> None:
    assert rig.engine.load([b"a", b"b"], blocks).wait(10).succeeded == (b"a", b"b")
    assert rig.device.holds(3, b"a")
    assert rig.device.holds(4, b"b")


class OnDevice(torch.Tensor):
    """A tensor whose memory numpy cannot see, as one on a GPU."""

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self, *rest: Any, **options: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_block_ids_on_a_device_are_fetched() -> None:
    ids = torch.tensor([3, 4]).as_subclass(OnDevice)
    with pytest.raises(TypeError):
        ids.numpy()
    assert whole_numbers(ids).tolist() == [3, 4]


@pytest.mark.parametrize(
    "blocks",
    [
        [0.0, 1.0],
        [True, False],
        [-1, 0],
        [0, BLOCKS],
        [0, 2**70],
        [0],
        [0, 1, 2],
        "01",
        None,
        5,
        [[0], [1]],
        [None, 1],
        np.array([0.0, 1.0]),
        np.array([True, False]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([True, False]),
        [torch.tensor([0, 1]), 1],
    ],
    ids=range(17),
)
@pytest.mark.parametrize("method", ["store", "load"])
def test_other_block_ids_are_refused(rig: EngineRig, method: str, blocks: Any) -> None:
    with pytest.raises(ValueError, match="block"):
        getattr(rig.engine, method)([b"a", b"b"], blocks)


@pytest.mark.parametrize("keys", [(b"a",), {b"a"}, {b"a": 1}, (key for key in [b"a"])], ids=range(4))
@pytest.mark.parametrize("method", ["lookup", "store", "load"])
def test_keys_may_come_in_any_collection(rig: EngineRig, method: str, keys: Any) -> None:
    listed = list(keys)
    again = iter(listed) if listed and not hasattr(keys, "__len__") else keys
    call = getattr(rig.engine, method)
    if method == "lookup":
        assert call(again) == len(listed)
    else:
        assert call(again, range(5, 5 + len(listed))).wait(10).succeeded == tuple(listed)


@pytest.mark.parametrize(
    "keys", ["a", b"ab", 5, None, ["a"], [bytearray(b"a")], [5], [b""], [b"x" * 257], [b"a", b"a"]]
)
@pytest.mark.parametrize("method", ["lookup", "store", "load", "remove"])
def test_other_keys_are_refused(rig: EngineRig, method: str, keys: Any) -> None:
    arguments = () if method in ("lookup", "remove") else ([0],)
    with pytest.raises(ValueError, match="key"):
        getattr(rig.engine, method)(keys, *arguments)
