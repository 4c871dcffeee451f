"""Every way to write a document wrong, and the one message that answers it.

One long file: every case is a change of the same good document.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.factory import config as config_module
from kvtier.factory import entries, registry
from kvtier.factory.config import (
    KvtierConfig,
    load_config,
    parse_config,
    probe_config,
    resolve_config,
    shortages,
)
from kvtier.factory.entries import GpuConfig, NvmeConfig, PinnedConfig
from kvtier.factory.text.units import HOW_TO_WRITE, Percent
from kvtier.tiers import ConfigError
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.log.budget import facts_for
from kvtier.tiers.nvme.store.directory import StoreDirectory
from kvtier.tiers.pinned.eviction import POLICIES, ArcPolicy, GuardedPolicy
from kvtier.tiers.pinned.memory import Room

MIB = 1 << 20
GIB = 1 << 30

Document = dict[str, Any]
Change = Callable[[Document], None]

GOOD: Document = {
    "version": 1,
    "tiers": [
        {"type": "gpu"},
        {"type": "pinned", "capacity": "64GiB", "policy": "lru"},
        {"type": "nvme", "path": "/mnt/nvme0/kvtier", "capacity": "2TiB", "reserve": "10%"},
    ],
}


def changed(change: Change) -> Document:
    document = copy.deepcopy(GOOD)
    change(document)
    return document


def with_(i: int, **fields: Any) -> Change:
    return lambda document: document["tiers"][i].update(fields)


def without(i: int, field: str) -> Change:
    return lambda document: document["tiers"][i].pop(field)


def at_top(**fields: Any) -> Change:
    return lambda document: document.update(fields)


def refused(document: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(document)
    return caught.value


WRONG_DOCUMENTS: list[tuple[str, Change, str]] = [
    # the document as a whole
    ("version of the future", at_top(version=2), "version: should be 1, the only version there is, not 2"),
    ("version as text", at_top(version="1"), 'version: should be 1, the only version there is, not "1"'),
    ("version as truth", at_top(version=True), "version: should be 1, the only version there is, not true"),
    ("no version", lambda d: d.pop("version"), "version: missing; for example 1"),
    ("no tiers", lambda d: d.pop("tiers"), 'tiers: missing; for example [{"type": "gpu"}]'),
    (
        "misspelled top key",
        lambda d: d.update(teirs=d.pop("tiers")),
        'teirs: unknown key; did you mean "tiers"?',
    ),
    (
        "unknown top key",
        at_top(comment="mine"),
        'comment: unknown key; known are "$schema", "on_reset", "recompute", "tiers", "trace", "version" '
        'and "weights_epoch"',
    ),
    (
        "negative weights epoch",
        at_top(weights_epoch=-1),
        "weights_epoch: should be greater than or equal to 0, not -1; for example 1",
    ),
    (
        "unknown reset behaviour",
        at_top(on_reset="forget"),
        """on_reset: should be 'invalidate' or 'keep', not "forget"; for example "invalidate\"""",
    ),
    (
        "unknown way to decide",
        at_top(recompute="always"),
        """recompute: should be 'auto' or 'never', not "always"; for example "auto\"""",
    ),
    (
        "relative trace",
        at_top(trace="~/trace.jsonl"),
        f'trace: "~/trace.jsonl" is not absolute; did you mean "{Path.home()}/trace.jsonl"?',
    ),
    (
        "trace among a tier's files",
        at_top(trace="/mnt/nvme0/kvtier/trace.jsonl"),
        'trace: "/mnt/nvme0/kvtier/trace.jsonl" lies in the directory of tiers[2]; choose one beside it',
    ),
    (
        "tiers as an object",
        at_top(tiers={}),
        'tiers: should be a valid list, not {}; for example [{"type": "gpu"}]',
    ),
    ("empty chain", at_top(tiers=[]), 'tiers: should not be empty; it starts with {"type": "gpu"}'),
    # the chain's order
    (
        "device alone",
        lambda d: d["tiers"].__delitem__(slice(1, None)),
        'tiers: nothing below "gpu" to offload to; add a "pinned" tier',
    ),
    (
        "device not first",
        lambda d: d["tiers"].reverse(),
        'tiers[0].type: should be "gpu", the first of every chain, not "nvme"',
    ),
    ("two devices", with_(1, type="gpu"), 'tiers[1].type: only the first tier is "gpu"'),
    (
        "drive without pinned",
        lambda d: d["tiers"].pop(1),
        'tiers[1].type: "nvme" needs a "pinned" tier above it, for its transfers',
    ),
    (
        "drive above pinned",
        lambda d: d["tiers"].append(d["tiers"].pop(1)),
        'tiers[1].type: "nvme" needs a "pinned" tier above it, for its transfers',
    ),
    (
        "two pinned",
        lambda d: d["tiers"].append({"type": "pinned", "capacity": "1GiB"}),
        'tiers[3].type: at most one tier is "pinned", and tiers[1] is; raise its capacity instead',
    ),
    (
        "one directory twice",
        lambda d: d["tiers"].append(dict(d["tiers"][2], path="/mnt/nvme0/./kvtier//")),
        'tiers[3].path: "/mnt/nvme0/kvtier" is already the directory of tiers[2]',
    ),
    (
        "one directory twice, by a detour",
        lambda d: d["tiers"].append(dict(d["tiers"][2], path="/mnt/nvme0/other/../kvtier")),
        'tiers[3].path: "/mnt/nvme0/other/../kvtier" is already the directory of tiers[2]',
    ),
    (
        "a directory in another one's",
        lambda d: d["tiers"].append(dict(d["tiers"][2], path="/mnt/nvme0/kvtier/second")),
        'tiers[3].path: "/mnt/nvme0/kvtier/second" lies in "/mnt/nvme0/kvtier", the directory of tiers[2]; '
        "choose one beside it",
    ),
    (
        "a directory around another one's",
        lambda d: d["tiers"].append(dict(d["tiers"][2], path="/mnt/nvme0")),
        'tiers[3].path: "/mnt/nvme0" holds "/mnt/nvme0/kvtier", the directory of tiers[2]; '
        "choose one beside it",
    ),
    # an entry
    (
        "tier as text",
        lambda d: d["tiers"].insert(1, "pinned"),
        'tiers[1]: should be an object, not "pinned"; for example {"type": "gpu"}',
    ),
    (
        "tier without type",
        without(1, "type"),
        'tiers[1].type: missing; choose from "gpu", "nvme" and "pinned"',
    ),
    (
        "misspelled key of the type",
        lambda d: d["tiers"][1].update(typ=d["tiers"][1].pop("type")),
        'tiers[1].typ: unknown key; did you mean "type"?',
    ),
    (
        "type as number",
        with_(1, type=7),
        'tiers[1].type: should be a name, not 7; choose from "gpu", "nvme" and "pinned"',
    ),
    (
        "misspelled type",
        with_(1, type="Pined"),
        'tiers[1].type: unknown tier type "Pined"; did you mean "pinned"? Registered are "gpu", "nvme" and '
        '"pinned"; a tier of another package needs its "module_path"',
    ),
    (
        "unknown type",
        with_(2, type="tape"),
        'tiers[2].type: unknown tier type "tape". Registered are "gpu", "nvme" and "pinned"; a tier of '
        'another package needs its "module_path"',
    ),
    (
        "misspelled key",
        lambda d: d["tiers"][1].update(capcity=d["tiers"][1].pop("capacity")),
        'tiers[1].capcity: unknown key; did you mean "capacity"?',
    ),
    (
        "unknown key",
        with_(1, colour="red"),
        'tiers[1].colour: unknown key; known are "capacity", "module_path", "numa_node", "policy", '
        '"policy_module_path" and "type"',
    ),
    (
        "unknown key that is no word",
        with_(0, **{"a b": 1}),
        'tiers[0]["a b"]: unknown key; known are "module_path" and "type"',
    ),
    (
        "key that is no text",
        lambda d: d["tiers"][1].update({5: 1}),
        "tiers[1][5]: keys should be strings, not 5",
    ),
    ("no capacity", without(1, "capacity"), 'tiers[1].capacity: missing; for example "64GiB"'),
    ("no path", without(2, "path"), 'tiers[2].path: missing; for example "/mnt/nvme0/kvtier"'),
    (
        "unknown policy",
        with_(1, policy="LRUU"),
        'tiers[1].policy: unknown policy "LRUU"; did you mean "lru"?',
    ),
    (
        "policy as number",
        with_(1, policy=4),
        'tiers[1].policy: should be a valid string, not 4; for example "reuse"',
    ),
    (
        "node below zero",
        with_(1, numa_node=-1),
        "tiers[1].numa_node: should be greater than or equal to 0, not -1; for example 0",
    ),
    (
        "node as word",
        with_(1, numa_node="auto"),
        'tiers[1].numa_node: should be a valid integer, not "auto"; for example 0',
    ),
    ("empty path", with_(2, path=""), 'tiers[2].path: "" is not the path of a directory'),
    (
        "path with a zero byte",
        with_(2, path="/mnt/\0"),
        'tiers[2].path: "/mnt/\\u0000" is not the path of a directory',
    ),
    (
        "path with half a character",
        with_(2, path="/mnt/\ud800"),
        'tiers[2].path: "/mnt/\\ud800" is not the path of a directory',
    ),
    ("path as number", with_(2, path=4), "tiers[2].path: should be a path, not 4"),
    (
        "deadline of nothing",
        with_(2, load_deadline_s=0),
        "tiers[2].load_deadline_s: should be greater than 0, not 0; for example 10",
    ),
    (
        "deadline without end",
        with_(2, load_deadline_s=float("inf")),
        "tiers[2].load_deadline_s: should be a finite number, not Infinity; for example 10",
    ),
    (
        "deadline as text",
        with_(2, load_deadline_s="10s"),
        'tiers[2].load_deadline_s: should be a valid number, not "10s"; for example 10',
    ),
    (
        "amplification below one",
        with_(2, write_amplification=0.5),
        "tiers[2].write_amplification: should be greater than or equal to 1, not 0.5; for example 1.3",
    ),
    (
        "unknown admission",
        with_(2, admission="twice"),
        """tiers[2].admission: should be 'always' or 'second_touch', not "twice"; for example "always\"""",
    ),
    (
        "budget of nothing",
        with_(2, write_budget=0),
        "tiers[2].write_budget: should be greater than 0, not 0; for example 1.0",
    ),
    (
        "budget without end",
        with_(2, write_budget=float("inf")),
        "tiers[2].write_budget: should be a finite number, not Infinity; for example 1.0",
    ),
    (
        "budget beyond what can be counted",
        with_(2, write_budget=1e308),
        "tiers[2].write_budget: should be less than or equal to 1000000000, not 1e+308; for example 1.0",
    ),
    (
        "endurance as a share",
        with_(2, endurance="80%"),
        'tiers[2].endurance: should be bytes, not a percentage like "80%"; for example "1.2PB"',
    ),
    ("endurance of nothing", with_(2, endurance=0), f"tiers[2].endurance: 0 is zero; {HOW_TO_WRITE}"),
    (
        "fill as word",
        with_(2, fill="no"),
        'tiers[2].fill: should be a valid boolean, not "no"; for example true',
    ),
    # sizes; the rest of them is in test_sizes.py
    (
        "size half spelled",
        with_(1, capacity="64G"),
        'tiers[1].capacity: "64G" is not a size; did you mean "64GiB"?',
    ),
    ("size as word", with_(2, capacity="lots"), f'tiers[2].capacity: "lots" is not a size; {HOW_TO_WRITE}'),
    ("size below zero", with_(1, capacity=-1), f"tiers[1].capacity: -1 is not a size; {HOW_TO_WRITE}"),
    ("size of nothing", with_(2, capacity=0), f"tiers[2].capacity: 0 is zero; {HOW_TO_WRITE}"),
    (
        "more than the whole",
        with_(2, reserve="110%"),
        'tiers[2].reserve: "110%" is more than the whole; did you mean "100%"?',
    ),
    # policies and tiers of other packages
    (
        "policy without a name",
        lambda d: d["tiers"].__setitem__(1, {"type": "pinned", "capacity": 1, "policy_module_path": "json"}),
        'tiers[1].policy: missing; it names a class in "policy_module_path"',
    ),
    (
        "policy in a module that is not there",
        with_(1, policy="Mine", policy_module_path="kvtier_mine.policy"),
        'tiers[1].policy_module_path: there is no module "kvtier_mine"',
    ),
    (
        "policy that is not there",
        with_(1, policy="Mine", policy_module_path="json"),
        "tiers[1].policy: module 'json' has no attribute 'Mine'",
    ),
    (
        "class that is no policy",
        with_(1, policy="JSONDecoder", policy_module_path="json"),
        "tiers[1].policy: json.JSONDecoder is not a policy class",
    ),
    (
        "module that is not there",
        with_(2, type="Tape", module_path="kvtier_tape.tier"),
        'tiers[2].module_path: there is no module "kvtier_tape"',
    ),
    (
        "module path as number",
        with_(2, type="Tape", module_path=3),
        'tiers[2].module_path: should be the name of a module, not 3; for example "my_package.tier"',
    ),
    (
        "module path as file",
        with_(2, type="Tape", module_path="./tape.py"),
        'tiers[2].module_path: should be the name of a module, not "./tape.py"; for example '
        '"my_package.tier"',
    ),
    (
        "class that is not there",
        with_(2, type="Tape", module_path="json"),
        "tiers[2].type: module 'json' has no attribute 'Tape'",
    ),
    (
        "class that is no tier",
        with_(2, type="JSONDecoder", module_path="json"),
        "tiers[2].type: json.JSONDecoder is not a tier class",
    ),
]


