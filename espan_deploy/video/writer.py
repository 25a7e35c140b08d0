"""Results in order into segments at the destination, and the segments into the film."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from espan_deploy.errors import InputError
from espan_deploy.pipeline.encoded import digest
from espan_deploy.pipeline.picture import Pixels
from espan_deploy.stores import HIDDEN_PREFIX, MadeFrom, Part, State
from espan_deploy.stores.folder import FolderDestination
from espan_deploy.video.codecs import Encoding, SegmentEncoder
from espan_deploy.video.frames import Damage, FilmFrame
from espan_deploy.video.join import Stretch, join
from espan_deploy.video.segments import Segment, SegmentWriter, extradata_sha256, read_segment

LEAST_FRAMES, MOST_FRAMES = 96, 480
"""Of a segment: it ends at the source's next keyframe after the one, so that going on there needs no frame before it,
and at the other at the latest. A killed run computes at most one segment again."""


@dataclass(frozen=True)
class FilmFile:
    """What is to be written, and where. name: of the film at the destination. without: streams left out, by index."""

    name: str
    destination: FolderDestination
    encoding: Encoding
    made_from: MadeFrom
    stretch: Stretch
    without: frozenset[int] = frozenset()

    @property
    def suffix(self) -> str:
        """Of the name: which container."""
        return Path(self.name).suffix.lower()

    def segment_name(self, index: int) -> str:
        """Of a segment at the destination, hidden beside the film."""
        place = Path(self.name)
        return str(place.parent / f"{HIDDEN_PREFIX}-{place.name}.segments" / f"{index:06}")

    def segment_made_from(self, start: int | None) -> MadeFrom:
        """Of the segment whose first frame has this time stamp."""
        return MadeFrom(digest(film=self.made_from.input_sha256, start=start), self.made_from.settings_sha256)

    def path(self, name: str) -> Path:
        """Where something at the destination lies."""
        return self.destination.folder / name

    def remove_segments(self) -> None:
        """Those of this film, whatever settings they were made with."""
        shutil.rmtree(self.path(self.segment_name(0)).parent, ignore_errors=True)


class SegmentedFilm:
    """A film being written; made anew it goes on where an earlier run ended. For one thread.

    start, end: the time stamps that frames are wanted from and up to, None for the film's own. complete: whether no
    frame is wanted. frames, computed: in the finished segments, and those of them that the network saw. size: in bytes.
    damage: what could not be read for them.
    """

    def __init__(self, file: FilmFile) -> None:
        self.file = file
        self.start, self.end = file.stretch.start, file.stretch.end
        self.complete = False
        self.frames = self.computed = self.size = 0
        self.damage = Damage()
        self._paths: list[Path] = []
        self._part: Part | None = None
        self._encoder: SegmentEncoder | None = None
        self._first: FilmFrame | None = None
        self._computed = 0
        self._damage = Damage()
        self._take_finished()

    def _take_finished(self) -> None:
        while not self.complete:
            name = self.file.segment_name(len(self._paths))
            if self.file.destination.state(name, self.file.segment_made_from(self.start)) is not State.CURRENT:
                return
            path = self.file.path(name)
            segment = read_segment(path)
            self._count(path, segment)
            self.start, self.complete = segment.next_pts, segment.next_pts is None

    def _count(self, path: Path, segment: Segment) -> None:
        self._paths.append(path)
        self.frames += len(segment.packets)
        self.computed += segment.computed
        self.size += path.stat().st_size
        self.damage += Damage(**segment.damage)

    def ends_before(self, frame: FilmFrame) -> bool:
        """Whether a segment ends here, so that this frame begins the next one."""
        if self._encoder is None:
            return False
        count = self._encoder.frames
        return count >= MOST_FRAMES or (count >= LEAST_FRAMES and frame.key)

    def add(self, frame: FilmFrame, pixels: Pixels, *, repeats: bool) -> None:
        """The next frame's result, (H, W, 3). repeats: whether it is that of the frame before."""
        if self._encoder is None:
            self._part = self.file.destination.create(self.file.segment_name(len(self._paths)))
            self._encoder = SegmentEncoder(self.file.encoding, SegmentWriter(self._part.file))
            self._first, self._computed, repeats = frame, 0, False
        assert self._part is not None
        self._computed += frame.pixels is not None
        self._damage += frame.damage
        self._encoder.add(None if repeats else pixels, pts=frame.pts, duration=frame.duration)
        self._part.settle()

    def end_segment(self, next_pts: int | None, damage: Damage) -> None:
        """Finish the segment: from here on it survives.

        next_pts: of the frame after it, None at the end. damage: what follows its last frame.
        Raises InputError where there was no frame.
        """
        if self._encoder is None:
            raise InputError("there is no frame in this stretch of the film")
        assert self._part is not None
        assert self._first is not None
        self._encoder.finish()
        segment = Segment(
            self._first.pts,
            next_pts,
            self._computed,
            extradata_sha256(self._encoder.extradata),
            damage=asdict(self._damage + damage),
        )
        self._encoder.writer.finish(segment)
        self._part.publish(self.file.segment_made_from(self.start), None)
        self._part, self._encoder, self._damage = None, None, Damage()
        path = self.file.path(self.file.segment_name(len(self._paths)))
        self._count(path, read_segment(path))
        self.start, self.complete = next_pts, next_pts is None

    def finish(self) -> int:
        """Join the segments and give the film its name; the segments go. Its size in bytes."""
        part = self.file.destination.create(self.file.name)
        try:
            join(
                self.file.encoding,
                self._paths,
                part.file,
                suffix=self.file.suffix,
                stretch=self.file.stretch,
                without=self.file.without,
            )
            size = part.publish(self.file.made_from, None)
        finally:
            part.discard()
        self.file.remove_segments()
        return size

    def abandon(self) -> None:
        """Give up the segment begun; the finished ones stay for the next run."""
        if self._part is not None:
            self._part.discard()
        self._part = self._encoder = None
