"""`kvtier completion`: prints what makes a shell complete kvtier's commands and options."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

ASKS = "_KVTIER_COMPLETE"  # set by the scripts where a shell asks what may follow


class Shell(StrEnum):
    """The shells that can."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def answer_shells() -> None:
    """Teach the command line to answer, if it is a shell that asks."""
    if ASKS in os.environ:
        from typer._completion_classes import completion_init

        completion_init()


def completion(
    shell: Annotated[Shell, typer.Argument(help="The shell to complete in.", show_default=False)],
) -> None:
    """Print a script that completes commands in a shell.

    For bash: kvtier completion bash > ~/.local/share/bash-completion/completions/kvtier. For zsh: into a file
    named _kvtier in a folder of $fpath. For fish: into ~/.config/fish/completions/kvtier.fish.
    """
    from typer._completion_shared import get_completion_script

    typer.echo(get_completion_script(prog_name="kvtier", complete_var=ASKS, shell=shell.value))
