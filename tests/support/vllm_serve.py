"""The real `vllm serve` as its clients see it: the OpenAI API, the metrics and the events."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from vllm_child import TINY_PROMPT
from vllm_server import (
    DRAIN_WAIT_S,
    HERE,
    LINE_WAIT_S,
    OUTPUT_TOKENS,
    POLL_S,
    QUIET_S,
    SPEC_MODULE,
    SPEC_NAME,
    STEP_S,
    Samples,
    ServerFailed,
    _is_tracker,
    _living,
    base_environment,
)

ANSWER_WAIT_S = 60.0  # an answer takes half a second on two free cores
DRAIN_S = 40  # what the server gives its engine at SIGTERM, whose worker takes 10; by default, nothing
STOP_WAIT_S = 60.0
EVENT_WAIT_MS = 500  # of silence, after the server has told all; it tells within 100 ms

TOPIC = "kv"
MODEL_NAME = "tiny"


class Completion(NamedTuple):
    """What the API made of one prompt: the tokens, and how many of the prompt's it did not compute."""

    tokens: tuple[int, ...]
    cached_tokens: int


class ApiServer:
    """One `vllm serve` with kvtier, publishing its events to this process. One thread uses it.

    Leaving the `with` block kills what is left of it. What it prints is appended to `log`.

    Raises:
        ServerFailed: from any method, and from entering the `with` block.
    """

    def __init__(
        self, *, model: Path, tiers: Mapping[str, Any], log: Path, environment: Mapping[str, str]
    ) -> None:
        import zmq  # vLLM brings it

        self._model, self._tiers, self._log, self._environment = model, tiers, log, environment
        self._url = f"http://127.0.0.1:{_free_port()}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        # Bound here before the server starts, so that it connects and no event is lost.
        self._zmq = zmq.Context()
        self._events = self._zmq.socket(zmq.SUB)
        self._events.setsockopt(zmq.RCVHWM, 0)
        self._events.setsockopt_string(zmq.SUBSCRIBE, TOPIC)
        self._events_port = self._events.bind_to_random_port("tcp://127.0.0.1")
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ApiServer:
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, str(HERE / "serve_child.py"), *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**base_environment(), "VLLM_SERVER_DEV_MODE": "1", **self._environment},
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
            self._wait_until_heard()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def complete(self, prompt: Sequence[int], *, output_tokens: int = OUTPUT_TOKENS) -> Completion:
        """Ask for a completion of token ids."""
        body = {
            "model": MODEL_NAME,
            "prompt": list(prompt),
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer = json.loads(self._call("/v1/completions", body))
        details = answer["usage"]["prompt_tokens_details"] or {}
        return Completion(tuple(answer["choices"][0]["token_ids"]), details.get("cached_tokens") or 0)

    def forget(self) -> None:
        """Forget which blocks the device holds; what the tiers below hold stays."""
        self._call("/reset_prefix_cache", {})

    def invalidate(self) -> None:
        """Let nothing that was stored be served again, as after an update of the weights."""
        self._call("/reset_prefix_cache?reset_external=true", {})

    def samples(self) -> Samples:
        """What `/metrics` shows now."""
        from prometheus_client.parser import text_string_to_metric_families

        return Samples(
            [
                {"name": sample.name, "labels": sample.labels, "value": sample.value}
                for family in text_string_to_metric_families(self._call("/metrics"))
                for sample in family.samples
            ]
        )

    def drain(self) -> Samples:
        """Let the server step until every store has reached the last tier; returns the metrics then."""
        give_up_at_s = time.monotonic() + DRAIN_WAIT_S
        seen, seen_at_s = dict[str, float](), time.monotonic()
        while time.monotonic() < give_up_at_s:
            self.complete(TINY_PROMPT, output_tokens=2)
            samples = self.samples()
            if samples.of_kvtier() != seen or samples.total("kvtier:pending_stores"):
                seen, seen_at_s = samples.of_kvtier(), time.monotonic()
            elif time.monotonic() - seen_at_s > QUIET_S:
                return samples
            time.sleep(STEP_S)
        raise self._failure(f"stores were still under way after {DRAIN_WAIT_S} s: {seen}")

    def settle(self, chunks: int) -> Samples:
        """Send nothing until the metrics show that so many chunks are on the drive; returns them."""
        give_up_at_s = time.monotonic() + DRAIN_WAIT_S
        while time.monotonic() < give_up_at_s:
            samples = self.samples()
            if samples.total("kvtier:store_chunks", tier="nvme") >= chunks:
                return samples
            time.sleep(STEP_S)
        raise self._failure(f"an idle server does not show that {chunks} chunks are on the drive")

    def events(self) -> list[Any]:
        """vLLM's KV-cache events since the last call, in order."""
        import msgspec
        from vllm.distributed.kv_events import KVEventBatch

        decoder = msgspec.msgpack.Decoder(type=KVEventBatch)
        events: list[Any] = []
        while self._events.poll(EVENT_WAIT_MS):
            _, _, payload = self._events.recv_multipart()
            events += decoder.decode(payload).events
        return events

    def terminate(self) -> int:
        """Send SIGTERM and wait for the end of all its processes, up to a bound; returns the exit code."""
        assert self._child is not None, "the server is running"
        give_up_at_s = time.monotonic() + STOP_WAIT_S
        self._child.terminate()
        while self._child.poll() is None or _living(self._child.pid):
            if time.monotonic() > give_up_at_s:
                raise self._failure(f"the server still ran {STOP_WAIT_S} s after SIGTERM")
            time.sleep(POLL_S)
        return int(self._child.returncode)

    def kill(self) -> None:
        """End every process of the server with SIGKILL, and listen no more. Idempotent."""
        self._events.close(linger=0)
        self._zmq.term()
        if self._child is None:
            return
        while processes := _living(self._child.pid):
            for process in processes:
                if not _is_tracker(process):  # it ends once it has cleared shared memory
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
            time.sleep(POLL_S)
        self._child.wait()
        self._child = None

    def _arguments(self) -> list[str]:
        extra = {"spec_module_path": SPEC_MODULE, "spec_name": SPEC_NAME, "kvtier": self._tiers}
        connector = {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": extra,
        }
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://127.0.0.1:{self._events_port}",
            "topic": TOPIC,
        }
        options = {
            "host": "127.0.0.1",
            "port": self._url.rpartition(":")[2],
            "served-model-name": MODEL_NAME,
            "max-model-len": "4096",
            "max-num-batched-tokens": "4096",
            "dtype": "float32",
            "block-size": "128",
            "shutdown-timeout": str(DRAIN_S),
            "kv-transfer-config": json.dumps(connector),
            "kv-events-config": json.dumps(events),
        }
        switches = ("--skip-tokenizer-init", "--enforce-eager", "--enable-prompt-tokens-details")
        pairs = [text for name, value in options.items() for text in (f"--{name}", value)]
        return ["serve", str(self._model), *pairs, *switches]

    def _wait_until_ready(self) -> None:
        assert self._child is not None
        give_up_at_s = time.monotonic() + LINE_WAIT_S
        while time.monotonic() < give_up_at_s:
            if self._child.poll() is not None:
                raise self._failure("the server has ended")
            with contextlib.suppress(OSError), socket.create_connection(self._address(), timeout=1):
                self._call("/health")
                return
            time.sleep(STEP_S)
        raise self._failure(f"the server was not ready after {LINE_WAIT_S} s")

    def _wait_until_heard(self) -> None:
        """Until a publisher knows its subscriber it drops what it is given."""
        give_up_at_s = time.monotonic() + ANSWER_WAIT_S
        while not self._events.poll(EVENT_WAIT_MS):
            if time.monotonic() > give_up_at_s:
                raise self._failure(f"no event was heard within {ANSWER_WAIT_S} s")
            self.forget()  # an event of its own, told at the next step
            self.complete(TINY_PROMPT, output_tokens=2)
        self.events()

    def _address(self) -> tuple[str, int]:
        host, _, port = self._url.removeprefix("http://").partition(":")
        return host, int(port)

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> str:
        """GET, or POST a body; returns the text of the answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=ANSWER_WAIT_S) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode(errors="replace")
            raise self._failure(f"{path} answers {error.code}: {text}") from error
        except OSError as error:
            raise self._failure(f"{path}: {error}") from error

    def _failure(self, what: str) -> ServerFailed:
        tail = self._log.read_text(errors="replace").splitlines()[-40:]
        return ServerFailed("\n".join([what, f"the end of {self._log}:", *tail]))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
