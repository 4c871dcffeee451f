"""One system in a process of its own, which runs one task after the other when it is told to.

So two revisions of kvtier, which share one import name, take turns in one run; the CPU time of a system is
that of its process; and no system carries what another has imported. All map the same memory.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .cases import Case, Sample
from .systems import System

END_WAIT_S = 60.0  # it closes its store first, also when it was interrupted: nothing of it stays behind

BENCHMARKS = Path(__file__).resolve().parents[1]


class Worker:
    """The process of one system, which maps `memory_fd`. A call returns with its result; one at a time."""

    def __init__(self, system: System, root: Path, memory_fd: int) -> None:
        self.system = system
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (theirs.fileno(), memory_fd)
            command = [sys.executable, "-m", __name__, *map(str, fds)]
            path = os.pathsep.join(filter(None, (str(BENCHMARKS), os.environ.get("PYTHONPATH"))))
            self.process = subprocess.Popen(command, pass_fds=fds, env={**os.environ, "PYTHONPATH": path})
        self._connection = Connection(ours.detach())
        self._connection.send((system, root))

    def run_pair(self, storing: Case) -> dict[str, Sample]:
        samples: dict[str, Sample] = self._call("run_pair", storing)
        return samples

    def flush_cost(self, storing: Case) -> dict[str, float]:
        costs: dict[str, float] = self._call("flush_cost", storing)
        return costs

    def close(self) -> None:
        self._connection.close()
        try:
            self.process.wait(END_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _call(self, task: str, case: Case) -> Any:
        try:
            self._connection.send((task, case))
            result = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(f"the process of {self.system.name} has ended") from error
        if isinstance(result, str):
            raise RuntimeError(f"{self.system.name}: {result}")
        return result


def serve(connection: Connection, memory_fd: int) -> None:
    """In the process: run what is asked for, until the other side is closed. An error is sent as text."""
    system, root = connection.recv()
    import checkout

    sys.modules["kvtier"] = checkout.namespace(system.checkout)  # before anything of kvtier is imported
    from .bench import Bench
    from .memory import Pages

    bench = Bench(system, root, Pages(memory_fd))
    while True:
        task, case = connection.recv()
        try:
            result = getattr(bench, task)(case)
        except Exception:
            result = traceback.format_exc()
        connection.send(result)


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):
        serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
