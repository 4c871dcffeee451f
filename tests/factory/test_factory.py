"""What `kvtier.factory` hands on to other packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kvtier.factory
from kvtier.factory import base, registry


@pytest.mark.parametrize("name", kvtier.factory.__all__)
def test_every_public_name_is_the_one_of_its_module(name: str) -> None:
    home = base if hasattr(base, name) else registry
    assert getattr(kvtier.factory, name) is getattr(home, name)


def test_an_unknown_name_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="register_teir"):
        from kvtier.factory import register_teir  # noqa: F401


def test_a_package_registers_by_what_is_handed_on_and_imports_no_server_or_tensor_library() -> None:
    code = (
        "import sys, kvtier.factory\n"
        "assert not {'pydantic', 'torch', 'lmdb', 'vllm'} & set(sys.modules), 'imported for nothing'\n"
        "from kvtier.factory import register_spec, register_tier\n"
        "register_tier('tape', 'my_package.tape', 'TapeFactory')\n"
        "register_spec('Tape', 'my_package.spec', 'TapeSpec')\n"
        "assert not {'torch', 'lmdb', 'vllm', 'my_package'} & set(sys.modules), 'imported too early'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