@pytest.mark.parametrize(
    ("change", "message"),
    [pytest.param(change, message, id=name) for name, change, message in WRONG_DOCUMENTS],
)
def test_a_wrong_document_is_one_message(change: Change, message: str) -> None:
    error = refused(changed(change))
    assert str(error) == message
    assert message.startswith(f"{error.path}: ")


@pytest.mark.parametrize("document", [[], "tiers", 5, None])
def test_a_document_that_is_no_object_is_refused(document: Any) -> None:
    shown = json.dumps(document)
    error = refused(document)
    assert str(error) == f'should be an object with "version" and "tiers", not {shown}'
    assert error.path == ""


def test_a_relative_path_is_refused_with_the_absolute_one() -> None:
    error = refused(changed(with_(2, path="kvtier/store")))
    meant = json.dumps(os.path.abspath("kvtier/store"))
    assert str(error) == f'tiers[2].path: "kvtier/store" is not absolute; did you mean {meant}?'


def test_a_misspelled_key_goes_before_the_key_that_it_leaves_missing() -> None:
    document = changed(lambda d: d["tiers"].__setitem__(2, {"type": "nvme", "pth": "/x", "capacity": "zero"}))
    assert refused(document).path == "tiers[2].pth"


def test_the_example_document_is_read() -> None:
    config = parse_config(GOOD)
    assert config.tiers == (
        GpuConfig(type="gpu"),
        PinnedConfig(type="pinned", capacity=64 * GIB, policy="lru"),
        NvmeConfig(type="nvme", path=Path("/mnt/nvme0/kvtier"), capacity=2048 * GIB),
    )
    nvme = config.tiers[2]
    assert isinstance(nvme, NvmeConfig)
    assert (nvme.load_deadline_s, nvme.write_amplification) == (10.0, 1.3)
    assert nvme.reserve == parse_config(changed(without(2, "reserve"))).tiers[2].reserve  # type: ignore[attr-defined]


