"""Every kind of store, as the conformance suite needs it. A new kind is one more class here."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from espan_deploy.stores import Destination, Endings, Source
from espan_deploy.stores.folder import FolderDestination, FolderSource
from espan_deploy.stores.memory import Memory

ENDINGS: Endings = frozenset((".png", ".jpg"))


class Place(Protocol):
    """One place, seen as a source, as a destination, and by somebody who does not know us."""

    def source(self) -> Source: ...

    def destination(self) -> Destination:
        """Another view of it each time, as another run would have."""
        ...

    def put(self, name: str, data: bytes) -> None: ...

    def files(self) -> dict[str, bytes]:
        """All there is but our own records."""
        ...


class FolderPlace:
    def __init__(self, root: Path) -> None:
        self.root = root / "place"
        self.root.mkdir()

    def source(self) -> Source:
        return FolderSource(self.root, ENDINGS)

    def destination(self) -> Destination:
        return FolderDestination(self.root)

    def put(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and path.name != ".espan-deploy.jsonl"
        }


class MemoryPlace:
    def __init__(self, _: Path) -> None:
        self.memory = Memory(endings=ENDINGS)

    def source(self) -> Source:
        return self.memory

    def destination(self) -> Destination:
        return self.memory

    def put(self, name: str, data: bytes) -> None:
        self.memory.put(name, data)

    def files(self) -> dict[str, bytes]:
        return {name: stored.data for name, stored in self.memory.files.items()}


@pytest.fixture(params=[FolderPlace, MemoryPlace], ids=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    made: Place = request.param(tmp_path)
    return made
