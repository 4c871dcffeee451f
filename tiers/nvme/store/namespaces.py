"""Namespaces: what makes two chunks' bytes interchangeable, and the file in which each is written out.

A namespace is the set of chunks of one identity. Its digest covers every field, so a changed field is
another namespace and never a wrong hit. The fields themselves are kept beside the chunks, so that a
message can name the field that changed.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...base import Failure
from ...errors import IdentityMismatch
from ..format.checksum import document_checksum
from ..io.files import Files
from ..io.refusal import failure_of

CHECKSUM = "checksum"  # the field of a namespace's file that says whether the others are as they were written
ONE_PROCESS = "process"  # the field of a namespace that nobody but one process ever uses


@dataclass(frozen=True, slots=True)
class Identity:
    """The fields that decide whether a stored chunk may be used, in order.

    Attributes:
        fields: value by field; every one is part of the digest, and so is their order.
        name: what listings call the namespace; not part of the digest. The "model" field if not given.
    """

    fields: Mapping[str, str]
    name: str = ""

    @property
    def digest(self) -> bytes:
        """32 bytes that name the namespace."""
        text = json.dumps(list(self.fields.items()), ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(b"kvtier identity 1\0" + text.encode()).digest()

    @property
    def label(self) -> str:
        """What to call the namespace in a sentence."""
        return self.name or self.fields.get("model", "") or self.digest.hex()[:12]

    @property
    def is_of_one_process(self) -> bool:
        """Whether the namespace is worth nothing once the process that made it has ended."""
        return ONE_PROCESS in self.fields

    def of_one_process(self) -> Identity:
        """The same, shared with nobody: for weights that no field can name."""
        return Identity({**self.fields, **one_process()}, self.name)

    def differences(self, other: Identity) -> tuple[str, ...]:
        """One part of a sentence for each field in which `other` differs; empty when all are equal."""
        named = dict.fromkeys((*self.fields, *other.fields))
        return tuple(
            f"{field} is {self.fields.get(field)!r} here and {other.fields.get(field)!r} there"
            for field in named
            if self.fields.get(field) != other.fields.get(field)
        )

    def to_json(self) -> dict[str, object]:
        return {"name": self.label, "fields": list(map(list, self.fields.items()))}

    @staticmethod
    def from_json(document: object) -> Identity:
        """The inverse of `to_json`.

        Raises:
            ValueError: the document is not one.
        """
        if not isinstance(document, dict):
            raise ValueError("an identity is an object")
        name, fields = document.get("name"), document.get("fields")
        if not isinstance(name, str) or not isinstance(fields, list):
            raise ValueError("an identity has a name and a list of fields")
        return Identity({str(field): str(value) for field, value in fields}, name)


def one_process() -> dict[str, str]:
    """The field that makes a namespace this process' own, until it ends."""
    return {ONE_PROCESS: str(uuid.uuid4())}


class NamespaceFile(NamedTuple):
    """A namespace as its file has it; `scope` may lag behind the index, never run ahead of it."""

    identity: Identity
    scope: int
    epoch: int


class Namespaces:
    """The namespaces' files in a store. Blocking; any thread."""

    def __init__(self, files: Files, folder: Path) -> None:
        self._files, self._folder = files, folder

    def path(self, digest: bytes) -> Path:
        return self._folder / f"{digest.hex()}.json"

    def write(self, digest: bytes, namespace: NamespaceFile) -> None:
        """Keep a namespace's identity and scope, durably."""
        document = {**namespace.identity.to_json(), "scope": namespace.scope, "epoch": namespace.epoch}
        document[CHECKSUM] = document_checksum(document)
        self._files.write_small(self.path(digest), json.dumps(document, indent=1).encode())

    def read(self) -> dict[bytes, NamespaceFile]:
        """Every namespace whose file can be read and is not damaged.

        Raises:
            OSError: the system has no descriptors or memory left; all may be well.
        """
        found = {}
        for path in sorted(self._folder.glob("*.json")):
            namespace = _namespace(path)
            if namespace is not None:
                found[bytes.fromhex(path.stem)] = namespace
        return found

    def taken_bytes(self) -> int:
        """The most that one of the files takes, as `du` counts."""
        states = (path.stat() for path in self._folder.glob("*.json"))
        return max((state.st_blocks * 512 for state in states), default=0)

    def compared(self, identity: Identity) -> NamespaceFile | None:
        """Read what is on the drive under this identity's digest, None where nothing is yet.

        Raises:
            IdentityMismatch: it names other fields.
        """
        path = self.path(identity.digest)
        namespace = _namespace(path) if path.exists() else None
        if namespace is None:
            return None
        differences = identity.differences(namespace.identity)
        if differences or list(identity.fields) != list(namespace.identity.fields):
            what = "; ".join(differences) or "the order of the fields differs"
            raise IdentityMismatch("nvme", f"{path} was written for another identity: {what}")
        return namespace

    def remove(self, digest: bytes) -> None:
        self._files.unlink(self.path(digest))


def _namespace(path: Path) -> NamespaceFile | None:
    """What the file says; None where it cannot be read or is damaged: it is then as good as lost.

    Raises:
        OSError: the system has no descriptors or memory left.
    """
    try:
        document = json.loads(path.read_text())
        bytes.fromhex(path.stem)
        if document.pop(CHECKSUM) != document_checksum(document):
            return None
        return NamespaceFile(Identity.from_json(document), document["scope"], document["epoch"])
    except OSError as error:
        if failure_of(error) is Failure.NO_RESOURCES:
            raise
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
