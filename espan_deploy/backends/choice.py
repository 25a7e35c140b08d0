"""Which engine, precision and split of the cores a job gets: measured, known from an earlier time, or a safe guess.

On a GPU, and where engine and precision were asked for, there is nothing to measure. Verdicts are kept for each
processor, number of threads, engines and their versions, model and size class, and age out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any, Literal

from espan_deploy.backends import Backend, Choice
from espan_deploy.backends.candidates import (
    SIDES,
    Candidate,
    candidates,
    probe_shape,
    probes,
    size_class,
    usable_on_cpu,
)
from espan_deploy.backends.kept import Finding, WallClock, keep, recall
from espan_deploy.backends.model import ModelFile
from espan_deploy.backends.precision import choose_precision
from espan_deploy.backends.ranking import PIXELS_PER_CALL, Ranking, Row, Table
from espan_deploy.timing import Clock

VERSION = 1
"""Goes up when what is measured, or how, changes."""

MAX_AGE_S = 30 * 24 * 3600.0
"""Drivers, kernels and firmware change without a trace in the key."""

MAX_SHARE = 0.03
"""Of the job's expected time that measuring may take, besides opening and trying two engines."""

MAX_SECONDS = 2.0

LEAST_CALLS = 350
"""Of probes, that a job comes to at least, or it is not measured: opening two engines and holding their numbers
against each other takes as long as some fifteen of them."""

ALONE_SECONDS = 0.5
"""More than an engine alone takes to open and to be timed; what took longer was chance, and is tried again."""

TURNS = 7

THOROUGH_TURNS = 25
"""For the whole table, which nobody waits for a job for."""

THOROUGH_SECONDS = 20.0

Basis = Literal["asked for", "measured", "known", "guess"]


@dataclass(frozen=True)
class Workload:
    """What there is to do. pixels: of all images, low-resolution. height, width: of a usual one."""

    pixels: int
    height: int
    width: int


