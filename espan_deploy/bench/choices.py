"""Everything that ``upscale`` may choose from on this CPU, timed thoroughly; the verdicts are kept for its runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from espan_deploy.backends.candidates import SIDES, size_class
from espan_deploy.backends.choice import Chooser, described
from espan_deploy.backends.model import ModelFile
from espan_deploy.backends.ranking import Row, Table
from espan_deploy.errors import BackendUnavailableError, InputError
from espan_deploy.machine import processor_name, usable_cores

SCHEMA_VERSION = 1


def measure_choices(
    models: Sequence[ModelFile],
    sizes: Sequence[tuple[int, int]],
    threads: int | None,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """One JSON document with a table for every model and size class. sizes: of images; none for every class.

    Raises InputError for an engine's file, which has nothing to choose, BackendUnavailableError without any engine.
    """
    threads = threads or usable_cores()
    sides = sorted({size_class(*size) for size in sizes}) or list(SIDES)
    found = []
    for model in models:
        if model.backend:
            raise InputError(f"{model.path.name} is an engine: there is nothing to choose", hint="give the ONNX file")
        chooser = Chooser(model, "auto", "auto", threads)
        if not chooser.engines:
            raise BackendUnavailableError("no engine for the CPU is installed", hint="pip install 'espan-deploy[cpu]'")
        for side in sides:
            progress(f"{model.path.name}, images of {side}x{side}: about {4 * len(chooser.engines)} s")
            table = chooser.measure(side, None)
            found.append(_choice(model, table, chooser.keep(side, table)))
    return {"schema_version": SCHEMA_VERSION, "processor": processor_name(), "threads": threads, "choices": found}


def _choice(model: ModelFile, table: Table, problem: str) -> dict[str, Any]:
    best = table.best()
    return {
        "model": model.path.name,
        "sha256": model.sha256,
        "table": table.to_json(),
        "best": None if best is None else {"engine": best.engine, "lanes": best.lanes},
        "reason": "nothing can be used" if best is None else described(table, best, time.time()),
        "cache_problem": problem,
    }


def render_choices(document: dict[str, Any]) -> str:
    """As people read it."""
    parts = [_rendered(choice) for choice in document["choices"]]
    return "\n\n".join([*parts, f"{document['processor']}, {document['threads']} threads"])


def _rendered(choice: dict[str, Any]) -> str:
    table, best = Table.from_json(choice["table"]), choice["best"]
    rows: list[tuple[str, ...]] = [("", "at once", "ms", "turns", "dB from fp32", "")]
    rows += [_cells(row, best) for row in table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            (cell.ljust if column in (0, 5) else cell.rjust)(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    kept = choice["cache_problem"]
    foot = f"not kept: {kept}" if kept else f"kept for `upscale` ({table.seconds:.1f} s)"
    return "\n".join([f"{choice['model']}, images of {table.side}x{table.side}", *lines, foot])


def _cells(row: Row, best: dict[str, Any] | None) -> tuple[str, ...]:
    taken = best is not None and (row.engine, row.lanes) == (best["engine"], best["lanes"])
    decibels = "" if row.nearness is None else f"{min(row.nearness.psnr_db.values()):.1f}"
    return (
        row.engine,
        str(row.lanes),
        "-" if row.ms is None else f"{row.ms:.2f}",
        str(row.turns),
        decibels,
        "taken" if taken else row.excluded,
    )
