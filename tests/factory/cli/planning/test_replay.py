from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtier.engine.replay import parallel as parallel_module
from kvtier.engine.replay.tiers import LogWithoutBytes

DATA = Path(__file__).parents[3] / "data"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Three requests: the third finds the first one's two chunks again."""
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(f'{{"hash_ids": {ids}}}\n' for ids in ([1, 2], [3, 4], [1, 2])))
    return file


Document = Callable[..., Path]


@pytest.fixture
def document(tmp_path: Path) -> Document:
    """Write a document with these tiers below the device."""

    def write(*tiers: dict[str, object]) -> Path:
        file = tmp_path / "tiers.json"
        file.write_text(json.dumps({"version": 1, "tiers": [{"type": "gpu"}, *tiers]}))
        return file

    return write


def pinned(capacity: object, policy: str = "lru") -> dict[str, object]:
    return {"type": "pinned", "capacity": capacity, "policy": policy}


def nvme(capacity: object, path: str = "/nowhere/kvtier") -> dict[str, object]:
    return {"type": "nvme", "path": path, "capacity": capacity}


def test_the_figures_are_printed_as_a_table(run: Run, trace: Path, document: Document) -> None:
    status, output, errors = run("replay", trace, "--config", document(pinned("128MiB"), nvme("1TiB")))
    assert (status, errors) == (0, "")
    assert output.splitlines() == [
        "3 requests, 6 chunks of 64MiB, stored 4 a step; pinned evicts by lru",
        "hit rate 33.3%; an unlimited cache would reach 33.3%",
        "",
        "tier    capacity  chunks  hit rate  promoted  evicted  written  dropped",
        "pinned    128MiB       2      0.0%         0        4   384MiB        0",
        "nvme        1TiB   16384     33.3%         2        0   256MiB        0",
    ]


def test_the_figures_are_printed_as_json(run: Run, trace: Path, document: Document) -> None:
    config = document(pinned("8KiB", "arc"))
    status, output, errors = run("replay", trace, "--config", config, "--chunk-bytes", 4096, "--json")
    assert (status, errors) == (0, "")
    assert json.loads(output) == {
        "command": "replay",
        "version": 1,
        "hit_rate_percent": 0.0,
        "unlimited_hit_rate_percent": 33.333,
        "chunk_bytes": 4096,
        "tokens_per_id": 512,
        "chunks_per_id": 1,
        "span_s": None,
        "left_out_prompts": 0,
        "policy": "arc",
        "step_chunks": 4,
        "requests_count": 3,
        "prompt_chunks": 6,
        "hits_chunks": 0,
        "first_tokens": None,
        "sweep": None,
        "alternatives": [],
        "tiers": [
            {
                "tier": "pinned",
                "capacity_bytes": 8192,
                "capacity_chunks": 2,
                "hits_chunks": 0,
                "hit_rate_percent": 0.0,
                "promoted_chunks": 0,
                "evicted_chunks": 4,
                "written_bytes": 24576,
                "dropped_chunks": 0,
            }
        ],
    }


@pytest.mark.parametrize(
    ("options", "said", "step_chunks"),
    [
        ([], "stored 4 a step", 4),
        (["--tokens-per-step", 0], "stored by whole prompts", None),
        (["--tokens-per-step", 8192], "stored 16 a step", 16),
        (["--tokens-per-step", 100], "stored 1 a step", 1),
        (["--tokens-per-step", 100, "--tokens-per-id", 16], "stored 6 a step", 6),
        (["--tokens-per-chunk", 16], "stored 128 a step", 128),
    ],
)
def test_prompts_come_in_over_as_many_steps_as_a_server_takes(
    run: Run, trace: Path, document: Document, options: list[object], said: str, step_chunks: int | None
) -> None:
    config = document(pinned("128MiB"))
    _, text, _ = run("replay", trace, "--config", config, *options)
    assert said in text.splitlines()[0]
    _, output, _ = run("replay", trace, "--config", config, "--json", *options)
    assert json.loads(output)["step_chunks"] == step_chunks


