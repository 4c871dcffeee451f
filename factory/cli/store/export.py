"""`kvtier export`: writes chunks of a directory to a pack, for another machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from ....tiers import ConfigError, KvtierError
from ...text.units import format_size, parse_option
from ..exits import EXIT_NO
from ..output import AsJson, emit, progress
from .choosing import KeyPrefix, Namespace, key_prefix_of
from .opened import Directory, opened

if TYPE_CHECKING:
    from ....tiers.nvme.admin.packing import Begun, Packed
    from ....tiers.nvme.admin.prune import Chosen
    from ....tiers.nvme.store.opening import Store
    from .shapes import Export


def export(
    path: Directory,
    namespace: Namespace = None,
    key_prefix: KeyPrefix = None,
    newest: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Only so much, the newest chunks first.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The pack, instead of the standard output."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a FILE that was begun: what it has is verified.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write chunks of one namespace to a pack for `import`.

    A pack has the bytes of prompts' KV cache: keep it as safe as the directory. Servers may go on meanwhile.
    Exit status 1 means that the pack is whole, but chunks were left out because they are damaged.
    """
    if as_json and output is None:
        raise ConfigError("--json", "needs --output: the pack goes to the standard output")
    if resume and output is None:
        raise ConfigError("--resume", "needs --output, with the file to go on with")
    newest_bytes = None if newest is None else parse_option("--newest", newest)
    with opened(path) as store:
        chosen = _chosen(store, namespace, key_prefix)
        packed = _packed(store, chosen, newest_bytes, output, resume)
    if as_json:
        emit("export", _shape(path, chosen, packed))
    else:
        typer.echo(_as_text(packed), err=output is None)
    if packed.damaged_chunks:
        raise typer.Exit(EXIT_NO)


def _chosen(store: Store, namespace: str | None, key_prefix: str | None) -> Chosen:
    """What to pack: of one namespace that another server may use.

    Raises:
        ConfigError: there are several.
    """
    from ....tiers.nvme.admin.prune import Selection, choose

    if namespace == "":  # a script's variable is empty
        raise ConfigError("--namespace", "is empty; give it a value, or leave the option out")
    found = choose(store, Selection(namespace or "", key_prefix_of(key_prefix)))
    found = [one for one in found if not one.file.identity.is_of_one_process]
    if not found:
        typer.echo("nothing matches", err=True)
        raise typer.Exit(EXIT_NO)
    if len(found) > 1:
        names = ", ".join(f"{one.label} {one.digest.hex()[:12]}" for one in found)
        raise ConfigError("--namespace", f"a pack holds one namespace; name one of {names} by its digest")
    return found[0]


def _packed(
    store: Store, chosen: Chosen, newest_bytes: int | None, output: Path | None, resume: bool
) -> Packed:
    import asyncio

    from ....tiers.nvme.admin.packing import head_of, pack

    with _target(output, resume) as file, progress("packing") as bar:
        before = _begun(store, chosen, file, output) if resume and _is_begun(file) else None
        if before is None:
            file.write(head_of(store, chosen).encode())
        else:
            file.truncate(file.seek(before.end))
        packed = asyncio.run(pack(store, chosen, newest_bytes, before, file.write, bar))
        file.flush()
        if output is not None:
            os.fsync(file.fileno())
    return packed


def _begun(store: Store, chosen: Chosen, file: IO[bytes], output: Path | None) -> Begun:
    from ....tiers.nvme.admin.pack_file import PackDamaged
    from ....tiers.nvme.admin.packing import begun, head_of

    try:
        return begun(head_of(store, chosen), file)
    except PackDamaged as error:
        raise ConfigError("--resume", f"{output}: {error}") from error


def _is_begun(file: IO[bytes]) -> bool:
    return os.fstat(file.fileno()).st_size > 0


@contextmanager
def _target(output: Path | None, resume: bool) -> Iterator[IO[bytes]]:
    """Where the pack goes.

    Raises:
        ConfigError: to a terminal, or over a file that is there.
        KvtierError: the file cannot be written.
    """
    if output is None:
        if sys.stdout.isatty():
            raise ConfigError("--output", "a pack is not for a terminal; name a FILE, or use a pipe")
        yield sys.stdout.buffer
        return
    try:
        fd = os.open(output, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if resume else os.O_EXCL), 0o600)
        with open(fd, "r+b") as file:
            yield file
    except FileExistsError as error:
        raise ConfigError("--output", f"{output} is there; --resume goes on with it") from error
    except OSError as error:
        raise KvtierError(f"{output}: {error.strerror or error}") from error


def _shape(path: Path, chosen: Chosen, packed: Packed) -> Export:
    from .shapes import Export

    return Export(path=str(path), namespace=chosen.digest.hex(), **packed._asdict())


def _as_text(packed: Packed) -> str:
    text = f"packed {packed.chunks} chunks, {format_size(packed.size_bytes)}"
    if packed.gone_chunks:
        text += f"; {packed.gone_chunks} were evicted meanwhile"
    if packed.damaged_chunks:
        text += f"; {packed.damaged_chunks} are damaged and left out: see kvtier fsck --deep"
    return text
