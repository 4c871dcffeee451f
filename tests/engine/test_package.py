from __future__ import annotations

import subprocess
import sys

import pytest

import kvtier.engine


def succeed(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_alone_imports_no_torch() -> None:
    succeed("import sys, kvtier.engine; assert not {'torch', 'numpy', 'asyncio'} & set(sys.modules)")


def test_every_public_name_is_there() -> None:
    for name in kvtier.engine.__all__:
        assert getattr(kvtier.engine, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'OffloadEngin'"):
        _ = kvtier.engine.OffloadEngin


def test_without_torch_the_library_says_what_to_install() -> None:
    succeed(
        "import sys; sys.modules['torch'] = None\n"
        "try: from kvtier.engine import OffloadEngine\n"
        "except ImportError as error: assert 'needs torch: pip install kvtier ' in str(error), error\n"
        "else: raise AssertionError('imported')"
    )