@pytest.mark.parametrize(
    ("file", "expected_percent", "tolerance_percent"),
    [
        ("conversation_trace_1500.jsonl.gz", 19.95, 0.005),
        pytest.param("conversation_trace.jsonl.gz", 21.2, 0.3, marks=pytest.mark.slow),
    ],
)
def test_a_public_trace_hits_as_often_as_is_known(
    run: Run, document: Document, file: str, expected_percent: float, tolerance_percent: float
) -> None:
    config = document(pinned(10_000 * 4096))
    status, output, _ = run("replay", DATA / file, "--config", config, "--chunk-bytes", 4096, "--json")
    assert status == 0
    assert json.loads(output)["hit_rate_percent"] == pytest.approx(expected_percent, abs=tolerance_percent)


def test_two_drives_are_told_apart(run: Run, trace: Path, document: Document) -> None:
    config = document(pinned("128MiB"), nvme("1TiB"), nvme("2TiB", "/nowhere/else"))
    _, output, _ = run("replay", trace, "--config", config, "--json")
    names = [tier["tier"] for tier in json.loads(output)["tiers"]]
    assert names == ["pinned", "nvme", "nvme1"]


def test_chunks_take_whole_pages(run: Run, trace: Path, document: Document) -> None:
    _, output, _ = run("replay", trace, "--config", document(pinned("8KiB")), "--chunk-bytes", 4097, "--json")
    assert json.loads(output)["chunk_bytes"] == 8192


