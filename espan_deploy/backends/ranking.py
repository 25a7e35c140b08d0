"""How long every candidate takes on this machine, and which of them that speaks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any

from espan_deploy.backends.base import Images
from espan_deploy.backends.candidates import PROBE_SIDE, Candidate, Opened, lane_counts
from espan_deploy.backends.precision import EXACT, Nearness, least_db, nearness
from espan_deploy.errors import BackendError
from espan_deploy.timing import Clock, Series, Stop, WarmUpLimits, take_turns, warm_up_call

TIE = 0.03
"""A later candidate must take so much less time than an earlier one to be preferred: noise must not decide."""

HOPELESS = 1.5
"""Times the fastest. What is slower in two calls takes no turns, and its other splits of the cores are not tried."""

TURNS_SHARE = 0.5
"""Of the time that is left, for turns: the rest is for the next split of the cores."""

LOADED_SECONDS = 1.0
"""Without a second candidate nothing would be found out, ever, of a network so small that its jobs are short."""

PIXELS_PER_CALL = PROBE_SIDE * PROBE_SIDE
"""Of a probe, whatever its size class."""

Deadline = Callable[[float | None], float]
"""Seconds since the start at which to end, for the fastest call's milliseconds an image so far."""

CALLS_ONLY_ONCE = WarmUpLimits(runs=0)
"""Every probe once: what is compiled then stays compiled."""


@dataclass(frozen=True)
class Row:
    """One candidate's result.

    ms: of one call's images, the median over its turns, or its last warm-up call where it was hopeless; None where it
    was not timed. turns: how often it was timed. excluded: why it cannot be chosen, or "".
    """

    engine: str
    lanes: int
    ms: float | None = None
    turns: int = 0
    nearness: Nearness | None = None
    excluded: str = ""

    @property
    def name(self) -> str:
        """As :attr:`Candidate.name`."""
        return f"{self.engine}, {self.lanes} at once"

    @property
    def eligible(self) -> bool:
        """Whether it may be chosen."""
        return self.ms is not None and not self.excluded


@dataclass(frozen=True)
class Table:
    """What was measured. side: of the images. seconds: what it took. complete: whether everything had its turn."""

    rows: tuple[Row, ...]
    side: int
    seconds: float
    complete: bool

    def best(self) -> Row | None:
        """Of the fastest engine that may be chosen, or of an earlier one that is as fast within TIE, the fastest row.

        Of its splits of the cores that are as fast within TIE, the one with most images at once: more of what happens
        between engine calls overlaps with them.
        """
        timed = [(row, row.ms) for row in self.rows if row.eligible and row.ms is not None]
        if not timed:
            return None
        engine = _as_fast_as_the_least(timed)[0].engine
        splits = _as_fast_as_the_least([(row, ms) for row, ms in timed if row.engine == engine])
        return max(splits, key=lambda row: row.lanes)

    @property
    def compares(self) -> bool:
        """Whether it may become a verdict: two engines were timed, or all that there are had their turn."""
        return self.complete or len({row.engine for row in self.rows if row.ms is not None}) > 1

    def by_engine(self) -> dict[str, Row]:
        """The best row of each engine and precision, the excluded ones too."""
        found: dict[str, Row] = {}
        for row in self.rows:
            other = found.get(row.engine)
            if other is None or (row.ms is not None and (other.ms is None or row.ms < other.ms)):
                found[row.engine] = row
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = [
            asdict(replace(row, nearness=None)) | {"psnr_db": row.nearness and dict(row.nearness.psnr_db)}
            for row in self.rows
        ]
        return {"side": self.side, "seconds": self.seconds, "complete": self.complete, "rows": rows}

    @classmethod
    def from_json(cls, document: Any) -> Table:
        """As kept. Raises KeyError, TypeError or ValueError for what is none."""
        rows = tuple(
            Row(
                str(row["engine"]),
                int(row["lanes"]),
                None if row["ms"] is None else float(row["ms"]),
                int(row["turns"]),
                _nearness(row),
                str(row["excluded"]),
            )
            for row in document["rows"]
        )
        return cls(rows, int(document["side"]), float(document["seconds"]), bool(document["complete"]))


