"""One part of a division of files among runs that know nothing of each other, as job arrays have them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The files that run ``number`` of ``of`` does, from 1.

    Told by each name alone: whatever else is listed, in whatever order and on whichever machine, it falls to the same
    run. Names are spread evenly (SHA-256), however they are numbered.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ValueError(f"{self} is no part of {self.of}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def holds(self, name: str) -> bool:
        """Whether a file is among them."""
        digest = hashlib.sha256(os.fsencode(name.replace(os.sep, "/"))).digest()
        return int.from_bytes(digest[:8], "big") % self.of == self.number - 1
