"""Lives of a real server that several test files look at; a start takes 20 s, so each is lived once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prompts import Prompt, flat, full_blocks, prompt_pairs
from vllm_nursery import Nursery, nursery
from vllm_phases import KilledOutcome, MakeServer, Outcome, Tokens, alone, in_pairs, nobodys_shared_memory
from vllm_server import Server, Settings, base_environment, has_vllm, tier_document

MIB = 1 << 20

ROOMY = 256 * MIB  # all chunks of the prompts, twice
TIGHT = 26 * MIB  # the longest prompt, and little else


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    return flat(prompt_pairs())


@pytest.fixture(scope="session")
def reusable(prompts: list[Prompt]) -> list[int]:
    """The tokens of each prompt that can come from a tier."""
    return [full_blocks(prompt) for prompt in prompts]


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="session")
def vllm_nursery(directory: Path) -> Iterator[Nursery]:
    if not has_vllm():
        pytest.skip("needs vLLM; `make install` installs it")
    with nursery(base_environment(), directory / "vllm.log") as begun:
        yield begun


@pytest.fixture(scope="session")
def make_server(directory: Path, vllm_nursery: Nursery) -> MakeServer:
    """Make a life of a server over a tiny model, not begun yet; arguments as `Settings` takes them.

    It is one process, unless it has several ranks, an environment of its own, or is told to be `apart`.
    """

    def make(*, shape: str = "llama", apart: bool = False, **settings: Any) -> Server:
        model = directory / f"model-{shape}"
        life = Settings(model=model, shape=shape, **settings)
        apart = apart or bool(life.environment)
        return Server(life, log=directory / "vllm.log", nursery=None if apart else vllm_nursery)

    return make


@pytest.fixture(scope="session")
def expected(make_server: MakeServer, prompts: list[Prompt]) -> Tokens:
    """What a server without kvtier generates, with nothing cached."""
    with make_server() as server:
        answers = server.generate(prompts, forget=True)
        server.kill()
    assert [answer.cached_tokens for answer in answers] == [0] * len(prompts)
    return [answer.tokens for answer in answers]


@pytest.fixture(scope="session")
def outcome(make_server: MakeServer, prompts: list[Prompt], directory: Path) -> Outcome:
    """Two lives over one directory, with room for all chunks in the pinned tier."""
    tiers = tier_document(pinned=ROOMY, nvme=directory / "nvme")
    with make_server(tiers=tiers) as server:
        cold = alone(server, prompts)
        pinned = alone(server, prompts)
        pinned_pairs = in_pairs(server)
    with make_server(tiers=tiers) as server:
        nvme_pairs = in_pairs(server)
        nvme = alone(server, prompts)
    return Outcome(cold, pinned, pinned_pairs, nvme, nvme_pairs)


@pytest.fixture(scope="session")
def killed_outcome(make_server: MakeServer, prompts: list[Prompt], directory: Path) -> KilledOutcome:
    """Two lives over one directory, with little room in the pinned tier; every chunk's bytes recorded."""
    records = directory / "killed.jsonl"
    settings = {
        "tiers": tier_document(pinned=TIGHT, nvme=directory / "nvme-killed"),
        "spec": ("saboteurs", "RecordingSpec"),
        "extra": {"records": str(records)},
    }
    with make_server(**settings) as server:
        cold = alone(server, prompts)
        squeezed = alone(server, prompts)
        amid = server.stream([prompt[::-1] for prompt in prompts])
        next(amid), next(amid)  # the second's chunks are on their way down, the third is being computed
        server.kill()
        left = nobodys_shared_memory()
    with make_server(**settings) as server:
        restarted = alone(server, prompts)
    return KilledOutcome(records, cold, squeezed, left, restarted)
