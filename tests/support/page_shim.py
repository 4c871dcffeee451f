"""A library to preload that tells a process of other pages than its kernel has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
int getpagesize(void) { return PAGE; }
long sysconf(int name) {
    long (*real)(int) = (long (*)(int))dlsym(RTLD_NEXT, "sysconf");
    return name == _SC_PAGESIZE ? PAGE : real(name);
}
"""


def page_shim(folder: Path, page_bytes: int) -> Path:
    """Build it; skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the shim")
    source, library = folder / "pages.c", folder / "pages.so"
    source.write_text(_SOURCE)
    command = [compiler, "-shared", "-fPIC", f"-DPAGE={page_bytes}", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library
