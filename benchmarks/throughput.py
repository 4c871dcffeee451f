"""What offloading costs a server that never hits: throughput of the real vLLM with and without it.

    python benchmarks/throughput.py [--model llama|dense] [--threads N] [--json FILE] [--rounds N] [--dir D]

The real vLLM on the CPU with a small model, and prompts that never repeat: every chunk is stored, and none is
loaded. All servers are up at the same time, and one of them has work: they take turns in short rounds, and
the first one changes. A system's ratio is the median over the rounds of its throughput by that of vLLM alone
in the same round.

Both models have 8 KiB of keys and values a token. `llama` computes 5 MFLOP for them, 0.6 kFLOP a byte, where
an 8B model in bf16 computes 125: it shows what offloading costs, and not what share of a server that is.
`dense` computes 21 kFLOP a byte.

All servers run their model in a worker process, with equally many threads: left alone, vLLM gives the model
of a server with a connector more of them. With one thread on two cores the model has a core of its own, as it
has a GPU elsewhere; with two, it misses whatever offloading computes.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nvme import machine, scratch
from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / "support"), str(TESTS / "factory" / "vllm")]

from tiny_llama import VOCABULARY  # noqa: E402 - the harness of the tests of the real server
from vllm_server import Server, Settings, tier_document  # noqa: E402

MIB = 1 << 20
PINNED_BYTES = 256 * MIB
DRIVE_BYTES = 2 << 30

REQUESTS = {"llama": 48, "dense": 8}  # a round
AT_ONCE = 16
PROMPT_TOKENS = 1024
OUTPUT_TOKENS = 32

SETTLE_S = 1.0  # between rounds: what was stored reaches the drive


def kvtier(root: Path) -> dict[str, Any]:
    return {"tiers": tier_document(pinned=PINNED_BYTES, nvme=root / "kvtier", nvme_capacity=DRIVE_BYTES)}


def native_fs(root: Path) -> dict[str, Any]:
    tier = {"type": "fs", "root_dir": str(root / "fs")}
    extra = {"cpu_bytes_to_use": PINNED_BYTES, "secondary_tiers": [tier]}
    return {"tiers": {}, "spec": ("native_spec", "CpuTieringSpec"), "extra": extra}


SYSTEMS = {"plain": lambda root: {}, "kvtier": kvtier, "native_fs": native_fs}


def round_of(server: Server, requests: int, rng: random.Random) -> float:
    """Requests a second for prompts that nobody has seen."""
    prompts = [[rng.randrange(1, VOCABULARY) for _ in range(PROMPT_TOKENS)] for _ in range(requests)]
    began_s = time.perf_counter()
    ended = server.storm(prompts, at_once=AT_ONCE, output_tokens=OUTPUT_TOKENS)
    took_s = time.perf_counter() - began_s
    assert ended == requests, "every request comes to its end"
    return requests / took_s


def measured(root: Path, shape: str, threads: int, rounds: int, console: Console) -> dict[str, list[float]]:
    """Requests a second of every system, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    rng = random.Random(1_117)
    with ExitStack() as at_end:
        servers: dict[str, Server] = {}
        for name, settings in SYSTEMS.items():
            (root / name).mkdir()
            life = Settings(
                model=root / "model",
                shape=shape,
                engine={"distributed_executor_backend": "mp"},
                environment={"VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}"},
                **settings(root / name),
            )
            servers[name] = at_end.enter_context(Server(life, log=root / f"{name}.log"))
        order = deque(servers)
        for number in range(-1, rounds):  # the first one warms up
            for name in order:
                rate = round_of(servers[name], REQUESTS[shape], rng)
                if number >= 0:
                    rates[name].append(rate)
                time.sleep(SETTLE_S)
            order.rotate()
            console.print(
                f"round {number + 1} of {rounds}: { ({name: of[-1:] for name, of in rates.items()}) }"
            )
        hits = servers["kvtier"].samples().total("vllm:external_prefix_cache_hits")
        assert hits == 0, "no prompt comes back"
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=REQUESTS, default="dense")
    parser.add_argument("--threads", type=int, default=1, help="of the model of each server")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dir", type=Path, help="a directory on the drive")
    options = parser.parse_args()
    console = Console(stderr=True)
    with scratch(options.dir) as root:
        rates = measured(root, options.model, options.threads, options.rounds, console)
        facts = machine(root)
    systems = {
        name: {
            "requests_s": statistics.median(of_system),
            "ratio": statistics.median(
                rate / alone for rate, alone in zip(of_system, rates["plain"], strict=True)
            ),
        }
        for name, of_system in rates.items()
    }
    table = Table("system", "requests a second", "of vLLM alone")
    for name, row in systems.items():
        table.add_row(name, f"{row['requests_s']:.2f}", f"{row['ratio']:.3f}x")
    console.print(table)
    if options.json:
        result = {
            "machine": facts,
            "model": options.model,
            "rounds": options.rounds,
            "rates": rates,
            "systems": systems,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
