"""`vllm serve MODEL …` over the tiny Llama, which is made if it is missing."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    from tiny_llama import make_llama

    make_llama(Path(sys.argv[2]))
    from vllm.entrypoints.cli.main import main as command_line

    command_line()


if __name__ == "__main__":  # the server's own processes import this file
    main()