def test_no_path_is_made_and_a_share_of_one_that_is_there_is_known(
    run: Run, trace: Path, document: Document, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    config = document(pinned("128MiB"), nvme("100%", str(tmp_path)))
    status, output, _ = run("replay", trace, "--config", config, "--chunk-bytes", "4KiB", "--json")
    assert status == 0
    assert json.loads(output)["tiers"][1]["capacity_bytes"] > 0
    assert sorted(tmp_path.iterdir()) == sorted([*before, config])


@pytest.mark.parametrize(
    ("tiers", "options", "message"),
    [
        (
            [pinned("1GiB"), nvme("80%")],
            [],
            'tiers[2].capacity: "80%" is a share of the file system of "/nowhere/kvtier", which this '
            'machine does not have; write a size instead, for example "2TiB"',
        ),
        (
            [pinned("1MiB")],
            [],
            "tiers[1].capacity: 1048576 bytes, too small for one chunk; it needs at least 67108864",
        ),
        (
            [pinned("1GiB")],
            ["--chunk-bytes", "64mb"],
            '--chunk-bytes: "64mb" is not a size; did you mean "64MB"?',
        ),
        (
            [pinned("1GiB")],
            ["--chunk-bytes", "100"],
            "--chunk-bytes: 100 bytes is too small; a chunk takes at least 4096",
        ),
        (
            [pinned("1GiB")],
            ["--chunk-bytes", "5%"],
            '--chunk-bytes: should be a size like "64MiB", not a percentage like "5%"',
        ),
    ],
)
def test_what_cannot_be_replayed_is_one_message(
    run: Run,
    trace: Path,
    document: Document,
    tiers: list[dict[str, object]],
    options: list[str],
    message: str,
) -> None:
    assert run("replay", trace, "--config", document(*tiers), *options) == (2, "", f"{message}\n")


def test_a_drive_too_small_for_two_segments_is_refused(run: Run, trace: Path, document: Document) -> None:
    least_bytes = LogWithoutBytes.least_bytes(64 << 20)
    status, _, errors = run("replay", trace, "--config", document(pinned("1GiB"), nvme("64MiB")))
    expected = (
        f"tiers[2].capacity: 64MiB is too small for chunks of 64MiB; it needs at least {least_bytes} bytes\n"
    )
    assert (status, errors) == (2, expected)
    assert run("replay", trace, "--config", document(pinned("1GiB"), nvme(least_bytes)))[0] == 0


def test_a_tier_of_another_package_cannot_be_replayed(
    run: Run, trace: Path, document: Document, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "replayed_elsewhere.py").write_text(
        "from kvtier.factory.base import TierConfig\n"
        "class Other:\n"
        "    Config = TierConfig\n"
        "    async def open(self, config, context): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = document(pinned("1GiB"), {"type": "Other", "module_path": "replayed_elsewhere"})
    status, _, errors = run("replay", trace, "--config", config)
    expected = 'tiers[2].type: "Other" cannot be replayed; only "pinned" and "nvme" can\n'
    assert (status, errors) == (2, expected)


def test_a_bad_line_is_one_message(run: Run, trace: Path, document: Document) -> None:
    trace.write_text('{"hash_ids": [1]}\n{"hash_ids": [null]}\n')
    status, output, errors = run("replay", trace, "--config", document(pinned("1GiB")))
    expected = f"{trace}: line 2: hash_ids[0]: should be a whole number below 2^64, not null\n"
    assert (status, output, errors) == (2, "", expected)


def test_ctrl_c_ends_it_cleanly(
    run: Run, trace: Path, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parallel_module, "replay", interrupted)
    assert run("replay", trace, "--config", document(pinned("1GiB"))) == (130, "", "interrupted\n")


def test_a_plot_without_matplotlib_says_what_to_install(
    run: Run, trace: Path, document: Document, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    file = tmp_path / "hits.png"
    status, output, errors = run("replay", trace, "--config", document(pinned("1GiB")), "--plot", file)
    expected = '--plot: needs matplotlib, which is not installed: pip install "kvtier-core[plot]"\n'
    assert (status, output, errors) == (2, "", expected)
    assert not file.exists()


@pytest.mark.slow
def test_a_plot_is_a_png(trace: Path, document: Document, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason='needs the extra "plot"')
    file = tmp_path / "hits"
    config = document(pinned("128MiB"), nvme("1TiB"))
    # A process of its own: matplotlib keeps its fonts open.
    arguments = map(str, ["replay", trace, "--config", config, "--sweep", "nvme", "--plot", file, "--json"])
    command = [sys.executable, "-m", "kvtier.factory", *arguments]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    assert json.loads(output)["tiers"][0]["capacity_chunks"] == 2, "the figures are those of the document"
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_plot_into_a_missing_folder_is_refused_before_the_replay(
    run: Run, trace: Path, document: Document, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason='needs the extra "plot"')
    file = tmp_path / "missing" / "hits.png"
    expected = (2, "", f"--plot: {file}: the folder does not exist\n")
    assert run("replay", trace, "--config", document(pinned("1GiB")), "--plot", file) == expected


SPEEDS = ("--tokens-per-chunk", 512, "--prefill-tokens-per-s", 5120)  # ten chunks in a second


@pytest.mark.parametrize(
    ("load", "hits", "lines"),
    [
        (
            "6400MiB",
            "33.3%",
            [
                "loaded 2 chunks from below, computed 4, of which 0 lay below",
                "first token after 200 ms (median); 200 ms if all was loaded",
            ],
        ),
        (
            "64MiB",
            "0.0%",
            [
                "loaded 0 chunks from below, computed 6, of which 2 lay below",
                "first token after 200 ms (median); 200 ms if all was loaded",
            ],
        ),
    ],
)
def test_what_is_sooner_computed_is_not_loaded(
    run: Run, trace: Path, document: Document, load: str, hits: str, lines: list[str]
) -> None:
    config = document(pinned("128MiB"), nvme("1TiB"))
    arguments = ("replay", trace, "--config", config, *SPEEDS, "--load-bytes-per-s", load)
    status, output, errors = run(*arguments)
    assert (status, errors) == (0, "")
    assert output.splitlines()[1].startswith(f"hit rate {hits};")
    assert output.splitlines()[2:4] == lines
    _, output, _ = run(*arguments, "--json")
    figures = json.loads(output)["first_tokens"]
    assert (figures["loaded_chunks"], figures["declined_chunks"]) == ((0, 2) if hits == "0.0%" else (2, 0))
    assert figures["median_s"] == 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prefill-tokens-per-s", 5), "--load-bytes-per-s: missing: it goes together with"),
        (("--load-bytes-per-s", "1GB"), "--prefill-tokens-per-s: missing"),
        (("--prefill-tokens-per-s", 0, "--load-bytes-per-s", "1GB"), "--prefill-tokens-per-s: should be a"),
        (("--prefill-tokens-per-s", 5, "--load-bytes-per-s", "0"), "--load-bytes-per-s: should be above"),
        (("--prefill-tokens-per-s", 5, "--load-bytes-per-s", "5%"), "--load-bytes-per-s: should be a size"),
    ],
)
def test_speeds_come_in_pairs(
    run: Run, trace: Path, document: Document, options: tuple[object, ...], message: str
) -> None:
    status, _, errors = run("replay", trace, "--config", document(pinned("128MiB")), *options)
    assert status == 2
    assert message in errors


def test_speeds_and_a_document_that_lets_nobody_decide_contradict_each_other(
    run: Run, trace: Path, document: Document
) -> None:
    file = document(pinned("128MiB"), nvme("1TiB"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "recompute": "never"}))
    status, _, errors = run("replay", trace, "--config", file, *SPEEDS, "--load-bytes-per-s", "1GB")
    assert status == 2
    assert errors.startswith('recompute: "never" loads all that a tier has; remove it, or --prefill')
    assert run("replay", trace, "--config", file)[0] == 0


