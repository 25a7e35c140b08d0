"""The challenge's own score: the published tables, and our measurements beside them.

Each metric scores ``exp(2 * metric / baseline)``; the final score is their weighted sum, and lower is better. The
reports print the fraction's bar elsewhere; this is the form that gives their figures.
"""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Row:
    """One team's row. score, rank: as published; rank is None below the PSNR threshold and for the baseline."""

    team: str
    psnr_valid_db: float
    psnr_test_db: float
    runtime_ms: float
    params_m: float
    flops_g: float
    rank: int | None
    score: float


@dataclass(frozen=True)
class Challenge:
    """One year's rules and table.

    baseline: its row's team. network: the baseline's name in our catalogue. runtime_ms, flops_g, params_m: what
    entries are divided by. weights: of runtime, FLOPs and parameters.
    """

    year: int
    source: str
    device: str
    baseline: str
    network: str
    runtime_ms: float
    flops_g: float
    params_m: float
    weights: tuple[float, float, float]

    def score(self, runtime_ms: float, flops_g: float, params_m: float) -> float:
        """The final score; infinite where it is beyond every float."""
        pairs = ((runtime_ms, self.runtime_ms), (flops_g, self.flops_g), (params_m, self.params_m))
        return sum(w * metric_score(*pair) for w, pair in zip(self.weights, pairs, strict=True))

    def table(self) -> list[Row]:
        """The published rows, in the published order."""
        text = (files(__package__) / "data" / f"ntire{self.year}_esr.csv").read_text(encoding="utf-8")
        return [_row(fields) for fields in csv.DictReader(text.splitlines())]

    def to_json(self) -> dict[str, Any]:
        """Rules and table, each row with the score recomputed."""
        rows = [
            {**asdict(row), "computed": self.score(row.runtime_ms, row.flops_g, row.params_m)} for row in self.table()
        ]
        return {**asdict(self), "published": rows}


def metric_score(metric: float, baseline: float) -> float:
    """exp(2 * metric / baseline): e squared for the baseline itself."""
    try:
        return math.exp(2 * metric / baseline)
    except OverflowError:
        return math.inf


CHALLENGES = {
    2025: Challenge(
        year=2025,
        source='Ren et al., "The Tenth NTIRE 2025 Efficient Super-Resolution Challenge Report", table 1',
        device="NVIDIA RTX A6000",
        baseline="Baseline",
        network="efdn",
        runtime_ms=22.183,
        flops_g=16.70,
        params_m=0.276,
        weights=(0.70, 0.15, 0.15),
    ),
    2026: Challenge(
        year=2026,
        source="the NTIRE 2026 efficient super-resolution challenge report, table 1",
        device="NVIDIA RTX A6000",
        baseline="EfficientSR Organizers",
        network="span",
        runtime_ms=7.650,
        flops_g=9.83,
        params_m=0.151,
        weights=(0.80, 0.10, 0.10),
    ),
}


def rank_order(challenge: Challenge) -> list[str]:
    """The teams that the report ranked, by their recomputed score, the best first.

    Not by the PSNR threshold of 26.90 and 26.99 dB: in 2026 a team at 26.98 dB was ranked all the same.
    """
    ranked = [row for row in challenge.table() if row.rank is not None]
    return [r.team for r in sorted(ranked, key=lambda r: challenge.score(r.runtime_ms, r.flops_g, r.params_m))]


def _row(fields: dict[str, str]) -> Row:
    names = ("psnr_valid_db", "psnr_test_db", "runtime_ms", "params_m", "flops_g", "score")
    return Row(
        team=fields["team"],
        rank=int(fields["rank"]) if fields["rank"] else None,
        **{name: float(fields[name]) for name in names},
    )
