"""The README's config reference has every field of the document, with its default."""

from __future__ import annotations

import re

from markdown_files import ROOT

from kvtier.factory.config import KvtierConfig
from kvtier.factory.entries import NvmeConfig, PinnedConfig

TIER = re.compile(r"\| \*\*(\w+)\*\* \|")
FIELD = re.compile(r"\| `(\w+)` \| .+ \| `?(.+?)`? \|")
REQUIRED_OF_ONE_DRIVE = (NvmeConfig, "capacity")  # of several, each may have its own


def reference() -> dict[str, dict[str, str]]:
    """Default by field, by the tier that it belongs to; that of the document itself is empty."""
    text = (ROOT / "README.md").read_text().split("## Config reference")[1].split("\n## ")[0]
    fields: dict[str, str] = {}
    found = {"": fields}
    for line in text.splitlines():
        if tier := TIER.match(line):
            fields = found[tier[1]] = {}
        elif field := FIELD.fullmatch(line):
            fields[field[1]] = field[2]
    return found


def defaults(model: type[PinnedConfig] | type[NvmeConfig] | type[KvtierConfig]) -> dict[str, str]:
    return {
        name: "required"
        if field.is_required() or (model, name) == REQUIRED_OF_ONE_DRIVE
        else NOTHING.get(name) or _shown(field.get_default(call_default_factory=True))
        for name, field in model.model_fields.items()
        if name not in ("type", "module_path", "tiers")
    }


NOTHING = {"trace": "none"}  # of the fields without a default: what then is not done


def _shown(default: object) -> str:
    if isinstance(default, float):
        return f"{default:g}"
    return "any" if default is None else str(default)


def test_the_reference_has_the_fields_and_defaults_of_the_code() -> None:
    assert reference() == {
        "": defaults(KvtierConfig),
        "pinned": defaults(PinnedConfig),
        "nvme": defaults(NvmeConfig),
    }