def _nearness(row: Any) -> Nearness | None:
    """Of a row as kept."""
    precision = str(row["engine"]).split()[-1]
    return None if row["psnr_db"] is None else Nearness.from_json(row["psnr_db"], precision)


def _as_fast_as_the_least(timed: Sequence[tuple[Row, float]]) -> list[Row]:
    least = min(ms for _, ms in timed)
    return [row for row, ms in timed if ms * (1 - TIE) <= least]


class Ranking:
    """Times candidates until ``deadline`` tells that the time is up.

    Wrong numbers disqualify before time counts: every candidate's first results are held against the first FP32
    engine's, a reduced precision's on every probe, another FP32 engine's on the photograph (on a page of text some
    networks amplify the order of additions without bound). Where a model is there in INT8 only, the first engine's
    results are what the others' are held against, on the photograph.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        make_probes: Callable[[], Sequence[Images]],
        threads: int,
        *,
        clock: Clock,
        deadline: Deadline,
    ) -> None:
        """shape: of each of the probes.

        Another precision of the engine that is loaded already is tried in spite of it, within LOADED_SECONDS.
        """
        self._shape, self._make_probes, self._threads = shape, make_probes, threads
        self._clock, self._deadline = clock, deadline
        self._begun = clock()
        self._opened: dict[str, Opened] = {}
        self._rows: dict[str, Row] = {}
        self._exact_precision = EXACT
        self._exact: list[Images | None] | None = None
        self._complete = True

    def measure(self, engines: Sequence[Candidate], most_lanes: int, *, everything: bool, turns: int) -> Table:
        """Time all engines with one lane, then with more lanes those not far behind. everything: leave none out."""
        if all(each.precision != EXACT for each in engines):
            self._exact_precision = engines[0].precision
        try:
            for lanes in lane_counts(most_lanes):
                tried = [replace(each, lanes=lanes) for each in engines if everything or self._hopeful(each, lanes)]
                self._warm_up(tried)
                self._take_turns(tried, everything=everything, turns=turns)
        finally:
            for opened in self._opened.values():
                opened.close()
        return Table(tuple(self._rows.values()), self._shape[1], self._clock() - self._begun, self._complete)

    @cached_property
    def _probes(self) -> Sequence[Images]:
        return self._make_probes()

    @property
    def _left(self) -> float:
        return self._deadline(self._least()) - (self._clock() - self._begun)

    def _left_for(self, candidate: Candidate) -> float:
        loaded = {row.engine.split()[0] for row in self._rows.values() if row.eligible}
        if len(self._rows) == 1 and candidate.backend.name in loaded:
            return max(self._left, LOADED_SECONDS - (self._clock() - self._begun))
        return self._left

    def _least(self) -> float | None:
        return min((row.ms for row in self._rows.values() if row.eligible and row.ms is not None), default=None)

    def _hopeful(self, candidate: Candidate, lanes: int) -> bool:
        """Whether a split of the cores is worth trying: its engine is not far behind with one lane."""
        if lanes == 1:
            return True
        alone = replace(candidate, lanes=1)
        row = self._rows.get(alone.name)
        return row is not None and row.eligible and not self._hopeless(alone)

    def _warm_up(self, tried: Sequence[Candidate]) -> None:
        cost = 0.0
        ready: dict[str, Opened | BackendError] = {}
        for candidate in tried:
            if self._rows and candidate.name not in ready and self._left_for(candidate) < cost:
                self._rows[candidate.name] = Row(candidate.engine, candidate.lanes, excluded="there was no time for it")
                self._complete = False
                continue
            begun = self._clock()
            if candidate.name not in ready:
                ready |= self._ready([candidate] if self._rows else _of_first_engine(tried))
            self._rows[candidate.name] = self._first(candidate, ready[candidate.name])
            cost = max(cost, self._clock() - begun)

    def _ready(self, wanted: Sequence[Candidate]) -> dict[str, Opened | BackendError]:
        """Opened and run once, side by side: compiling keeps one core busy, and the job waits for it.

        Compiling leaves the interpreter alone, so the probes are made meanwhile, and not before.
        """
        with ThreadPoolExecutor(len(wanted)) as pool:
            opening = {each.name: pool.submit(Opened, each, self._threads) for each in wanted}
            wait(opening.values())
            running = {name: pool.submit(self._run_once, name, opened) for name, opened in opening.items()}
            _ = self._probes
        return {name: _failure(run) or self._opened[name] for name, run in running.items()}

    def _run_once(self, name: str, opening: Future[Opened]) -> None:
        opened = self._opened[name] = opening.result()
        opened.prepare(self._shape)
        opened.call(self._probes[0])

    def _first(self, candidate: Candidate, opened: Opened | BackendError) -> Row:
        if isinstance(opened, BackendError):
            return Row(candidate.engine, candidate.lanes, excluded=opened.message)
        try:
            warm_up = warm_up_call(opened.call, self._probes[1:], CALLS_ONLY_ONCE, self._clock)
        except BackendError as exc:
            return Row(candidate.engine, candidate.lanes, excluded=exc.message)
        if self._exact is None and candidate.precision == self._exact_precision:
            self._exact = opened.first_results
        near = None if self._exact is None else nearness(self._exact, opened.first_results, candidate.precision)
        row = Row(candidate.engine, candidate.lanes, warm_up.last_ms / candidate.lanes, 0, near)
        return replace(row, excluded=_wrong(candidate.precision, near, self._exact_precision))

    def _take_turns(self, tried: Sequence[Candidate], *, everything: bool, turns: int) -> None:
        """Those not far behind, in two calls: that one of them was slow by chance must come to light."""
        eligible = [each for each in tried if self._rows[each.name].eligible]
        for each in eligible:
            if not everything and self._hopeless(each):
                self._call_again(each)
        calls: Mapping[str, Opened] = {
            each.name: self._opened[each.name] for each in eligible if everything or not self._hopeless(each)
        }
        if len(calls) < 2 and not everything and self._left <= 0:
            return
        stop = Stop(turns, max(0.0, self._left) * TURNS_SHARE / max(1, len(calls)))
        measured = take_turns(
            {name: opened.call for name, opened in calls.items()}, self._probes[:1], stop, clock=self._clock
        )
        for name, series in measured.series.items():
            self._rows[name] = replace(self._rows[name], ms=_median(series, calls[name]), turns=measured.rounds)

    def _hopeless(self, candidate: Candidate) -> bool:
        return (self._rows[candidate.name].ms or 0.0) > HOPELESS * (self._least() or 0.0)

    def _call_again(self, candidate: Candidate) -> None:
        row, call = self._rows[candidate.name], self._opened[candidate.name].call
        again = warm_up_call(call, self._probes[:1], CALLS_ONLY_ONCE, self._clock).last_ms / candidate.lanes
        self._rows[candidate.name] = replace(row, ms=min(again, row.ms or again))


def _failure(run: Future[None]) -> BackendError | None:
    """Why the engine cannot be used, or None. Raises what else went wrong."""
    try:
        run.result()
    except BackendError as exc:
        return exc
    return None


def _of_first_engine(tried: Sequence[Candidate]) -> Sequence[Candidate]:
    """The first candidate, and the others of its backend, which is loaded with it: two precisions, and INT8."""
    return [each for each in tried if each.backend is tried[0].backend]


def _median(series: Series, opened: Opened) -> float:
    return median(series.latencies_s) * 1e3 / opened.candidate.lanes


def _wrong(precision: str, near: Nearness | None, exact: str) -> str:
    """Why a candidate's numbers disqualify it, or "". Without an exact result to hold them against, all do."""
    if near is None:
        return f"there is no {exact} result to hold it against"
    if precision == exact:
        photograph, db = next(iter(near.psnr_db.items()))
        return "" if db >= least_db(precision) else f"{db:.1f} dB from the first engine on a made-up {photograph}"
    return "" if near.passes else f"it is {near}"
