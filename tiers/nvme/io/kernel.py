"""System calls that Python does not offer: `fallocate`, the type in `statfs`, a file's attributes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from functools import cache
from pathlib import Path

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602  # of linux/fs.h, on 64 bits
FS_NOCOW_FL = 0x00800000
STATFS_BYTES_MAX = 512  # struct statfs has 120 bytes on 64 bits; its first word is the type

_TYPE = struct.Struct("@l")
_FLAGS = struct.Struct("=L4x")  # the kernel reads and writes an int, whatever the numbers above say

NOT_SUPPORTED = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY))


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    libc.statfs.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    return libc


def fallocate(fd: int, size_bytes: int) -> None:
    """Take the file system's room for the file's first `size_bytes`.

    Not `posix_fallocate`: where a file system cannot do it, glibc writes single bytes instead, which direct
    I/O refuses.

    Raises:
        OSError: the file system refused; one of `NOT_SUPPORTED` where it never can.
    """
    while _libc().fallocate(fd, 0, 0, size_bytes):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def magic_of(path: Path) -> int:
    """The number by which the kernel knows the type of the file system at `path`.

    Raises:
        OSError: the path cannot be reached.
    """
    state = ctypes.create_string_buffer(STATFS_BYTES_MAX)
    if _libc().statfs(os.fsencode(path), state):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    return int(_TYPE.unpack_from(state.raw)[0]) & 0xFFFFFFFF


def set_no_cow(fd: int) -> bool:
    """Have an empty file, or what is made in a directory, overwritten in place; whether that is so now."""
    try:
        flags = _flags(fd)
        if not flags & FS_NOCOW_FL:
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, _FLAGS.pack(flags | FS_NOCOW_FL))
        return bool(_flags(fd) & FS_NOCOW_FL)
    except OSError as error:
        if error.errno in (*NOT_SUPPORTED, errno.EPERM, errno.EACCES):
            return False
        raise


def _flags(fd: int) -> int:
    (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(_FLAGS.size)))
    return int(flags)
