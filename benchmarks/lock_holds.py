"""How long each stage of an ``upscale`` holds the interpreter's lock: one run, every hold of it timed.

LD_PRELOAD=lock_holds.so python benchmarks/lock_holds.py OUT.json LIBRARY upscale PHOTOS OUTPUT [OPTIONS]

LIBRARY is that of LD_PRELOAD, made of ``lock_holds.c``; ``benchmarks/host.py`` makes it and calls this. Start-up does
not count: only what happens while the stages are at work. For each stage: holds an image, milliseconds of them an image
and the longest, once on the wall and once of the holder's own processor time. The first counts what the scheduler does
to the holder as well, the second is what the code does.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from espan_deploy.cli.main import main as command
from espan_deploy.pipeline.run import Run

LABELS = 8
STAGES = ("other", "decode", "infer", "encode", "publish")
FIELDS = ("holds", "wall", "cpu", "longest_wall", "longest_cpu", "over")


def labelled(method: Callable[..., Any], library: ctypes.PyDLL, number: int) -> Callable[..., Any]:
    """A stage's loop that says whose thread it is in."""

    @wraps(method)
    def loop(*arguments: Any) -> Any:
        library.lock_holds_label(number)
        return method(*arguments)

    return loop


def figures(raw: ctypes.Array[ctypes.c_longlong], images: int) -> dict[str, dict[str, float]]:
    """By stage, of the library's figures."""
    found = {}
    for number, stage in enumerate(STAGES):
        values = dict(zip(FIELDS, raw[number * len(FIELDS) : (number + 1) * len(FIELDS)], strict=True))
        found[stage] = {
            "holds_an_image": values["holds"] / images,
            "wall_ms_an_image": values["wall"] / images / 1e6,
            "cpu_ms_an_image": values["cpu"] / images / 1e6,
            "longest_wall_ms": values["longest_wall"] / 1e6,
            "longest_cpu_ms": values["longest_cpu"] / 1e6,
            "over_1_ms": values["over"],
        }
    return found


def main() -> None:
    """Run the command, and write the figures as JSON."""
    output, path, *arguments = sys.argv[1:]
    library = ctypes.PyDLL(path)
    for number, stage in enumerate(STAGES[1:], 1):
        name = f"_{stage}_loop"
        setattr(Run, name, labelled(getattr(Run, name), library, number))
    execute = Run.execute

    def timed(run: Run, *given: Any) -> None:
        library.lock_holds_begin()
        execute(run, *given)
        raw = (ctypes.c_longlong * (LABELS * len(FIELDS)))()
        library.lock_holds_end(raw)
        Path(output).write_text(json.dumps(figures(raw, run.finished)))

    Run.execute = timed  # type: ignore[method-assign]
    sys.argv = ["espan-deploy", *arguments]
    command()


if __name__ == "__main__":
    main()
