"""A store in memory, source and destination at once: for tests, and for results that are wanted as bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

from espan_deploy.errors import InputError
from espan_deploy.stores import APPEARED, Endings, Entry, LeftOut, MadeFrom, State


@dataclass(frozen=True)
class Stored:
    """A file. made_from: None where it is not a result of ours."""

    data: bytes
    made_from: MadeFrom | None = None


class Memory:
    """Files by name, in ``files``. endings: None for all files."""

    location = base = "memory"
    transfers = 1

    def __init__(self, files: dict[str, bytes] | None = None, endings: Endings | None = None) -> None:
        self.files: dict[str, Stored] = {}
        for name, data in (files or {}).items():
            self.put(name, data)
        self.left_out = LeftOut()
        self._endings = endings

    def put(self, name: str, data: bytes) -> None:
        """Put a file there, as somebody else would."""
        self.files[name] = Stored(data)

    @property
    def total(self) -> int:
        """How many files there are to list."""
        return sum(map(self._is_wanted, self.files))

    def size(self, entry: Entry) -> int:
        """As listed."""
        return entry.size or 0

    def entries(self) -> Iterator[Entry]:
        """The files, sorted by name."""
        self.left_out = LeftOut()
        for name in sorted(self.files):
            if self._is_wanted(name):
                yield Entry(name, len(self.files[name].data))
            else:
                self.left_out.ignored[_ending(name)] += 1

    def read(self, entry: Entry) -> bytes:
        """A file's bytes. Raises FileNotFoundError."""
        try:
            return self.files[entry.name].data
        except KeyError:
            raise FileNotFoundError(f"there is no {entry.name}") from None

    def _is_wanted(self, name: str) -> bool:
        return self._endings is None or _ending(name) in self._endings

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None: ...

    def state(self, name: str, made_from: MadeFrom) -> State:
        """What stands under a name."""
        stored = self.files.get(name)
        if stored is None:
            return State.MISSING
        if stored.made_from is None:
            return State.FOREIGN
        return State.CURRENT if stored.made_from == made_from else State.OUTDATED

    def create(self, name: str) -> MemoryPart:
        """A buffer."""
        return MemoryPart(self, name)


class MemoryPart:
    """A result in a buffer of its own."""

    def __init__(self, store: Memory, name: str) -> None:
        self._store, self._name = store, name
        self.file = io.BytesIO()

    def settle(self) -> None:
        """Nothing to move on."""

    def publish(self, made_from: MadeFrom, sha256: str | None, *, replace: bool = True) -> int:
        """Put the contents under their name."""
        data = self.file.getvalue()
        if not replace and self._store.state(self._name, made_from) in (State.OUTDATED, State.FOREIGN):
            raise InputError(APPEARED)
        self._store.files[self._name] = Stored(data, made_from)
        return len(data)

    def discard(self) -> None:
        """Let go of the buffer."""
        self.file.close()


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()
