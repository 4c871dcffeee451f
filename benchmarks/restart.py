"""Time to the first token from disk after a restart: kvtier, and vLLM's own tiering over its file tier.

    python benchmarks/restart.py [--json FILE] [--runs N]

The real vLLM on the CPU with a tiny model. Each run fills a fresh directory in one life of the server, then
starts it again and sends the same prompts; the systems take turns. Medians over all prompts and runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / "support"), str(TESTS / "factory" / "vllm")]

from prompts import flat, prompt_pairs  # noqa: E402 - the harness of the tests of the real server
from vllm_phases import alone  # noqa: E402
from vllm_server import Server, Settings, tier_document  # noqa: E402

MIB = 1 << 20
PINNED_BYTES = 256 * MIB


def kvtier(root: Path) -> dict[str, Any]:
    return {"tiers": tier_document(pinned=PINNED_BYTES, nvme=root / "kvtier")}


def native_fs(root: Path) -> dict[str, Any]:
    tier = {"type": "fs", "root_dir": str(root / "fs")}
    extra = {"cpu_bytes_to_use": PINNED_BYTES, "secondary_tiers": [tier]}
    return {"tiers": {}, "spec": ("native_spec", "CpuTieringSpec"), "extra": extra}


def native_kvtier(root: Path) -> dict[str, Any]:
    tier = {
        "type": "KvtierNvmeTier",
        "module_path": "kvtier.factory.vllm",
        "path": str(root / "below"),
        "capacity": "1GiB",
        "reserve": 0,
    }
    extra = {"cpu_bytes_to_use": PINNED_BYTES, "secondary_tiers": [tier]}
    return {"tiers": {}, "spec": ("native_spec", "CpuTieringSpec"), "extra": extra}


SYSTEMS = {"kvtier": kvtier, "native_fs": native_fs, "native_kvtier": native_kvtier}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--runs", type=int, default=3, help="restarts of each system (default: 3)")
    options = parser.parse_args()
    console, prompts = Console(stderr=True), flat(prompt_pairs())
    times: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    cached: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix="kvtier-bench-") as scratch:
        for run in range(options.runs):
            for name, settings in SYSTEMS.items():
                console.print(f"run {run + 1} of {options.runs}: {name}")
                root = Path(scratch, f"{name}-{run}")
                root.mkdir()
                life = Settings(model=Path(scratch, "model"), **settings(root))
                with Server(life, log=Path(scratch, "log")) as server:
                    alone(server, prompts)
                with Server(life, log=Path(scratch, "log")) as server:
                    phase = alone(server, prompts)
                times[name] += [answer.first_token_s for answer in phase.answers]
                cached[name] = sum(phase.cached_tokens)
    result = {
        name: {"ttft_ms_p50": 1000 * statistics.median(times[name]), "cached_tokens": cached[name]}
        for name in SYSTEMS
    }
    table = Table("system", "TTFT p50 ms", "cached tokens", "of native_fs")
    for name, numbers in result.items():
        ratio = numbers["ttft_ms_p50"] / result["native_fs"]["ttft_ms_p50"]
        table.add_row(name, f"{numbers['ttft_ms_p50']:.1f}", str(numbers["cached_tokens"]), f"{ratio:.2f}x")
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