def test_an_id_may_stand_for_many_chunks_of_the_server(run: Run, trace: Path, document: Document) -> None:
    config = document(pinned("128MiB"), nvme("1TiB"))
    status, output, errors = run("replay", trace, "--config", config, "--tokens-per-chunk", 16)
    assert (status, errors) == (0, "")
    assert output.splitlines() == [
        "3 requests, 192 chunks of 2MiB, stored 128 a step; pinned evicts by lru",
        "hit rate 33.3%; an unlimited cache would reach 33.3%",
        "",
        "tier    capacity  chunks  hit rate  promoted  evicted  written  dropped",
        "pinned    128MiB      64      0.0%         0      128   384MiB        0",
        "nvme        1TiB  524288     33.3%        64        0   256MiB        0",
    ]


def test_a_trace_of_ones_own_brings_the_sizes_of_its_chunks(
    run: Run, trace: Path, document: Document
) -> None:
    sizes = {"chunk_bytes": 65536, "chunk_tokens": 8.0, "tokens_per_id": 32}
    head = json.dumps({"kvtier_trace": 1, "started_unix_s": 100, **sizes})
    trace.write_text(f'{head}\n{{"timestamp": 0, "hash_ids": [1, 2], "left_out": 3}}\n')
    config = document(pinned("1MiB"))
    _, output, _ = run("replay", trace, "--config", config)
    assert output.splitlines()[0].startswith("1 requests, 8 chunks of 64KiB, stored 256 a step")
    assert output.splitlines()[2] == "3 prompts were not recorded"
    _, output, _ = run("replay", trace, "--config", config, "--json", "--chunk-bytes", "4KiB")
    found = json.loads(output)
    assert (found["chunk_bytes"], found["chunks_per_id"], found["left_out_prompts"]) == (4096, 4, 3)


def test_a_chunk_that_is_no_part_of_an_id_is_refused(run: Run, trace: Path, document: Document) -> None:
    expected = "--tokens-per-chunk: 48 is no part of the 512 tokens of an id\n"
    arguments = ("--config", document(pinned("1GiB")), "--tokens-per-chunk", 48)
    assert run("replay", trace, *arguments) == (2, "", expected)


