"""Registries of names for classes, which are imported on first use.

Two registries: specs, which a server asks for by `spec_name`, and tiers, which a document asks for by
`type`. Both are open: another package registers its own class, or is named by a module path and needs
no registration. Registering is meant for start-up and is not guarded against other threads. An installed
package may also offer tiers by entry points of the group `kvtier.tiers`, which every process sees.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from ..tiers.pinned.eviction import EvictionPolicy
from .base import SharedPlace, Spec, TierConfig, TierContext, TierFactory

__all__ = [
    "Registry",
    "SharedPlace",
    "Spec",
    "TierConfig",
    "TierContext",
    "TierFactory",
    "create_spec",
    "module_of_tier",
    "policy_class",
    "register_spec",
    "register_tier",
    "tier_factory",
    "tier_types",
]

logger = logging.getLogger(__name__)

_REFERENCE = re.compile(r"\w+(\.\w+)*:\w+")

DEFAULT_SPEC_NAME = "CompositeOffloadingSpec"


class Place(NamedTuple):
    """Where a class is found."""

    module_path: str
    class_name: str


class Registry:
    """Classes by name, each imported at its first use.

    Args:
        noun: what the classes are, for messages.
        accepts: whether a class is what the registry is for.
    """

    def __init__(self, noun: str, accepts: Callable[[type], bool], places: Mapping[str, Place]) -> None:
        self.noun = noun
        self.accepts = accepts
        self.places = dict(places)

    def names(self) -> tuple[str, ...]:
        """The registered names."""
        return tuple(self.places)

    def register(self, name: str, place: Place) -> None:
        """Let `name` stand for the class at `place`, without importing it.

        Raises:
            ValueError: the name is taken, or empty.
        """
        if not name:
            raise ValueError(f"{self.noun.capitalize()} needs a name, not {name!r}.")
        if name in self.places:
            raise ValueError(f"{self.noun.capitalize()} {name!r} is already registered.")
        self.places[name] = place

    def place(self, name: str) -> Place | None:
        """Where the class of a name is, if the name is known."""
        return self.places.get(name)

    def load(self, name: str, module_path: str | None = None) -> type:
        """Return the class of a registered name, or else the one called `name` in `module_path`.

        Raises:
            ValueError: the name is not registered and there is no module path.
            AttributeError: the module has no such name.
            TypeError: what has that name is not a class of the expected kind.
        """
        place = self.place(name)
        if place is None and module_path is None:
            raise ValueError(f"Unsupported {self.noun} type: {name}")
        return self._checked(place or Place(str(module_path), name))

    def _checked(self, place: Place) -> type:
        found = getattr(importlib.import_module(place.module_path), place.class_name)
        if not isinstance(found, type) or not self.accepts(found):
            raise TypeError(f"{place.module_path}.{place.class_name} is not a {self.noun} class")
        return found


class InstalledRegistry(Registry):
    """A registry that also knows what installed packages offer under a group of entry points.

    A registered name goes first. Nothing of a package is imported before its name is used.
    """

    def __init__(
        self, noun: str, accepts: Callable[[type], bool], places: Mapping[str, Place], group: str
    ) -> None:
        super().__init__(noun, accepts, places)
        self.group = group

    def names(self) -> tuple[str, ...]:
        return tuple(self._installed() | self.places)

    def place(self, name: str) -> Place | None:
        return self.places.get(name) or self._installed().get(name)

    def _installed(self) -> dict[str, Place]:
        places: dict[str, Place] = {}
        for entry in entry_points(group=self.group):
            if not entry.name or _REFERENCE.fullmatch(entry.value) is None:
                logger.warning("the entry point %r = %r is not MODULE:CLASS", entry.name, entry.value)
                continue
            place = Place(entry.module, entry.attr)
            if places.setdefault(entry.name, place) != place:
                logger.warning(
                    "two packages offer the %s %r; %s is used", self.noun, entry.name, places[entry.name]
                )
        return places


def _is_spec(found: type) -> bool:
    return issubclass(found, Spec)


def _is_tier_factory(found: type) -> bool:
    return isinstance(found, TierFactory) and issubclass(found.Config, TierConfig)


def _is_policy(found: type) -> bool:
    return issubclass(found, EvictionPolicy)


SPECS = Registry("spec", _is_spec, {DEFAULT_SPEC_NAME: Place("kvtier.factory.vllm", DEFAULT_SPEC_NAME)})

TIERS = InstalledRegistry(
    "tier",
    _is_tier_factory,
    {
        "gpu": Place("kvtier.factory.builtin", "GpuFactory"),
        "pinned": Place("kvtier.factory.builtin", "PinnedFactory"),
        "nvme": Place("kvtier.factory.builtin", "NvmeFactory"),
    },
    group="kvtier.tiers",
)


POLICIES_ELSEWHERE = Registry("policy", _is_policy, {})  # our own need no import


def register_spec(name: str, module_path: str, class_name: str) -> None:
    """Let `spec_name: name` stand for a class; the module is imported when the spec is first created.

    Raises:
        ValueError: the name is taken.
    """
    SPECS.register(name, Place(module_path, class_name))


def create_spec(extra_config: Mapping[str, Any], *args: Any) -> Any:
    """Create the spec that a server's `kv_connector_extra_config` names.

    `spec_name` is looked up among the registered names, else in the module `spec_module_path`.

    Args:
        extra_config: the server's extra configuration.
        args: what the server passes to the constructor of a spec.

    Raises:
        ValueError: an unknown name without a `spec_module_path`.
        AttributeError: the module has no such name.
        TypeError: what has that name is not a spec.
    """
    name = extra_config.get("spec_name", DEFAULT_SPEC_NAME)
    spec_class = SPECS.load(name, extra_config.get("spec_module_path"))
    logger.info("creating the offloading spec %s", name)
    return spec_class(*args)


def register_tier(type: str, module_path: str, class_name: str) -> None:
    """Let `"type": type` stand for a `TierFactory`; its module is imported when a document first names it.

    Raises:
        ValueError: the type is taken, or empty.
    """
    TIERS.register(type, Place(module_path, class_name))


def tier_types() -> tuple[str, ...]:
    """The types of tiers that a document may name without a module path."""
    return TIERS.names()


def module_of_tier(type: str) -> str | None:
    """The module that a registered type of tier is in, None of other types."""
    place = TIERS.place(type)
    return None if place is None else place.module_path


def tier_factory(type: str, module_path: str | None = None) -> Any:
    """Return the `TierFactory` of a registered type, or else the class called `type` in `module_path`.

    Raises:
        ValueError: the type is not registered and there is no module path.
        AttributeError: the module has no such name.
        TypeError: what has that name is not a tier factory.
    """
    return TIERS.load(type, module_path)


def policy_class(name: str, module_path: str) -> Callable[[int], EvictionPolicy]:
    """Return the class called `name` in `module_path`; it makes a policy from a capacity in chunks.

    Raises:
        AttributeError: the module has no such name.
        TypeError: what has that name is not a policy.
    """
    return POLICIES_ELSEWHERE.load(name, module_path)
