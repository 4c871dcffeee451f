"""vLLM's scheduler and its offloading connector, with clocks around all calls; for `step_cost.py`.

The connector's calls are timed, and within them those into the plugin: its manager and its worker. The rest
is vLLM's own code, which is there with any plugin.

They run in the server's own processes. The scheduler numbers its steps, and the number travels to the worker
with the step's transfers, so that what both took for a step can be put together.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from steps import StepLog
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_offload.base import OffloadingManager, OffloadingWorker

DIRECTORY = "KVTIER_BENCH_STEPS"  # environment variable: where the logs go
CORE = "KVTIER_BENCH_CORE"  # environment variable: the core of the scheduler's process

SCHEDULER_CALLS = (
    "on_new_request",
    "get_num_new_matched_tokens",
    "get_external_cache_hit_sources",
    "update_state_after_alloc",
    "build_connector_meta",
    "update_connector_output",
    "request_finished",
    "request_finished_all_groups",
    "has_pending_push_work",
    "take_events",
)
WORKER_CALLS = (
    "handle_preemptions",
    "start_load_kv",
    "wait_for_save",
    "get_finished",
    "build_connector_worker_meta",
)
CALLS_OF_BOTH = ("get_kv_connector_stats",)


def move_to_core(core: str) -> None:
    """Have all threads of this process run on one core; what they start later stays there."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread.name), {int(core)})


def new_log(name: str) -> StepLog:
    """A log of this process's own, written line by line: a server may be killed."""
    file = Path(os.environ[DIRECTORY], f"{name}.jsonl").open("w", buffering=1)  # noqa: SIM115 - as long as the process
    return StepLog(file, time.perf_counter_ns, time.thread_time_ns)


class RecordedScheduler(Scheduler):
    """A step begins with `schedule`; what lies between two of them is a step's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        move_to_core(os.environ[CORE])  # before there is a plugin: its threads are to share this core
        super().__init__(*args, **kwargs)
        self._log = new_log("scheduler")
        self._step = 0
        self._began_ns = time.perf_counter_ns()

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        running, waiting = self.get_request_counts()
        self._log.end(self._step, began_ns=self._began_ns, running=running, waiting=waiting)
        if self.connector is not None:
            self.connector.end_step(self._step)
        self._step += 1
        self._began_ns = time.perf_counter_ns()
        return self._log.timed("schedule", super().schedule, *args, **kwargs)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        return self._log.timed("update_from_output", super().update_from_output, *args, **kwargs)


class RecordedConnector(OffloadingConnector):
    """Both roles; each has its own logs."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        self._calls = new_log(f"connector-{role.name.lower()}")
        self._plugin_calls = new_log(f"plugin-{role.name.lower()}")
        self._step = 0
        super().__init__(vllm_config, role, kv_cache_config)
        if self.connector_scheduler is not None:
            time_methods(self.connector_scheduler.manager, OffloadingManager, self._plugin_calls)

    def register_kv_caches(self, kv_caches: Any) -> None:
        super().register_kv_caches(kv_caches)
        assert self.connector_worker is not None
        time_methods(self.connector_worker.worker, OffloadingWorker, self._plugin_calls)

    def end_step(self, step: int) -> None:
        """The scheduler's next step begins."""
        self._end(step)
        self._step = step + 1

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        meta: Any = self._calls.timed("build_connector_meta", super().build_connector_meta, scheduler_output)
        meta.step = self._step
        return meta

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        super().bind_connector_metadata(connector_metadata)
        self._step = connector_metadata.step

    def clear_connector_metadata(self) -> None:
        super().clear_connector_metadata()
        self._end(self._step)

    def _end(self, step: int) -> None:
        self._calls.end(step)
        self._plugin_calls.end(step)


def time_methods(role: Any, interface: type, log: StepLog) -> None:
    """Have a log time every method of this interface on one object."""
    for name, _ in inspect.getmembers(interface, inspect.isfunction):
        if not name.startswith("_"):
            setattr(role, name, partial(log.timed, name, getattr(role, name)))


def _timed(name: str) -> Callable[..., Any]:
    of_vllm = getattr(OffloadingConnector, name)

    def call(self: RecordedConnector, *args: Any, **kwargs: Any) -> Any:
        return self._calls.timed(name, of_vllm, self, *args, **kwargs)

    return call


for _name in {*SCHEDULER_CALLS, *WORKER_CALLS, *CALLS_OF_BOTH} - {"build_connector_meta"}:
    setattr(RecordedConnector, _name, _timed(_name))
