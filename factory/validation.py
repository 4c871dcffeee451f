"""Turns what is wrong with a document, and pydantic's list of errors, into one `ConfigError`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..tiers import ConfigError, TierUnavailable
from .text.wording import listed, nearest, quoted, reason_of, shown

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], entry: Mapping[str, Any], json_path: str) -> Model:
    """Make a `model` of one object of the document.

    Raises:
        ConfigError: with the path of the first thing wrong.
    """
    try:
        return model.model_validate(dict(entry))
    except ValidationError as error:
        wrong = min(error.errors(include_url=False), key=_rank)
        place, inner = joined(json_path, wrong["loc"]), wrong.get("ctx", {}).get("error")
        if isinstance(inner, ConfigError):  # of a part of the field: its path continues this one
            part = inner.path if place else inner.path.removeprefix(".")
            raise ConfigError(f"{place}{part}", str(inner).removeprefix(f"{inner.path}: ")) from None
        raise ConfigError(place, _message(model, entry, wrong)) from None


@contextmanager
def refused(json_path: str) -> Iterator[None]:
    """Report a tier's refusal as a fault of the field at `json_path`."""
    try:
        yield
    except TierUnavailable as error:
        raise ConfigError(json_path, str(error).removeprefix(f"{error.tier}: ")) from error
    except OSError as error:
        raise ConfigError(json_path, f"{error.filename} cannot be used: {reason_of(error)}") from error


def import_named(module_path: Any, json_path: str) -> None:
    """Import a module that a document names.

    Raises:
        ConfigError: it is no name of a module, or cannot be imported; `json_path` is where it stands.
    """
    if not isinstance(module_path, str) or not all(part.isidentifier() for part in module_path.split(".")):
        raise ConfigError(
            json_path,
            f'should be the name of a module, not {shown(module_path)}; for example "my_package.tier"',
        )
    try:
        importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_path}.".startswith(f"{error.name}."):
            _refuse_module(module_path, error, json_path)
        raise ConfigError(json_path, f"there is no module {quoted(error.name)}") from error
    except (Exception, SystemExit) as error:  # whatever stands in a module of somebody else
        _refuse_module(module_path, error, json_path)


def _refuse_module(module_path: str, error: BaseException, json_path: str) -> NoReturn:
    reason = f"{type(error).__name__}: {error}"
    raise ConfigError(json_path, f"{quoted(module_path)} cannot be imported: {reason}") from error


def joined(json_path: str, steps: Sequence[int | str]) -> str:
    """A JSON path, made longer: `tiers[2]` and `capacity` are `tiers[2].capacity`."""
    for step in steps:
        if isinstance(step, int):
            json_path += f"[{step}]"
        elif step.isidentifier():
            json_path += f".{step}" if json_path else step
        else:
            json_path += f"[{shown(step)}]"
    return json_path


def _rank(wrong: ErrorDetails) -> int:
    # A misspelled key is also a missing one: the misspelling is what the user can see.
    return {"extra_forbidden": 0, "missing": 2}.get(wrong["type"], 1)


def _message(model: type[BaseModel], entry: Mapping[str, Any], wrong: ErrorDetails) -> str:
    if wrong["type"] == "extra_forbidden":
        return f"unknown key; {_meant_key(str(wrong['loc'][-1]), model, entry)}"
    if wrong["type"] == "missing":
        return f"missing{_example(model, wrong)}"
    if wrong["type"] == "value_error":
        return str(wrong["ctx"]["error"])
    sentence = wrong["msg"].removeprefix("Input ")
    return f"{sentence[:1].lower()}{sentence[1:]}, not {shown(wrong['input'])}{_example(model, wrong)}"


def _meant_key(key: str, model: type[BaseModel], entry: Mapping[str, Any]) -> str:
    names = [field.alias or name for name, field in model.model_fields.items()]
    near = nearest(key, (name for name in names if name not in entry))
    return f"known are {listed(names)}" if near is None else f"did you mean {shown(near)}?"


def _example(model: type[BaseModel], wrong: ErrorDetails) -> str:
    field = model.model_fields.get(str(wrong["loc"][0])) if wrong["loc"] else None
    return f"; for example {shown(field.examples[0])}" if field and field.examples else ""
