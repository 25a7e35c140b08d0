"""Pieces of a film that are done: the encoder's packets and their times, as it gave them, one file a piece.

No container holds every codec's packets with every clock's times exactly (Matroska counts milliseconds, NUT has no
ProRes), and these are read by nobody but the join. The packets come first, then a JSON document about them, its length
and a magic word: so a segment is written front to back, and one that was cut off is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"espan-deploy film segment 1\n"

LENGTH_BYTES = 8


@dataclass(frozen=True)
class PacketFacts:
    """One packet; in the file they stand in decoding order. pts, duration: in the film's time base. size: in bytes."""

    pts: int
    duration: int
    key: bool
    size: int


@dataclass(frozen=True)
class Segment:
    """What a segment says of itself.

    first_pts: of its first frame. next_pts: of the frame after it, None at the film's end. computed: frames that the
    network saw; the others repeat their predecessor. extradata_sha256: of the codec's parameter sets, which all
    segments of a film share. damage: what could not be read of it, by the
    names of :class:`~espan_deploy.video.frames.Damage`.
    """

    first_pts: int
    next_pts: int | None
    computed: int
    extradata_sha256: str
    packets: tuple[PacketFacts, ...] = ()
    damage: Mapping[str, Any] = field(default_factory=dict)


class SegmentWriter:
    """Writes packets to a file as they come, and at the end what they are."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.packets: list[PacketFacts] = []
        self.bytes = 0

    def add(self, data: bytes, *, pts: int, duration: int, key: bool) -> None:
        """The next packet in decoding order."""
        self.file.write(data)
        self.packets.append(PacketFacts(pts, duration, key, len(data)))
        self.bytes += len(data)

    def finish(self, segment: Segment) -> None:
        """Write the segment's facts, its packets filled in."""
        document = json.dumps(asdict(replace(segment, packets=tuple(self.packets)))).encode()
        self.file.write(document + len(document).to_bytes(LENGTH_BYTES, "little") + MAGIC)


def read_segment(path: Path) -> Segment:
    """Its facts. Raises ValueError where the file is no whole segment."""
    with path.open("rb") as file:
        tail = LENGTH_BYTES + len(MAGIC)
        size = file.seek(0, 2)
        file.seek(max(0, size - tail))
        end = file.read(tail)
        if not end.endswith(MAGIC):
            raise ValueError(f"{path.name} is no whole film segment")
        length = int.from_bytes(end[:LENGTH_BYTES], "little")
        file.seek(size - tail - length)
        document = json.loads(file.read(length))
    return Segment(**{**document, "packets": tuple(PacketFacts(**entry) for entry in document["packets"])})


def read_packets(path: Path, segment: Segment) -> Iterator[tuple[PacketFacts, bytes]]:
    """Its packets in decoding order; segment: what :func:`read_segment` says of it."""
    with path.open("rb") as file:
        for facts in segment.packets:
            yield facts, file.read(facts.size)


def extradata_sha256(extradata: bytes | None) -> str:
    """Of a codec's parameter sets."""
    return sha256(extradata or b"").hexdigest()
