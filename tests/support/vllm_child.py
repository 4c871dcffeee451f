"""One life of a real vLLM server, in a process of its own: commands come on stdin, answers go to stdout.

Both are lines of JSON; the first line is the server's settings. What vLLM itself prints goes to stderr. The
process ends when it is told to, or when stdin does.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

Line = dict[str, Any]

FORGET_STEPS_MAX = 200  # requests of a few milliseconds; a store of one prompt takes one or two

TINY_PROMPT = [1, 2, 3]  # less than a block: nothing to store


class Life:
    """The engine, and what can be asked of it; each method yields the lines of its answer."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from tiny_models import make_model
        from vllm import LLM

        if settings["shape"] is not None:
            make_model(Path(settings["model"]), settings["shape"])
        self._llm = LLM(
            **{
                "model": settings["model"],
                "skip_tokenizer_init": True,
                "max_model_len": 4096,
                "max_num_batched_tokens": 4096,
                "enforce_eager": True,
                "seed": 0,
                "dtype": "float32",
                "block_size": 128,
                "disable_log_stats": False,
                "kv_transfer_config": self._connector(settings["connector"]),
                **settings["engine"],
            }
        )

    def generate(
        self,
        *,
        prompts: list[list[int]],
        output_tokens: int,
        together: bool,
        forget: bool,
        controls: dict[str, Any],
        salt: str | None,
    ) -> Iterator[Line]:
        """Answer prompts, all at once or one by one; `forget` clears the device's cache before each batch."""
        for batch in [prompts] if together else [[prompt] for prompt in prompts]:
            if forget:
                yield from self.forget()
            yield from map(_answer, self._run(batch, output_tokens, controls, salt))

    def storm(
        self, *, prompts: list[list[int]], output_tokens: list[int], gate: str | None, **disturbances: Any
    ) -> Iterator[Line]:
        """Answer many prompts at once, amid disturbances; not all of them come to their end."""
        from vllm_storms import storm

        path = None if gate is None else Path(gate)
        return storm(self._llm, prompts, list(map(_sampling, output_tokens)), gate=path, **disturbances)

    def forget(self) -> Iterator[Line]:
        """Forget which blocks the device holds; the tiers below keep theirs."""
        for _ in range(FORGET_STEPS_MAX):
            if self._llm.reset_prefix_cache():
                return iter(())
            self._run([TINY_PROMPT], output_tokens=2)  # stores hold their blocks until later steps
        raise RuntimeError("the server did not forget its device cache: blocks are still in use")

    def reset(self) -> Iterator[Line]:
        """Reset the caches of the device and of the tiers below, as for new weights."""
        if not self._llm.reset_prefix_cache(reset_connector=True):
            raise RuntimeError("the server did not reset its caches")
        return iter(())

    def metrics(self) -> Iterator[Line]:
        """The server's Prometheus samples, and those of its plugins."""
        from prometheus_client import REGISTRY

        for metric in REGISTRY.collect():
            if metric.name.startswith(("kvtier:", "vllm:")) and metric.type in ("counter", "gauge"):
                for sample in metric.samples:
                    yield {"name": sample.name, "labels": sample.labels, "value": sample.value}

    def stop(self) -> None:
        """End the engine's processes in the orderly way."""
        self._llm.llm_engine.engine_core.shutdown()

    def _run(
        self,
        batch: list[list[int]],
        output_tokens: int,
        controls: Mapping[str, Any] | None = None,
        salt: str | None = None,
    ) -> list[Any]:
        from vllm import TokensPrompt

        salted = {} if salt is None else {"cache_salt": salt}
        prompts = [TokensPrompt(prompt_token_ids=prompt, **salted) for prompt in batch]
        sampling = _sampling(output_tokens, controls)
        outputs: list[Any] = self._llm.generate(prompts, sampling, use_tqdm=False)
        return outputs

    @staticmethod
    def _connector(connector: Mapping[str, Any] | None) -> object:
        from vllm.config import KVTransferConfig

        return None if connector is None else KVTransferConfig(kv_role="kv_both", **connector)


def _sampling(output_tokens: int, controls: Mapping[str, Any] | None = None) -> Any:
    from vllm import SamplingParams

    extra = {"kv_transfer_params": dict(controls)} if controls else None
    return SamplingParams(
        temperature=0, max_tokens=output_tokens, detokenize=False, ignore_eos=True, extra_args=extra
    )


def _answer(output: Any) -> Line:
    return {
        "tokens": list(output.outputs[0].token_ids),
        "cached_tokens": output.num_cached_tokens,
        "first_token_s": output.metrics.first_token_latency,
    }


def serve(commands: IO[str], say: Callable[[Line], None]) -> None:
    """Carry out commands until there are none; each answer ends with a line that says so."""
    life = Life(json.loads(commands.readline()))
    try:
        say({"end": True})
        for text in commands:
            command = json.loads(text)
            for line in getattr(life, command.pop("do"))(**command):
                say({"line": line})
            say({"end": True})
    finally:
        life.stop()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to stdout

    def say(line: Line) -> None:
        print(json.dumps(line), file=answers, flush=True)

    try:
        serve(sys.stdin, say)
    except Exception:
        say({"error": traceback.format_exc()})
        raise


if __name__ == "__main__":
    main()
