"""Lives of a real vLLM server, one at a time, that can be asked, killed and started again.

One long file: the parent and the child that it starts speak one protocol over pipes, and change together.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil
from vllm_child import TINY_PROMPT
from vllm_nursery import Forked, Nursery

HERE = Path(__file__).parent
SPECS = HERE.parent / "factory" / "vllm"  # where `saboteurs` lies

SPEC_MODULE = "kvtier.factory.vllm"
SPEC_NAME = "CompositeOffloadingSpec"

LINE_WAIT_S = 240.0  # a start takes 20 s on two free cores, and there may be other work on them
STOP_WAIT_S = 60.0  # the plugin alone gives its disk 10 s
DRAIN_WAIT_S = 60.0
QUIET_S = 1.0  # the plugin reports four times a second: four reports without a change
POLL_S = 0.01
STEP_S = 0.1  # between the requests that make an idle server step and report

OUTPUT_TOKENS = 16

TWO_RANKS: Mapping[str, Any] = {  # settings
    "engine": {"tensor_parallel_size": 2},
    "environment": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},  # a core each
}


class Answer(NamedTuple):
    """What a server made of one prompt.

    Attributes:
        tokens: what it generated.
        cached_tokens: tokens of the prompt that it did not compute, from the device or below.
        first_token_s: time to the first token.
    """

    tokens: tuple[int, ...]
    cached_tokens: int
    first_token_s: float


class ServerFailed(Exception):
    """The server ended, broke or went silent; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to start a server.

    Attributes:
        model: directory of the tiny model; made if it is missing.
        shape: which tiny model it is; None: whatever is in the directory.
        tiers: the tier-config document; None runs without kvtier.
        engine: further arguments of vLLM's `LLM`.
        spec: module and class of the offloading spec.
        connector: class of vLLM's KV connector, and its module where that is not vLLM's own.
        extra: further keys beside the tier config.
        environment: further variables of its environment.
    """

    model: Path
    shape: str | None = "llama"
    tiers: Mapping[str, Any] | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    spec: tuple[str, str] = (SPEC_MODULE, SPEC_NAME)
    connector: tuple[str, str | None] = ("OffloadingConnector", None)
    extra: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """What the child reads."""
        module, name = self.spec
        extra = {"spec_module_path": module, "spec_name": name, "kvtier": self.tiers, **self.extra}
        kv_connector, kv_module = self.connector
        connector = {
            "kv_connector": kv_connector,
            "kv_connector_module_path": kv_module,
            "kv_connector_extra_config": extra,
        }
        return {
            "model": str(self.model),
            "shape": self.shape,
            "engine": dict(self.engine),
            "connector": None if self.tiers is None else connector,
        }


def tier_document(
    *,
    pinned: int | str,
    nvme: Path | None = None,
    nvme_capacity: int | str = "1GiB",
    recompute: str = "never",
) -> dict[str, Any]:
    """A tier config for tests: the device, a pinned tier and, with a path, an NVMe tier.

    By default everything is loaded that a tier has, however fast the machine computes just then.
    """
    tiers: list[dict[str, Any]] = [{"type": "gpu"}, {"type": "pinned", "capacity": pinned}]
    if nvme is not None:
        tiers.append({"type": "nvme", "path": str(nvme), "capacity": nvme_capacity, "reserve": "1GiB"})
    return {"version": 1, "tiers": tiers, "recompute": recompute}


class Samples:
    """Prometheus samples of a server, at one moment."""

    def __init__(self, samples: Sequence[Mapping[str, Any]]) -> None:
        self._samples = samples

    def total(self, name: str, **labels: str) -> float:
        """Add up the samples of a name that carry these labels; a counter's name without its `_total`."""
        return sum(
            float(sample["value"])
            for sample in self._samples
            if sample["name"] in (name, f"{name}_total") and labels.items() <= sample["labels"].items()
        )

    def of_kvtier(self) -> dict[str, float]:
        """kvtier's own samples by name and labels."""
        return {
            f"{sample['name']} {sorted(sample['labels'].items())}": sample["value"]
            for sample in self._samples
            if sample["name"].startswith("kvtier:") and not sample["name"].endswith("_created")
        }


