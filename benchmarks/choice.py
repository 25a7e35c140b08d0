"""Does `upscale` take the best of what it may choose from? Auto and every forced choice, in turn, on photographs.

python benchmarks/choice.py --photos DIR [--model espan.onnx] [--small] [--count 30] [--rounds 3]

Whole processes are timed, start-up included. "auto, unknown" finds no verdict and measures; "auto, known" finds the one
that a run before has left. What a run found out about compiling is kept for all. A forced choice that auto may not
take, for its numbers, is shown and does not count as the best. Core-seconds are what the processors worked: where
others use the machine too, they say more than seconds. --small: a made-up network a fifth of ESPAN's size, too (needs
the extra `export`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from espan_deploy.backends.candidates import candidates, usable_on_cpu  # noqa: E402
from espan_deploy.backends.model import read_model  # noqa: E402
from espan_deploy.files import CACHE_VARIABLE  # noqa: E402
from espan_deploy.models import default_model  # noqa: E402

UNKNOWN, KNOWN = "auto, unknown", "auto, known"

SMALL_CHANNELS = 14
"""Of ESPAN's 32: a fifth of its multiply-adds."""

ALLOWED = 1.05
"""Times the best choice that auto may take."""


class Contest:
    """One model on one folder of photographs. scratch: for what is written, and the cache."""

    def __init__(self, model: Path, photos: Path, scratch: Path, threads: int | None) -> None:
        self.model, self.photos, self.scratch = model, photos, scratch
        self.cache = scratch / f"cache-{model.stem}"
        self.threads = () if threads is None else ("--threads", str(threads))
        self.forced = [each.engine for each in candidates([read_model(model)], usable_on_cpu(), "auto")]
        self.seconds: dict[str, list[float]] = {name: [] for name in (UNKNOWN, KNOWN, *self.forced)}
        self.core_seconds: dict[str, list[float]] = {name: [] for name in self.seconds}
        self.engines: dict[str, dict[str, Any]] = {}

    def round(self) -> None:
        """Every contender once."""
        for name in self.seconds:
            if name == UNKNOWN:
                self.forget_verdicts()
            seconds, core_seconds = self.timed(name)
            self.seconds[name].append(seconds)
            self.core_seconds[name].append(core_seconds)

    def timed(self, name: str) -> tuple[float, float]:
        """Seconds and core-seconds of one run."""
        output = self.scratch / "output"
        engine, precision = ("auto", "auto") if name in (UNKNOWN, KNOWN) else name.split()
        choice = ("--engine", engine, "--precision", precision, "--model", self.model, *self.threads)
        command = [sys.executable, "cli.py", "upscale", self.photos, output, *choice, "--format", "png", "--json"]
        start, worked = time.perf_counter(), children_seconds()
        done = subprocess.run(
            list(map(str, command)),
            check=True,
            cwd=ROOT,
            capture_output=True,
            env={**os.environ, CACHE_VARIABLE: str(self.cache)},
        )
        seconds, core_seconds = time.perf_counter() - start, children_seconds() - worked
        shutil.rmtree(output)
        self.engines[name] = json.loads(done.stdout)["engine"]
        return seconds, core_seconds

    def forget_verdicts(self) -> None:
        """Choices, and nothing else that was found out."""
        for path in (self.cache / "measured").glob("*.json"):
            if json.loads(path.read_text())["key"][0] == "choice":
                path.unlink()

    def report(self) -> dict[str, Any]:
        """Medians, and how auto stands to the best choice that it may take."""
        medians = {name: statistics.median(values) for name, values in self.seconds.items()}
        rows = (self.engines[KNOWN]["choice"]["table"] or {"rows": []})["rows"]
        barred = {row["engine"]: row["excluded"] for row in rows if row["psnr_db"] and row["excluded"]}
        best = min((name for name in self.forced if name not in barred), key=lambda name: medians[name])
        return {
            "model": self.model.name,
            "seconds": self.seconds,
            "core_seconds": self.core_seconds,
            "medians": medians,
            "core_medians": {name: statistics.median(values) for name, values in self.core_seconds.items()},
            "best": best,
            "auto_over_best": {name: medians[name] / medians[best] for name in (UNKNOWN, KNOWN)},
            "barred": barred,
            "taken": {name: self.engines[name]["chosen_because"] for name in (UNKNOWN, KNOWN)},
        }


def show(report: dict[str, Any]) -> None:
    """As people read it."""
    print(f"\n{report['model']}")
    for name, seconds in report["medians"].items():
        ratio = seconds / report["medians"][report["best"]]
        spread = f"{min(report['seconds'][name]):.2f} to {max(report['seconds'][name]):.2f}"
        core_seconds = report["core_medians"][name]
        core_ratio = core_seconds / report["core_medians"][report["best"]]
        print(
            f"  {name:<18}{seconds:8.2f} s ({spread}){ratio:7.3f} of the best;"
            f"{core_seconds:8.2f} core-seconds,{core_ratio:7.3f}  {report['barred'].get(name, '')}"
        )
    for name, reason in report["taken"].items():
        print(f"  {name}: {reason}")
    within = all(ratio <= ALLOWED for ratio in report["auto_over_best"].values())
    print(f"  auto is {'within' if within else 'NOT within'} {ALLOWED - 1:.0%} of {report['best']}")


def children_seconds() -> float:
    """That all processes started here, and ended, have kept processors busy."""
    times = os.times()
    return times.children_user + times.children_system


def small_model(scratch: Path) -> Path:
    """ESPAN with fewer channels and made-up weights, exported."""
    import torch

    from espan_deploy.networks.span.espan import ESPAN

    torch.manual_seed(0)
    checkpoint, model = scratch / "small.pth", scratch / "small.onnx"
    torch.save(ESPAN(channels=SMALL_CHANNELS, mid_channels=SMALL_CHANNELS).state_dict(), checkpoint)
    subprocess.run([sys.executable, "cli.py", "export", checkpoint, "-o", model], check=True, cwd=ROOT)
    return model


def main() -> None:
    """Measure round after round, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--model", type=Path, action="append", help="ONNX file, may be repeated; the package's own")
    parser.add_argument("--small", action="store_true", help="a made-up network a fifth of ESPAN's size as well")
    parser.add_argument("--count", type=int, default=30, help="photographs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        photos = scratch / "photos"
        photos.mkdir()
        for path in sorted(each for each in options.photos.iterdir() if each.is_file())[: options.count]:
            shutil.copy(path, photos)
        models = options.model or ([] if options.small else [default_model()])
        models += [small_model(scratch)] if options.small else []
        contests = [Contest(model.resolve(), photos, scratch, options.threads) for model in models]
        for contest in contests:
            for forced in contest.forced:  # what is found out about compiling is found out before
                contest.timed(forced)
        for index in range(options.rounds):
            for contest in contests:
                contest.round()
            print(f"round {index + 1} of {options.rounds}", flush=True)
        reports = [contest.report() for contest in contests]
    for report in reports:
        show(report)
    if options.json:
        options.json.write_text(json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    main()