@pytest.fixture
def timed(trace: Path) -> Path:
    """A day of requests: two prompts of two chunks, in turn."""
    lines = [
        json.dumps({"timestamp": i * 86_400_000 // 3, "hash_ids": ids})
        for i, ids in enumerate([[1, 2], [3, 4], [1, 2], [3, 4]])
    ]
    trace.write_text("\n".join(lines))
    return trace


def test_alternatives_are_compared_by_what_they_save_a_day(run: Run, timed: Path, document: Document) -> None:
    config = document(pinned("192MiB"))
    arguments = ("replay", timed, "--config", config, "--compare", "--jobs", 1)
    status, output, errors = run(*arguments, "--prefill-tokens-per-s", 1024)
    assert (status, errors) == (0, "")
    lines = [line.split() for line in output.split("\n\n")[2].splitlines()]
    assert lines[0][:2] == ["alternative", "hit"]
    assert lines[1][:2] == ["as", "configured"]
    assert lines[2] == ["2x", "pinned", "50.0%", "2,048", "2", "s", "0B"]
    assert [line[1] for line in lines[3:]] == ["arc", "s3fifo", "reuse"]
    _, output, _ = run(*arguments, "--json")
    found = json.loads(output)["alternatives"][1]
    assert found == {
        "name": "2x pinned",
        "hit_rate_percent": 50.0,
        "saved_tokens": 2048,
        "saved_prefill_s_a_day": None,
        "drives_written_bytes_a_day": 0.0,
    }


def test_without_times_nothing_is_said_of_a_day(run: Run, trace: Path, document: Document) -> None:
    config = document(pinned("128MiB"), nvme("1TiB"))
    options = ("--compare", "--jobs", 1, "--prefill-tokens-per-s", 1024)
    _, output, _ = run("replay", trace, "--config", config, *options)
    now = output.split("\n\n")[2].splitlines()[1].split()
    assert now == ["as", "configured", "33.3%", "1,024", "-", "-"]
    assert "nvme second_touch" in output


def test_a_sweep_says_what_more_of_a_tier_is_worth(run: Run, timed: Path, document: Document) -> None:
    config = document(pinned("128MiB"), nvme("1TiB"))
    arguments = ("replay", timed, "--config", config, "--sweep", "pinned", "--jobs", 1)
    status, output, errors = run(*arguments)
    assert (status, errors) == (0, "")
    assert output.split("\n\n")[2].splitlines() == [
        "pinned    hit rate  from pinned  from nvme  to drives a day",
        "64MiB        25.0%         0.0%      25.0%           128MiB",
        "128MiB *     50.0%         0.0%      50.0%           256MiB",
        "256MiB       50.0%        50.0%       0.0%           256MiB",
        "* as configured; above 128MiB of pinned, twice as much adds less than a point of hit rate",
    ]
    _, output, _ = run(*arguments, "--json")
    found = json.loads(output)["sweep"]
    assert (found["tier"], found["knee_bytes"]) == ("pinned", 128 << 20)
    assert [point["capacity_bytes"] for point in found["points"]] == [64 << 20, 128 << 20, 256 << 20]
    assert found["points"][2]["tiers"] == {"pinned": 50.0, "nvme": 0.0}
    assert found["points"][2]["drives_written_bytes"] == 256 << 20


def test_a_tier_that_is_not_there_cannot_be_swept(run: Run, trace: Path, document: Document) -> None:
    config = document(pinned("128MiB"), nvme("1TiB"))
    status, output, errors = run("replay", trace, "--config", config, "--sweep", "nvm")
    assert (status, output) == (2, "")
    assert errors.startswith('--sweep: the document has no tier "nvm"; did you mean "nvme"? It has')
