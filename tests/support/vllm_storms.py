"""Many requests at once that are disturbed all the time; runs in the server's process."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_SEED = 6_173

Line = dict[str, Any]


def storm(
    llm: Any,
    prompts: list[list[int]],
    sampling: list[Any],
    *,
    disturbance: str,
    every_steps: int,
    gate: Path | None,
    opens_after: int,
    at_once: int | None,
) -> Iterator[Line]:
    """Send prompts, disturb the server every few steps, and yield what comes to its end.

    Args:
        llm: the server, a vLLM `LLM`.
        prompts: token ids.
        sampling: vLLM's sampling parameters for each prompt.
        disturbance: "none", or a key of `_DISTURBANCES`.
        every_steps: how often, in outputs of the engine.
        gate: a file that is removed after some disturbances; what waits for that goes on then.
        opens_after: how many disturbances.
        at_once: how many prompts the server has at a time, each that ends making way for one; None is all.
    """
    engine, rng = llm.llm_engine, random.Random(_SEED)
    coming = enumerate(zip(prompts, sampling, strict=True))
    living: list[str] = []
    steps = 0

    def send(count: int | None) -> None:
        for index, (prompt, parameters) in itertools.islice(coming, count):
            living.append(f"storm-{index}")
            engine.add_request(living[-1], {"prompt_token_ids": prompt}, parameters)

    send(at_once)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                living.remove(output.request_id)
                yield {"request": output.request_id}
                send(1)
        steps += 1
        if disturbance != "none" and steps % every_steps == 0:
            _DISTURBANCES[disturbance](llm, living, rng)
            if gate is not None and steps == every_steps * opens_after:
                gate.unlink()


def _abort(llm: Any, living: list[str], rng: random.Random) -> None:
    """End one of those that follow the first, which is spared so that something goes on."""
    if followers := living[1:4]:
        request = rng.choice(followers)
        living.remove(request)
        llm.llm_engine.abort_request([request])


def _reset(llm: Any, living: list[str], rng: random.Random) -> None:
    """Let the connector forget everything, amid its transfers."""
    llm.reset_prefix_cache(reset_connector=True)


def _sleep(llm: Any, living: list[str], rng: random.Random) -> None:
    """Sleep and wake up; the requests are kept, and what was cached is forgotten."""
    llm.sleep(level=1, mode="keep")
    llm.wake_up()


_DISTURBANCES: dict[str, Callable[[Any, list[str], random.Random], None]] = {
    "abort": _abort,
    "reset": _reset,
    "sleep": _sleep,
}
