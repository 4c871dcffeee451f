"""The token test against whichever vLLM this interpreter imports, as one program without pytest.

    PYTHONPATH=TREE python tests/support/release_run.py

Prints one line of JSON: the release, the generation of its plugin interface, and for each phase whether
the tokens were those of a server without kvtier and how many tokens of the prompts came from a cache. Ends
with status 1 if a phase's tokens differ, or if it used less of the cache than it could have.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prompts import flat, full_blocks, prompt_pairs
from vllm_phases import Phase, alone, in_pairs, nobodys_shared_memory
from vllm_server import Server, Settings, tier_document

PINNED = "256MiB"  # all chunks of the prompts, twice


class Run:
    """The lives of one release over one directory."""

    def __init__(self, directory: Path, engine: Mapping[str, Any]) -> None:
        self._directory = directory
        self._engine = engine
        self._prompts = flat(prompt_pairs())

    def phases(self) -> Iterator[tuple[str, bool, int, int]]:
        """Yield each phase: its name, whether the tokens are right, tokens from a cache, most it could be."""
        with self._server() as server:
            expected = [answer.tokens for answer in server.generate(self._prompts, forget=True)]
            server.kill()
        reusable = sum(map(full_blocks, self._prompts))
        tiers = tier_document(pinned=PINNED, nvme=self._directory / "nvme")
        for life, lived in enumerate((self._first, self._second)):
            with self._server(tiers) as server:
                for name, phase in lived(server):
                    could = 0 if name == "cold" else reusable
                    yield name, phase.tokens == expected, sum(phase.cached_tokens), could
            assert not nobodys_shared_memory(), f"life {life} left shared memory"

    def _first(self, server: Server) -> Iterator[tuple[str, Phase]]:
        yield "cold", alone(server, self._prompts)
        yield "pinned", alone(server, self._prompts)
        yield "pinned, half", in_pairs(server)

    def _second(self, server: Server) -> Iterator[tuple[str, Phase]]:
        yield "nvme, half", in_pairs(server)
        yield "pinned again", alone(server, self._prompts)

    def _server(self, tiers: Mapping[str, Any] | None = None) -> Server:
        settings = Settings(model=self._directory / "model", tiers=tiers, engine=self._engine)
        return Server(settings, log=self._directory / "vllm.log")


def about() -> dict[str, str]:
    """Which vLLM this is and which adapter it gets; asked of a process of its own, as it imports vLLM."""
    code = (
        "import vllm, kvtier.factory.vllm as plugin; adapter = plugin.CompositeOffloadingSpec.__module__; "
        "print(vllm.__version__, adapter.rpartition('_')[2].upper())"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    release, generation = asked.stdout.splitlines()[-1].split()
    return {"release": release, "generation": generation}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", type=json.loads, default={}, help="more arguments for vLLM's LLM")
    parser.add_argument("--keep", type=Path, help="a directory for the model, the tiers and the log")
    arguments = parser.parse_args()
    os.environ["PYTHONHASHSEED"] = "0"  # up to 0.28 a block has another hash in each process otherwise
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        phases = list(Run(directory, arguments.engine).phases())
    passed = all(right and cached >= could for _, right, cached, could in phases)
    print(json.dumps({**about(), "phases": phases}))
    sys.exit(not passed)


if __name__ == "__main__":
    main()
