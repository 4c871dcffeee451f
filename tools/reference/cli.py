"""The commands, from the command line itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from kvtier.factory.cli.app import app
from kvtier.factory.cli.exits import EXITS

from .tables import MADE, code, table

OPENING = """# Command line

`kvtier COMMAND --help` shows the same. `python -m kvtier.factory COMMAND` is the same command. A size is a
number of bytes, or text such as `64GiB`.

## Exit status

"""


def page() -> str:
    group: Any = typer.main.get_command(app)
    status = table(("status", "meaning"), ((str(number), text) for number, text in sorted(EXITS.items())))
    commands = [_command(name, command) for name, command in sorted(group.commands.items())]
    return MADE + OPENING + status + "".join(commands)


def _command(name: str, command: Any) -> str:
    text = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    usage = " ".join(["kvtier", name, *_usage(command)])
    rows = list(_rows(command))
    options = "\n" + table(("", "meaning", "default"), rows) if rows else ""
    return f"\n## kvtier {name}\n\n{code(usage)}\n\n{text}\n{options}"


def _usage(command: Any) -> Iterator[str]:
    if any(not _is_argument(param) for param in command.params):
        yield "[OPTIONS]"
    for param in filter(_is_argument, command.params):
        name = _metavar(param) + ("..." if param.nargs == -1 else "")
        yield name if param.required else f"[{name}]"


def _rows(command: Any) -> Iterator[tuple[str, str, str]]:
    for param in command.params:
        yield code(_written(param)), param.help or "", _default(param)


def _written(param: Any) -> str:
    if _is_argument(param):
        return _metavar(param)
    names = ", ".join([*param.opts, *param.secondary_opts])
    return names if param.is_flag else f"{names} {_metavar(param)}"


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name).strip("[]{}").upper()


def _default(param: Any) -> str:
    if param.required:
        return "required"
    told = isinstance(param.default, str | int | float) and param.default is not False
    return code(param.default) if told else ""


def _is_argument(param: Any) -> bool:
    return str(param.param_type_name) == "argument"