def test_every_policy_can_be_named() -> None:
    for policy in POLICIES:
        parse_config(changed(with_(1, policy=policy)))


def test_a_policy_of_another_package_is_made_by_its_class_behind_a_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    monkeypatch.setattr(ArcPolicy, "__init__", lambda self, capacity_chunks: made.append(capacity_chunks))
    module = "kvtier.tiers.pinned.eviction.arc"
    config = parse_config(changed(with_(1, policy="ArcPolicy", policy_module_path=module)))
    pinned = config.tiers[1]
    assert isinstance(pinned, PinnedConfig)
    assert isinstance(pinned.make_policy(4), GuardedPolicy)
    assert made == [4]


def test_what_spares_the_drive_is_read() -> None:
    fields = {"fill": False, "admission": "second_touch", "write_budget": 0.5, "endurance": "1.2PB"}
    config = parse_config(changed(with_(2, **fields)))
    nvme = config.tiers[2]
    assert isinstance(nvme, NvmeConfig)
    assert (nvme.fill, nvme.admission, nvme.write_budget) == (False, "second_touch", 0.5)
    assert nvme.endurance == 1_200_000_000_000_000


def test_editors_may_name_the_schema() -> None:
    parse_config(changed(at_top(**{"$schema": "./kvtier.schema.json"})))