@dataclass(frozen=True)
class Decision:
    """What a job runs in, and why.

    lanes: images at once. basis: what the decision rests on. table: what was measured, now or at ``measured_at``
    (seconds since 1970). problem: of the cache, or "".
    """

    backend: Backend
    precision: str
    lanes: int
    basis: Basis
    reason: str
    table: Table | None = None
    measured_at: float | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data for reports."""
        return {
            "basis": self.basis,
            "reason": self.reason,
            "lanes": self.lanes,
            "measured_at": None if self.measured_at is None else _utc(self.measured_at).isoformat(timespec="seconds"),
            "table": None if self.table is None else self.table.to_json(),
            "cache_problem": self.problem,
        }


def decide(
    model: ModelFile,
    choice: Choice,
    *,
    engine: str,
    precision: str,
    threads: int,
    at_once: int | None,
    workload: Workload | None,
    clock: Clock = time.perf_counter,
    wall_clock: WallClock = time.time,
) -> Decision:
    """What a job is to run in.

    choice: of :func:`backends.choose`. engine, precision: as asked for, or "auto". at_once: images or tiles that there
    are to work on at once, None for many. workload: None where it is not known; then nothing is measured.
    Raises BackendUnavailableError where the backend does not have what was asked for.
    """
    most = max(1, min(threads, at_once or threads, choice.backend.max_lanes))
    if model.backend or not choice.backend.on_cpu:
        verdict = choose_precision(choice.backend, model, precision, threads=threads)
        return Decision(choice.backend, verdict.precision, most, "asked for", f"{choice.reason}; {verdict.reason}")
    chooser = Chooser(model, engine, precision, threads, clock=clock, wall_clock=wall_clock)
    if len(chooser.engines) < 2:
        asked = "asked for" if "auto" not in (engine, precision) else "there is nothing else to choose from"
        only = [(each.backend, each.precision) for each in chooser.engines] or [(choice.backend, precision)]
        return Decision(*only[0], most, "asked for", asked)
    return chooser.decide(workload, most)


class Chooser:
    """The choice for one model. engine, precision: "auto", or what is asked for."""

    def __init__(
        self,
        model: ModelFile,
        engine: str,
        precision: str,
        threads: int,
        *,
        usable: Sequence[Backend] | None = None,
        clock: Clock = time.perf_counter,
        wall_clock: WallClock = time.time,
    ) -> None:
        usable = usable_on_cpu() if usable is None else usable
        if engine != "auto":
            from espan_deploy.backends import get

            usable = [each for each in usable if each.name == engine] or [get(engine)]
        self.model, self.threads = model, threads
        self.engines: list[Candidate] = candidates([model], usable, precision)
        self._clock, self._wall_clock = clock, wall_clock

    @property
    def most_lanes(self) -> int:
        """What is measured at most."""
        return min(self.threads, max(each.backend.max_lanes for each in self.engines))

    def decide(self, workload: Workload | None, most: int) -> Decision:
        """For a job with up to so many images at once."""
        side = SIDES[-1] if workload is None else size_class(workload.height, workload.width)
        known, problem = self.known(side)
        usable = known is not None and known[0].compares
        if known is not None and usable and not self._worth_measuring(known[0], workload):
            return self._decision("known", known, most, problem)
        if workload is not None and self._worth_measuring(known[0] if known else None, workload):
            table = self.measure(side, workload)
            known = table, self._wall_clock()
            if table.best() is not None:
                problem = self.keep(side, table) or problem
            if table.compares and table.best() is not None:
                return self._decision("measured", known, most, problem)
        best = known if usable else self._best_known(side)
        if best is not None:
            return self._decision("known", best, most, problem)
        why = "so small a job is not measured"
        if workload is None:
            why = "nothing was measured so far"
        elif known is not None:
            why = "there was no time to compare"
        reason = f"a safe guess: {why}; `espan-deploy bench --choose` measures"
        return Decision(self.engines[0].backend, self.engines[0].precision, most, "guess", reason, problem=problem)

    def known(self, side: int, max_age_s: float | None = MAX_AGE_S) -> tuple[tuple[Table, float] | None, str]:
        """The table kept for a size class and when it was measured, and what is wrong with what is kept, or ""."""
        recalled = recall(self._key(side), max_age_s=max_age_s, clock=self._wall_clock)
        if recalled.finding is None:
            return None, recalled.problem
        table = _table(recalled.finding, {each.engine for each in self.engines})
        return (None, "what is kept is no table") if table is None else ((table, recalled.finding.at), "")

    def measure(self, side: int, workload: Workload | None) -> Table:
        """Now. workload: measured within its budget; None for everything, thoroughly."""

        def deadline(ms: float | None) -> float:
            if workload is None:
                return THOROUGH_SECONDS
            return 0.0 if ms is None else _budget_s(workload, ms)

        turns = THOROUGH_TURNS if workload is None else TURNS
        shape, make_probes = probe_shape(self.model, side), partial(probes, self.model, side)
        ranking = Ranking(shape, make_probes, self.threads, clock=self._clock, deadline=deadline)
        return ranking.measure(self.engines, self.most_lanes, everything=workload is None, turns=turns)

    def keep(self, side: int, table: Table) -> str:
        """For later runs. Returns why that was not possible, or ""."""
        return keep(self._key(side), table.to_json(), clock=self._wall_clock)

    def _worth_measuring(self, known: Table | None, workload: Workload | None) -> bool:
        """Whether a job pays for measuring at all, or for what an earlier one had no time for."""
        if workload is None or workload.pixels < LEAST_CALLS * PIXELS_PER_CALL:
            return False
        if known is None:
            return True
        best = known.best()
        if known.complete or best is None or best.ms is None:
            return False
        spent = known.seconds if known.compares else min(known.seconds, ALONE_SECONDS)
        return _budget_s(workload, best.ms) > 1.5 * spent

    def _best_known(self, side: int) -> tuple[Table, float] | None:
        """Of any age, of this size class or another."""
        for each in sorted(SIDES, key=lambda other: abs(other - side)):
            known, _ = self.known(each, max_age_s=None)
            if known is not None and known[0].compares:
                return known
        return None

    def _decision(self, basis: Basis, known: tuple[Table, float], most: int, problem: str) -> Decision:
        table, at = known
        best = table.best()
        assert best is not None
        chosen = next(each for each in self.engines if each.engine == best.engine)
        lanes = min(most, _lanes(table, best, self.most_lanes))
        reason = described(table, best, at)
        return Decision(chosen.backend, chosen.precision, lanes, basis, reason, table, at, problem)

    def _key(self, side: int) -> list[str]:
        engines = (f"{each.backend.name} {each.backend.version} {each.precision}" for each in self.engines)
        return ["choice", str(VERSION), *self.model.sha256s, *engines, f"{self.threads} threads", f"side {side}"]


def described(table: Table, best: Row, at: float) -> str:
    """In one line: what was taken, what else there was, when it was measured, and how near it is to FP32."""
    others = [_short(row, best) for engine, row in table.by_engine().items() if engine != best.engine]
    beside = f" ({', '.join(others)})" if others else ""
    when = f"measured on this machine on {_utc(at).date().isoformat()}"
    parts = [f"{best.ms:.1f} ms for {table.side}x{table.side}{beside}, {when}"]
    if best.nearness is not None and not best.engine.endswith("fp32"):
        parts.append(str(best.nearness))
    return "; ".join(parts)


def _short(row: Row, best: Row) -> str:
    backend, precision = row.engine.split()
    name = precision if backend == best.engine.split()[0] else row.engine
    if row.excluded:
        return f"{name}: {row.excluded}"
    return f"{name} {row.ms:.1f}"


def _lanes(table: Table, best: Row, usual: int) -> int:
    """As measured; as many as there are threads where only one split of the cores had its turn."""
    timed = {row.lanes for row in table.rows if row.engine == best.engine and row.eligible}
    return best.lanes if len(timed) > 1 else usual


def _budget_s(workload: Workload, ms: float) -> float:
    """For measuring, where a call takes so many milliseconds."""
    expected = workload.pixels / PIXELS_PER_CALL * ms / 1e3
    return min(MAX_SECONDS, MAX_SHARE * expected)


def _table(finding: Finding, engines: set[str]) -> Table | None:
    """What is kept, where it is a table of these engines with something to choose."""
    try:
        table = Table.from_json(finding.value)
    except (KeyError, TypeError, ValueError):
        return None
    best = table.best()
    return table if best is not None and best.engine in engines else None


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, timezone.utc)
