"""An engine in a process that was forked from its own: every call is refused, and none hangs."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Callable
from typing import Any

from lifetime_rig import WAIT_S, Spec, opened, tensors

CHILD_S = 20  # a child that hangs is killed after that


def in_a_fork(work: Callable[[], str]) -> str:
    """Return what `work` returns in a forked child; empty where it hung."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tested
        child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CHILD_S)
        try:
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


def test_every_call_in_a_forked_process_is_refused() -> None:
    spec = Spec()
    engine = opened(spec)
    spec.disk.lets_go.clear()
    caches = tensors()
    job, done = engine.flushing(), engine.store([b"a"], [0])
    done.wait(WAIT_S)
    calls: dict[str, Callable[[], Any]] = {
        "register_kv_caches": lambda: engine.register_kv_caches(caches),
        "lookup": lambda: engine.lookup([b"a"]),
        "store": lambda: engine.store([b"b"], [0]),
        "load": lambda: engine.load([b"a"], [0]),
        "flush": engine.flush,
        "flushing": engine.flushing,
        "stats": engine.stats,
        "close": engine.close,
        "done": job.done,
        "wait": done.wait,
        "wait_ended": job.wait_ended,
        "cancel": job.cancel,
        "when_done": lambda: job.when_done(print),
    }

    def work() -> str:
        return " ".join(name for name, call in calls.items() if not is_refused(call))

    assert in_a_fork(lambda: f"let through: {work()}") == "let through: "
    spec.disk.lets_go.set()
    engine.close()


def test_a_forked_process_collects_the_engine_in_silence() -> None:
    engines = [opened(Spec())]

    def collect() -> str:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            engines.clear()
            gc.collect()
        return f"collected, {len(caught)} warnings"

    assert in_a_fork(collect) == "collected, 0 warnings"
    engines[0].close()


def is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except RuntimeError as error:
        return "forked" in str(error)
    return False
