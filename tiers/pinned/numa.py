"""Allocates memory on a chosen NUMA node."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from pathlib import Path

NODES_WITH_MEMORY = Path("/sys/devices/system/node/has_memory")  # like "0-1,4"

_SYSCALL_MBIND = {"x86_64": 237, "aarch64": 235}  # the C library has no function for it, only libnuma has

_PREFERRED = 1  # MPOL_PREFERRED: the node if it has room, else another one; MPOL_BIND would kill instead

_WORD_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)

_syscall = ctypes.CDLL(None, use_errno=True).syscall


def memory_nodes() -> list[int]:
    """The nodes of this machine that have memory, in order; empty if the kernel lists none."""
    try:
        text = NODES_WITH_MEMORY.read_text().strip()
    except OSError:
        return []
    spans = [span.partition("-") for span in text.split(",") if span]
    return [node for first, _, last in spans for node in range(int(first), int(last or first) + 1)]


def prefer_node(address: int, size_bytes: int, node: int) -> None:
    """Allocate the pages of this range on a node, except those that exist already.

    In a shared mapping this applies to all processes that share it; the last call wins.

    Raises:
        OSError: there is no such node, or the kernel does not support it.
    """
    number = _SYSCALL_MBIND.get(platform.machine())
    if number is None or node < 0:
        raise OSError(errno.EINVAL, f"NUMA node {node} cannot be chosen on {platform.machine()}")
    mask = (ctypes.c_ulong * (node // _WORD_BITS + 1))()
    mask[node // _WORD_BITS] = 1 << node % _WORD_BITS
    bits = len(mask) * _WORD_BITS + 1  # the kernel reads one bit less than it is told
    words = map(ctypes.c_ulong, (address, size_bytes, _PREFERRED, ctypes.addressof(mask), bits, 0))
    if _syscall(ctypes.c_long(number), *words) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"NUMA node {node}: {os.strerror(code)}")
