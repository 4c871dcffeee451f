"""What a forked child must not keep: locks of its parent.

A lock on an open file description lives until the last descriptor of it is closed, in whichever process. A
child that is forked and outlives its parent would hold the parent's locks for ever. So in the child, each
descriptor that was locked names /dev/null instead: whoever has its number may still close it.
"""

from __future__ import annotations

import os

_locked: set[int] = set()  # descriptors of this process; changed by single operations of the interpreter


def locked(fd: int) -> None:
    """Note that the descriptor has, or had, a lock."""
    _locked.add(fd)


def closed(fd: int) -> None:
    """Note that the descriptor is closed."""
    _locked.discard(fd)


def _let_go() -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in _locked:
        os.dup2(null, fd, inheritable=False)
    os.close(null)
    _locked.clear()


os.register_at_fork(after_in_child=_let_go)
