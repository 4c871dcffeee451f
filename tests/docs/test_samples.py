"""Every sample in the documentation works as it is written.

A sample is tested as its language and its marker say; `tests/support/sample_bench.py` has the rules, and the
table of the places and sizes that stand in for those of the text. A block without a rule fails here, so a new
sample is never untested.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_files import ROOT, Sample, documents, indented_blocks, samples
from sample_bench import SampleBench, transfer_configs
from vllm_server import has_vllm

from kvtier.factory.config import load_config

DOCUMENTS = [path for path in documents() if any(samples(path))]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_slow(sample: Sample) -> bool:
    return "slow" in sample.marker.split(", ")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SampleBench]:
    bench = SampleBench(tmp_path, monkeypatch)
    yield bench
    bench.close()


def run_all(bench: SampleBench, chosen: list[Sample]) -> None:
    for sample in chosen:
        try:
            bench.run(sample)
        except Exception as error:
            error.add_note(f"the sample at {sample.where}")
            raise


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_sample_of_a_document_works(bench: SampleBench, document: Path) -> None:
    run_all(bench, [sample for sample in samples(document) if not is_slow(sample)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if any(map(is_slow, samples(path)))], ids=named
)
def test_every_slow_sample_of_a_document_works(bench: SampleBench, document: Path) -> None:
    run_all(bench, [sample for sample in samples(document) if is_slow(sample)])


@pytest.mark.parametrize("document", documents(), ids=named)
def test_every_block_is_fenced_so_that_a_rule_can_see_it(document: Path) -> None:
    assert indented_blocks(document) == []


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.json")), ids=named)
def test_the_documents_among_the_examples_are_tier_documents(file: Path) -> None:
    load_config(file)


@pytest.mark.vllm
@pytest.mark.timeout(120)
def test_vllm_takes_the_transfer_configs() -> None:
    if not has_vllm():
        pytest.skip("needs vLLM; `make install` installs it")
    configs = [
        json.loads(text)
        for path in DOCUMENTS
        for sample in samples(path)
        for text in transfer_configs(sample)
    ]
    assert configs
    program = "import json, sys; from vllm.config import KVTransferConfig\n"
    program += "for config in json.load(sys.stdin): KVTransferConfig(**config)"
    subprocess.run([sys.executable, "-c", program], input=json.dumps(configs), text=True, check=True)


@pytest.mark.parametrize(
    ("language", "marker", "text", "why"),
    [
        ("", "", "kvtier du /mnt/nvme0/kvtier", "no rule covers this block: no language"),
        ("sh", "", "kvtier du /mnt/nvme0/kvtier", "no rule covers this block: sh"),
        ("json", "", "{}", "no rule covers this block: json"),
        ("json", "documnet", "{}", "no such rule: documnet"),
        ("json", "tier-document", '{"version": 1, "tiers": [{"type": "gpu"}]}', 'nothing below "gpu"'),
        ("json", "secondary-tier", '{"spec_name": "S", "secondary_tiers": []}', "TieringOffloadingSpec"),
        ("console", "figures difer", "$ kvtier du /mnt/nvme0/kvtier", "no such rule: figures difer"),
        ("console", "", "kvtier du /mnt/nvme0/kvtier", "begins with a command"),
        ("console", "", "$ rm -r /mnt/nvme0/kvtier", "no rule covers this command: rm"),
        ("console", "", "$ kvtier chekc /etc/kvtier/tiers.json", "No such command"),
        ("console", "exit 1", "$ kvtier du /mnt/nvme0/kvtier", "exits with 0, not 1"),
        ("console", "", "$ kvtier rm /mnt/nvme0/kvtier --all --yes\nremoved 41 chunks, 640KiB", "removed 40"),
        ("console", "figures differ", "$ kvtier du /mnt/nvme0/kvtier\nread back  1KiB", "allocated"),
        ("console", "not run: no model", "$ vllm serve M --kv-transfer-config '{}'", "kv_connector"),
        ("python", "", "from kvtier.engine import NoSuchEngine", "NoSuchEngine"),
        ("python", "over stand-ins of generation_g", "import vllm.nothing", "vllm.nothing"),
        ("python", "file my_package/broken.py", "def", "invalid syntax"),
        ("python", "file my_package/fine.py, then nothing", "", "no such rule: then nothing"),
    ],
)
def test_a_sample_that_is_wrong_or_that_no_rule_covers_fails(
    bench: SampleBench, language: str, marker: str, text: str, why: str
) -> None:
    with pytest.raises(Exception, match=re.escape(why)):
        bench.run(Sample("here", language, marker, f"{text}\n"))


def test_a_marker_without_a_sample_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "text.md"
    document.write_text("<!-- sample: run -->\n\n```console\n$ kvtier schema\n```\n")
    monkeypatch.setattr("markdown_files.ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"text\.md:2: the marker above belongs to no sample"):
        list(samples(document))