def has_vllm() -> bool:
    """Say whether a vLLM is installed."""
    return importlib.util.find_spec("vllm") is not None


class Server:
    """One life of a server: a child process and all that it starts, in a session of their own.

    One thread uses it. Leaving the `with` block stops it in the orderly way, and kills it after a bound or
    on an exception; either way no process of it is left. What vLLM prints is appended to `log`.

    Raises:
        ServerFailed: from any method, and from entering the `with` block.
    """

    def __init__(self, settings: Settings, *, log: Path, nursery: Nursery | None = None) -> None:
        self._settings = settings
        self._log = log
        self._nursery = nursery
        # Mutable state: the child while it lives, and what it said beyond the last whole line.
        self._child: subprocess.Popen[bytes] | Forked | None = None
        self._received = b""

    def __enter__(self) -> Server:
        self.begin()
        try:
            list(self._lines())
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def begin(self) -> None:
        """Start the child, without waiting for it to be ready."""
        environment = base_environment() | dict(self._settings.environment)
        with self._log.open("ab") as log:
            if self._nursery is not None:
                self._child = self._nursery.fork(environment, log)
            else:
                self._child = subprocess.Popen(
                    [sys.executable, str(HERE / "vllm_child.py")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )
        self._say(self._settings.document())

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        forget: bool = False,
        output_tokens: int = OUTPUT_TOKENS,
        controls: Mapping[str, Any] | None = None,
        salt: str | None = None,
    ) -> list[Answer]:
        """Answer prompts one after the other.

        Args:
            forget: clear the device's cache before each.
            controls: what the requests ask of the connector.
            salt: what keeps their blocks apart from those of other requests.
        """
        self._order(prompts, forget, output_tokens, together=False, controls=controls, salt=salt)
        return list(map(_answer, self._lines()))

    def stream(
        self, prompts: Sequence[Sequence[int]], *, forget: bool = False, output_tokens: int = OUTPUT_TOKENS
    ) -> Iterator[Answer]:
        """The same, each answer as it comes; the caller takes all of them or kills the server."""
        self._order(prompts, forget, output_tokens, together=False)
        return map(_answer, self._lines())

    def generate_together(
        self, prompts: Sequence[Sequence[int]], *, output_tokens: int = OUTPUT_TOKENS
    ) -> list[Answer]:
        """Answer prompts all at once."""
        self._order(prompts, False, output_tokens, together=True)
        return list(map(_answer, self._lines()))

    def storm(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        disturbance: str = "none",
        every_steps: int = 1,
        gate: Path | None = None,
        opens_after: int = 1,
        at_once: int | None = None,
        output_tokens: int | Sequence[int] = OUTPUT_TOKENS,
    ) -> int:
        """Send many prompts at once, amid disturbances, see `vllm_storms`; say how many came to their end."""
        lengths = [output_tokens] * len(prompts) if isinstance(output_tokens, int) else list(output_tokens)
        self._say(
            {
                "do": "storm",
                "prompts": [list(prompt) for prompt in prompts],
                "output_tokens": lengths,
                "disturbance": disturbance,
                "every_steps": every_steps,
                "gate": None if gate is None else str(gate),
                "opens_after": opens_after,
                "at_once": at_once,
            }
        )
        return sum(1 for _ in self._lines())

    def forget(self) -> None:
        """Forget which blocks the device holds; what the tiers below hold stays."""
        self._say({"do": "forget"})
        list(self._lines())

    def reset(self) -> None:
        """Reset the caches of the device and of the tiers below, as for new weights."""
        self._say({"do": "reset"})
        list(self._lines())

    def samples(self) -> Samples:
        """The server's metrics as of its last step."""
        self._say({"do": "metrics"})
        return Samples(list(self._lines()))

    def drain(self) -> Samples:
        """Let the server step until every store has reached the last tier; returns the metrics then."""
        give_up_at_s = time.monotonic() + DRAIN_WAIT_S
        seen, seen_at_s = self._step().of_kvtier(), time.monotonic()
        while time.monotonic() < give_up_at_s:
            time.sleep(STEP_S)
            samples = self._step()
            if samples.of_kvtier() != seen or samples.total("kvtier:pending_stores"):
                seen, seen_at_s = samples.of_kvtier(), time.monotonic()
            elif time.monotonic() - seen_at_s > QUIET_S:
                return samples
        raise ServerFailed(f"stores were still under way after {DRAIN_WAIT_S} s: {seen}")

    def kill(self) -> None:
        """End every process of the server with SIGKILL, but for the one that then clears shared memory."""
        if self._child is None:
            return
        while running := [process for process in _living(self._child.pid) if not _is_tracker(process)]:
            for process in running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(POLL_S)
        self._ended()

    def close(self) -> None:
        """Stop the server in the orderly way; one that does not stop within a bound is killed. Idempotent."""
        if self._child is None:
            return
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(STOP_WAIT_S)
        self.kill()

    def _step(self) -> Samples:
        self.generate([TINY_PROMPT], output_tokens=2)
        return self.samples()

    def _order(
        self,
        prompts: Sequence[Sequence[int]],
        forget: bool,
        output_tokens: int,
        *,
        together: bool,
        controls: Mapping[str, Any] | None = None,
        salt: str | None = None,
    ) -> None:
        self._say(
            {
                "do": "generate",
                "prompts": [list(prompt) for prompt in prompts],
                "output_tokens": output_tokens,
                "together": together,
                "forget": forget,
                "controls": dict(controls or {}),
                "salt": salt,
            }
        )

    def _say(self, message: Mapping[str, Any]) -> None:
        assert self._child is not None, "the server is running"
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(message).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._failure("the server has ended") from None

    def _lines(self) -> Iterator[Any]:
        """Yield an answer's lines, up to the one that ends it."""
        while True:
            message = json.loads(self._read_line())
            if "error" in message:
                raise self._failure(message["error"])
            if "end" in message:
                return
            yield message["line"]

    def _read_line(self) -> bytes:
        assert self._child is not None, "the server is running"
        assert self._child.stdout is not None
        give_up_at_s = time.monotonic() + LINE_WAIT_S
        while b"\n" not in self._received:
            self._received += self._read_some(self._child.stdout, give_up_at_s - time.monotonic())
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _read_some(self, pipe: IO[bytes], wait_s: float) -> bytes:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            if not selector.select(max(0.0, wait_s)):
                raise self._failure(f"the server said nothing for {LINE_WAIT_S} s")
        received = os.read(pipe.fileno(), 1 << 20)
        if not received:
            raise self._failure("the server has ended")
        return received

    def _ended(self) -> None:
        """Reap the child and wait for the rest of its session, whose parent is another."""
        assert self._child is not None
        child, self._child, self._received = self._child, None, b""
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        give_up_at_s = time.monotonic() + STOP_WAIT_S
        while living := _living(child.pid):
            if time.monotonic() > give_up_at_s:
                raise self._failure(f"processes outlived their server: {living}")
            time.sleep(POLL_S)

    def _failure(self, what: str) -> ServerFailed:
        tail = self._log.read_text(errors="replace").splitlines()[-40:]
        return ServerFailed("\n".join([what, f"the end of {self._log}:", *tail]))


def _answer(line: Mapping[str, Any]) -> Answer:
    return Answer(tuple(line["tokens"]), line["cached_tokens"], line["first_token_s"])


def _living(session: int) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _is_living(process, session)]


def _is_living(process: psutil.Process, session: int) -> bool:
    with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
        # A zombie has let go of all that it held; whoever inherited it may take its time to reap it.
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    return False


def _is_tracker(process: psutil.Process) -> bool:
    """Whether a process is the one that removes shared memory once those who made it have ended, however."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any("resource_tracker" in argument for argument in process.cmdline())
    return False


def base_environment() -> dict[str, str]:
    """What every server is started with."""
    path = os.pathsep.join(filter(None, [str(SPECS), os.environ.get("PYTHONPATH")]))
    return os.environ | {
        "PYTHONPATH": path,  # for the specs of tests
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; 1,024 blocks of the tiny model
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