def test_a_config_reads_back_from_its_own_dump() -> None:
    config = parse_config(changed(with_(1, capacity="12.5%")))
    assert parse_config(config.model_dump(mode="json", exclude_none=True)) == config


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=8,
)


@given(
    i=st.integers(0, 2), key=st.sampled_from([*GOOD["tiers"][2], "policy", "module_path"]), value=json_values
)
def test_any_value_anywhere_is_read_or_refused(i: int, key: str, value: Any) -> None:
    # Anything but a ConfigError fails the test.
    with suppress(ConfigError):
        parse_config(changed(with_(i, **{key: value})))


@given(json_values)
def test_any_json_is_read_or_refused(document: Any) -> None:
    with pytest.raises(ConfigError):
        parse_config(document)


# Files


def test_a_file_and_its_path_as_text_and_its_content_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "tiers.json"
    file.write_text(json.dumps(GOOD))
    assert load_config(file) == load_config(str(file)) == load_config(GOOD)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "tiers.json"
    file.write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert load_config(file) == load_config(GOOD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"version": 1,\n "tiers": [}', "line 2, column 12: expecting value"),
        (b"", "line 1, column 1: expecting value"),
        (b'{"version": 1} x', "line 1, column 16: extra data"),
        (b'{"version": NaN}', "NaN is not JSON"),
        (b'{"version": 1, "version": 1}', '"version" appears twice in one object'),
        (b'"\xff"', "not UTF-8 text at byte 1"),
        (bytes(range(256)), "not UTF-8 text at byte 128"),
        (b"\0" * 16, "line 1, column 1: expecting value"),
        (b"[" * 200_000, "nested too deeply"),
        (b" " * (1 << 20) + b"1", "larger than 1048576 bytes, which no tier config is"),
    ],
)
def test_a_file_that_is_not_json_says_where(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "tiers.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == f"{file}: {message}"
    assert caught.value.path == ""


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "tiers.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "teirs.json")
    expected = f"{tmp_path}/teirs.json: no such file or directory; did you mean {tmp_path}/tiers.json?"
    assert str(caught.value) == expected


def test_a_directory_is_not_a_document(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a directory"


def test_a_pipe_is_refused_though_nobody_writes_into_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "pipe")
    assert str(caught.value) == f"{tmp_path}/pipe: not a regular file"


def test_a_device_is_not_a_document() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("/dev/zero")
    assert str(caught.value) == "/dev/zero: not a regular file"


def test_a_document_as_text_is_not_a_path() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(json.dumps(GOOD))
    assert str(caught.value) == "a string is taken as the path of a file; parse the JSON text first"


# The machine


@pytest.fixture
def document(tmp_path: Path) -> Document:
    return changed(with_(2, path=str(tmp_path / "store")))


def resolved(document: Mapping[str, Any], chunk_bytes: int = MIB) -> KvtierConfig:
    return resolve_config(parse_config(document), chunk_bytes=chunk_bytes)


def not_resolved(document: Mapping[str, Any], chunk_bytes: int = MIB) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(document, chunk_bytes)
    assert str(caught.value).startswith(f"{caught.value.path}: ")
    return str(caught.value)


def test_percentages_become_bytes(document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "memory_limit_bytes", lambda: 100 * GIB)
    document["tiers"][1]["capacity"] = "80%"
    document["tiers"][2]["capacity"] = "50%"
    _, pinned, nvme = resolved(document).tiers
    assert isinstance(pinned, PinnedConfig)
    assert isinstance(nvme, NvmeConfig)
    status = os.statvfs(nvme.drives[0].path.parent)
    whole_bytes = status.f_blocks * status.f_frsize
    assert pinned.capacity_bytes == 80 * GIB
    assert nvme.capacity_bytes == whole_bytes // 2
    assert nvme.reserve_bytes == whole_bytes // 10


def test_resolving_leaves_nothing_behind(document: Document, tmp_path: Path) -> None:
    resolved(document)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_good(document: Document, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    resolved(document)


@pytest.mark.parametrize("i", [1, 2])
def test_a_capacity_below_one_chunk_is_refused(document: Document, i: int) -> None:
    document["tiers"][i]["capacity"] = "1000kB"
    expected = f"tiers[{i}].capacity: 1000000 bytes, too small for one chunk; it needs at least 1048576"
    assert not_resolved(document) == expected


def test_a_percentage_below_one_chunk_is_refused(document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "memory_limit_bytes", lambda: 1_000_000)
    document["tiers"][1]["capacity"] = "10%"
    expected = 'tiers[1].capacity: "10%" is 100000 bytes, too small for one chunk; it needs at least 1048576'
    assert not_resolved(document) == expected


@pytest.mark.parametrize(
    ("nodes", "there"),
    [([0], "it has 0"), ([0, 2], "it has 0, 2"), ([], "it has none to choose from; leave the key out")],
)
def test_a_memory_node_that_is_not_there_is_refused(
    document: Document, monkeypatch: pytest.MonkeyPatch, nodes: list[int], there: str
) -> None:
    monkeypatch.setattr(entries, "memory_nodes", lambda: nodes)
    document["tiers"][1]["numa_node"] = 1
    assert not_resolved(document) == f"tiers[1].numa_node: this machine has no NUMA node 1; {there}"


def test_a_memory_node_that_is_there_is_good_and_shown(
    document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "memory_nodes", lambda: [0, 1])
    document["tiers"][1]["numa_node"] = 1
    assert resolved(document).tiers[1].summary() == "64GiB, lru, NUMA node 1"


def test_a_reserve_of_everything_is_refused(document: Document, tmp_path: Path) -> None:
    document["tiers"][2]["reserve"] = "100%"
    expected = 'tiers[2].reserve: "100%" leaves no room for a chunk on a file system of '
    assert not_resolved(document).startswith(expected)


def test_a_path_below_a_file_cannot_be_created(document: Document, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    document["tiers"][2]["path"] = f"{file}/store"
    expected = f'tiers[2].path: "{file}/store" cannot be created: "{file}" is not a directory'
    assert not_resolved(document) == expected


def test_a_path_that_is_a_file_is_refused(document: Document, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    assert not_resolved(document) == f'tiers[2].path: "{tmp_path}/store" is not a directory'


def test_a_path_that_is_a_link_to_nothing_is_refused(document: Document, tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(tmp_path / "gone")
    expected = f'tiers[2].path: "{tmp_path}/store" is a dangling link; create its target'
    assert not_resolved(document) == expected


@pytest.mark.parametrize("target", ["gone", "link"])
def test_a_path_below_a_link_to_nothing_or_to_itself_is_refused(
    document: Document, tmp_path: Path, target: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / target)
    document["tiers"][2]["path"] = f"{tmp_path}/link/store"
    expected = (
        f'tiers[2].path: "{tmp_path}/link/store" cannot be created: "{tmp_path}/link" is a dangling link; '
        "create its target"
    )
    assert not_resolved(document) == expected


@pytest.mark.parametrize("path", ["/" + "a" * 256, "/a" * 2100])
def test_a_path_that_is_too_long_is_refused(document: Document, path: str) -> None:
    document["tiers"][2]["path"] = path
    assert not_resolved(document) == f'tiers[2].path: "{path}" cannot be used: file name too long'


def test_a_path_below_a_directory_that_may_not_be_searched_is_refused(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The super-user may search everywhere, so the answer of the system is made up.
    def denied(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", denied)
    expected = f'tiers[2].path: "{tmp_path}/store" cannot be used: permission denied'
    assert not_resolved(document) == expected


def test_a_path_that_cannot_be_written_is_refused(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The super-user may write anywhere, so the answer of the system is made up.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    user = os.geteuid()
    expected = (
        f'tiers[2].path: "{tmp_path}/store" cannot be created: "{tmp_path}" is not writable by user {user}'
    )
    assert not_resolved(document) == expected


def test_a_directory_that_cannot_be_written_is_refused(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    expected = f'tiers[2].path: "{tmp_path}/store" is not writable by user {os.geteuid()}'
    assert not_resolved(document) == expected


def test_a_file_system_that_holds_no_files_is_refused(document: Document) -> None:
    document["tiers"][2]["path"] = "/proc/kvtier"
    expected = 'tiers[2].path: "/proc/kvtier" is on a file system that cannot hold files'
    assert not_resolved(document) == expected


def test_one_directory_under_two_names_is_refused(document: Document, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to("store")
    document["tiers"].append(dict(document["tiers"][2], path=f"{tmp_path}/link"))
    assert not_resolved(document) == f'tiers[3].path: "{tmp_path}/link" is already the directory of tiers[2]'


def test_a_directory_in_another_ones_behind_a_link_is_refused(document: Document, tmp_path: Path) -> None:
    (tmp_path / "store" / "second").mkdir(parents=True)
    (tmp_path / "link").symlink_to("store/second")
    document["tiers"].append(dict(document["tiers"][2], path=f"{tmp_path}/link"))
    expected = (
        f'tiers[3].path: "{tmp_path}/link" lies in "{tmp_path}/store", the directory of tiers[2]; '
        "choose one beside it"
    )
    assert not_resolved(document) == expected


def test_directories_whose_names_begin_alike_are_two(document: Document, tmp_path: Path) -> None:
    document["tiers"].append(dict(document["tiers"][2], path=f"{tmp_path}/store2"))
    resolved(document)


# What is there by now


def probed(document: Mapping[str, Any], chunk_bytes: int = MIB) -> None:
    probe_config(resolved(document, chunk_bytes), chunk_bytes=chunk_bytes)


def not_probed(document: Mapping[str, Any], chunk_bytes: int = MIB) -> str:
    with pytest.raises(ConfigError) as caught:
        probed(document, chunk_bytes)
    assert str(caught.value).startswith(f"{caught.value.path}: ")
    return str(caught.value)


@pytest.fixture
def small(tmp_path: Path) -> Document:
    return {
        "version": 1,
        "tiers": [
            {"type": "gpu"},
            {"type": "pinned", "capacity": "8MiB"},
            {"type": "nvme", "path": str(tmp_path / "store"), "capacity": "64MiB", "reserve": 0},
        ],
    }


def made_store(path: Path, chunk_bytes: int) -> None:
    directory = StoreDirectory.open(Files(), path, facts_for(64 * MIB, chunk_bytes))
    directory.ready()
    directory.close()


def test_a_probe_leaves_nothing_behind(small: Document, tmp_path: Path) -> None:
    probed(small)
    assert list(tmp_path.iterdir()) == []


def test_a_probe_leaves_a_store_as_it_is(small: Document, tmp_path: Path) -> None:
    made_store(tmp_path / "store", MIB)
    before = sorted((tmp_path / "store").rglob("*"))
    probed(small)
    assert sorted((tmp_path / "store").rglob("*")) == before


@pytest.mark.parametrize("scarce", ["memory_room", "shared_memory_room"])
def test_an_arena_that_does_not_fit_now_is_told_with_what_does(
    small: Document, monkeypatch: pytest.MonkeyPatch, scarce: str
) -> None:
    monkeypatch.setattr(entries, scarce, lambda *_: Room("it", 4 * MIB, "make it larger"))
    expected = (
        "tiers[1].capacity: the arena needs 8200KiB, but it has only 4096KiB free; "
        'lower "capacity" of the pinned tier to "3072KiB", or make it larger'
    )
    assert shortages(resolved(small, MIB), chunk_bytes=MIB) == [expected]
    probed(small)


def test_a_machine_without_shared_memory_is_told(
    small: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "SHARED_MEMORY", tmp_path / "none")
    expected = f"tiers[1].capacity: {tmp_path}/none cannot be used: no such file or directory"
    assert shortages(resolved(small, MIB), chunk_bytes=MIB) == [expected]


def test_a_capacity_below_what_a_store_needs_is_refused_with_the_least(small: Document) -> None:
    small["tiers"][2]["capacity"] = 4 * MIB
    head = "tiers[2].capacity: a capacity of 4194304 bytes is too small for chunks of 1048576 bytes; "
    message, _, least = not_probed(small).rpartition(" ")
    assert message == f"{head}the least that works is"
    small["tiers"][2]["capacity"] = int(least)
    probed(small)


def test_a_capacity_below_what_the_store_that_is_there_needs_is_refused(
    small: Document, tmp_path: Path
) -> None:
    made_store(tmp_path / "store", 8 * MIB)
    small["tiers"][2]["capacity"] = 8 * MIB
    assert not_probed(small).startswith("tiers[2].capacity: a capacity of 8388608 bytes is too small")


def test_chunks_too_large_for_the_store_that_is_there_are_refused(small: Document, tmp_path: Path) -> None:
    made_store(tmp_path / "store", 64 * 1024)
    small["tiers"][1]["capacity"] = "64MiB"
    expected = "tiers[2].path: chunks of 16777216 bytes do not fit the segments of "
    assert not_probed(small, chunk_bytes=16 * MIB).startswith(expected)


def test_a_directory_open_to_others_is_refused(small: Document, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o750)
    expected = (
        f"tiers[2].path: {tmp_path}/store is open to other users (mode 0750): anyone could read prompts; "
        f"name a directory inside it, which kvtier makes for itself: {tmp_path}/store/kvtier, "
        f"or chmod 0700 {tmp_path}/store"
    )
    assert not_probed(small) == expected


def test_a_directory_of_another_user_is_refused(
    small: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir(mode=0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    belongs = f"tiers[2].path: {tmp_path}/store belongs to user {owner}, not to us ({owner + 1}); "
    inside = f"name a directory inside it, which kvtier makes for itself: {tmp_path}/store/kvtier"
    assert not_probed(small) == belongs + inside
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "store")
    with pytest.raises(ConfigError, match="chown it, or choose another path"):
        parse_config(small).tiers[2].model_copy(update={"capacity": 64 * MIB, "reserve": 0}).probe(
            chunk_bytes=MIB, json_path="tiers[2]"
        )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("photo.jpg", "", "holds other files (photo.jpg); choose another path, which kvtier has for itself"),
        (
            "kvtier.json",
            '{"format": 99}',
            "has format 99, which is newer than this kvtier's 4; upgrade kvtier",
        ),
    ],
)
def test_a_directory_of_something_else_is_refused(
    small: Document, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / "store").mkdir(mode=0o700)
    (tmp_path / "store" / name).write_text(content)
    assert not_probed(small) == f"tiers[2].path: {tmp_path}/store {message}"


# Tiers of other packages

FOREIGN_MODULE = """
from typing import Literal

from kvtier.factory.base import TierConfig
from kvtier.tiers import ConfigError


class TapeConfig(TierConfig):
    reel: int

    def resolve(self, *, chunk_bytes, json_path):
        if self.reel * chunk_bytes > 9:
            raise ConfigError(f"{json_path}.reel", "too long")
        return self

    def probe(self, *, chunk_bytes, json_path):
        raise ConfigError(json_path, "no drive for it")


class Tape:
    Config = TapeConfig

    @staticmethod
    async def open(config, context): ...
"""


@pytest.fixture
def tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "kvtier_tape_test.py").write_text(FOREIGN_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kvtier_tape_test", raising=False)
    return "kvtier_tape_test"


def test_a_tier_of_another_package_brings_its_own_model(tape: str) -> None:
    entry = {"type": "Tape", "module_path": tape, "reel": 3}
    document = changed(lambda d: d["tiers"].append(entry))
    document["tiers"].pop(2)
    config = parse_config(document)
    assert config.tiers[2].model_dump() == entry
    assert resolve_config(config, chunk_bytes=3).tiers[2] == config.tiers[2]
    assert not_resolved(document, chunk_bytes=4) == "tiers[2].reel: too long"
    with pytest.raises(ConfigError, match=r"^tiers\[2\]: no drive for it$"):
        config.tiers[2].probe(chunk_bytes=3, json_path="tiers[2]")
    entry["reel"] = "three"
    assert str(refused(document)) == 'tiers[2].reel: should be a valid integer, not "three"'


def test_a_registered_tier_needs_no_module_path(tape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "TIERS", registry.Registry("tier", registry.TIERS.accepts, {}))
    registry.register_tier("tape", tape, "Tape")
    document = changed(lambda d: d["tiers"].append({"type": "tape", "reel": 3}))
    assert parse_config(document).tiers[3].type == "tape"


def test_a_tier_of_another_package_needs_pinned_above_it(tape: str) -> None:
    document = changed(lambda d: d["tiers"].insert(1, {"type": "Tape", "module_path": tape, "reel": 3}))
    expected = 'tiers[1].type: "Tape" needs a "pinned" tier above it, for its transfers'
    assert str(refused(document)) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import kvtier_never_written", "ModuleNotFoundError: No module named 'kvtier_never_written'"),
        ("def", "SyntaxError: invalid syntax (kvtier_broken_test.py, line 1)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.parametrize("is_registered", [False, True])
def test_a_module_that_cannot_be_imported_is_refused_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, reason: str, is_registered: bool
) -> None:
    (tmp_path / "kvtier_broken_test.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry.TIERS, "places", dict(registry.TIERS.places))
    entry = {"type": "Tape"}
    if is_registered:
        registry.register_tier("Tape", "kvtier_broken_test", "Tape")
    else:
        entry["module_path"] = "kvtier_broken_test"
    error = refused(changed(lambda d: d["tiers"].append(entry)))
    assert str(error) == f'tiers[3].module_path: "kvtier_broken_test" cannot be imported: {reason}'
    assert error.__cause__ is not None


def test_percent_is_kept_until_the_machine_is_known() -> None:
    pinned = parse_config(changed(with_(1, capacity="80%"))).tiers[1]
    assert isinstance(pinned, PinnedConfig)
    assert isinstance(pinned.capacity, Percent)
    assert config_module.BUILTIN_CONFIGS["pinned"] is PinnedConfig
