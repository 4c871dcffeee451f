"""Lives of a real vLLM that begin in a second: forked from a process that has imported vLLM already.

A start spends most of its time on imports. The nursery makes them once and begins no thread; each life is a
fork of it, with pipes, an environment and a session of its own, and runs the engine in that one process.
Parent and nursery speak over one socket: a request is the environment as JSON with the three files, its
answer the process id.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

MESSAGE_BYTES_MAX = 1 << 20  # an environment

ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


class Forked:
    """One life that the nursery has begun; used as a `subprocess.Popen` is."""

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.pid = pid
        self.stdin: IO[bytes] | None = stdin
        self.stdout: IO[bytes] | None = stdout

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the process has ended; the nursery has no use for how.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        with suppress(ProcessLookupError):  # it has ended, and been reaped
            ended = os.pidfd_open(self.pid)
            try:
                if not select.select([ended], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(["vllm"], timeout or 0.0)
            finally:
                os.close(ended)


class Nursery:
    """The process that lives are forked from."""

    def __init__(self, process: subprocess.Popen[bytes], requests: socket.socket) -> None:
        self._process = process
        self._requests = requests

    def fork(self, environment: Mapping[str, str], log: IO[bytes]) -> Forked:
        """Begin a life whose commands and answers go through pipes, and whatever else it prints to `log`."""
        commands, stdin = os.pipe()
        stdout, answers = os.pipe()
        message = json.dumps({**environment, **ONE_PROCESS}).encode()
        try:
            socket.send_fds(self._requests, [message], [commands, answers, log.fileno()])
            pid = self._requests.recv(64)
        finally:
            os.close(commands)
            os.close(answers)
        if not pid:
            raise RuntimeError(f"the nursery has ended: {self._process.wait()}")
        return Forked(int(pid), open(stdin, "wb"), open(stdout, "rb"))


@contextmanager
def nursery(environment: Mapping[str, str], log: Path) -> Iterator[Nursery]:
    """A nursery for as long as the block lasts; the lives it began may outlast it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, log.open("ab") as output:
        with its:
            process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=its.fileno(),
                stdout=output,
                stderr=output,
                env={**environment, **ONE_PROCESS},
            )
        try:
            yield Nursery(process, ours)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            process.wait()


# --- in the nursery ---------------------------------------------------------------------------------


def _import_all() -> None:
    """Import what every life needs, and nothing of kvtier, which each begins for itself."""
    import vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector
    import vllm.model_executor.models.llama
    import vllm.v1.engine.core
    import vllm.v1.worker.cpu_worker

    assert vllm.LLM is not None  # loaded on first use
    if threading.active_count() > 1:
        raise RuntimeError(f"a fork would lose threads: {threading.enumerate()}")


def _lives(requests: socket.socket) -> Iterator[list[int]]:
    """Fork for each request; yields in the forks alone, each its files."""
    while True:
        message, files, _, _ = socket.recv_fds(requests, MESSAGE_BYTES_MAX, 3)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            requests.close()
            os.setsid()
            os.environ.clear()
            os.environ.update(json.loads(message))
            yield files
            return
        for file in files:
            os.close(file)
        requests.send(str(pid).encode())


def main() -> None:
    requests = socket.socket(fileno=os.dup(0))
    _import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks: they leave no zombies
    for files in _lives(requests):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        import vllm_child

        vllm_child.main()


if __name__ == "__main__":
    main()
