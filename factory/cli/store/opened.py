"""Opens the store that a command works on, also while servers use it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ....tiers import ConfigError
from ...text.ages import format_age
from .owner import as_owner

if TYPE_CHECKING:
    from ....tiers.nvme.store.directory import OutOfReach
    from ....tiers.nvme.store.opening import Store

Directory = Annotated[Path, typer.Argument(help="The directory of an nvme tier.", show_default=False)]
Directories = Annotated[
    list[Path], typer.Argument(help="The directories of an nvme tier, one a drive.", show_default=False)
]


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    """Open the store at `path`, and close it in the end.

    Raises:
        ConfigError: there is no store.
        TierUnavailable: it cannot be opened.
    """
    from ....tiers.nvme.io.files import Files
    from ....tiers.nvme.store.opening import close_store, open_existing

    refuse_no_store(path)
    store = open_existing(Files(), path)
    try:
        yield store
    finally:
        close_store(store)


@contextmanager
def looked_at(path: Path) -> Iterator[Store]:
    """Open the store at `path` to look at it; where it is out of reach, open its checkpoint and say so.

    Root looks at another user's store as that user.

    Raises:
        ConfigError: there is no store.
        TierUnavailable: neither can be opened.
    """
    from ....tiers.nvme.io.files import Files
    from ....tiers.nvme.store.directory import OutOfReach
    from ....tiers.nvme.store.glance import glance

    refuse_no_store(path)
    with ExitStack() as stack:
        stack.enter_context(as_owner(path))
        try:
            store = stack.enter_context(opened(path))
        except OutOfReach as error:
            store, made_s, _ = stack.enter_context(glance(Files(), path))
            say_from_checkpoint(error, made_s)
        yield store


def say_from_checkpoint(error: OutOfReach, made_s: int) -> None:
    """Say that what is shown is not of now, and why."""
    typer.echo(f"{error}", err=True)
    typer.echo(f"showing its checkpoint, {format_age(time.time() - made_s)} old", err=True)


def refuse_no_store(path: Path) -> None:
    """Refuse a path without a store.

    Raises:
        ConfigError: there is no store.
    """
    from ....tiers.nvme.store.opening import is_store

    if not is_store(path):
        raise ConfigError("", f"{path} is not a kvtier store: it has no kvtier.json")
