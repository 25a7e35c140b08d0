"""The challenge's score gives the published scores and ranks."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from clocks import FakeClock, TimedRunner, contender

from espan_deploy.bench.score import CHALLENGES, metric_score, rank_order
from espan_deploy.bench.standings import standings

YEARS = sorted(CHALLENGES)

ROUNDING = 0.0055
"""Scores are published with two decimals, or three significant digits, from metrics rounded to three decimals."""


@pytest.mark.parametrize("year", YEARS)
def test_published_scores_come_out(year: int) -> None:
    challenge = CHALLENGES[year]
    for row in challenge.table():
        score = challenge.score(row.runtime_ms, row.flops_g, row.params_m)
        assert score == pytest.approx(row.score, abs=ROUNDING, rel=ROUNDING), row.team


@pytest.mark.parametrize("year", YEARS)
def test_published_ranks_come_out(year: int) -> None:
    challenge = CHALLENGES[year]
    ranked = [row for row in challenge.table() if row.rank is not None]
    assert rank_order(challenge) == [row.team for row in sorted(ranked, key=lambda row: row.rank or 0)]
    assert [row.rank for row in ranked] == list(range(1, len(ranked) + 1))


@pytest.mark.parametrize("year", YEARS)
def test_the_baseline_is_in_its_own_table(year: int) -> None:
    challenge = CHALLENGES[year]
    (row,) = [row for row in challenge.table() if row.team == challenge.baseline]
    assert (row.runtime_ms, row.flops_g, row.params_m) == (
        challenge.runtime_ms,
        challenge.flops_g,
        challenge.params_m,
    )
    assert challenge.score(*(challenge.runtime_ms, challenge.flops_g, challenge.params_m)) == pytest.approx(math.e**2)
    assert sum(challenge.weights) == pytest.approx(1.0)


@pytest.mark.shared
@pytest.mark.parametrize("year", YEARS)
def test_packaged_table_is_the_reports(shared: Path, year: int) -> None:
    with (shared / "facts" / f"ntire{year}_esr.csv").open(newline="") as file:
        facts = list(csv.DictReader(file))
    table = CHALLENGES[year].table()
    assert [row.team for row in table] == [fact["team"] for fact in facts]
    for row, fact in zip(table, facts, strict=True):
        assert row.rank == (int(fact["rank"]) if fact["rank"] else None)
        for name in ("psnr_valid_db", "psnr_test_db", "runtime_ms", "params_m", "flops_g"):
            assert getattr(row, name) == float(fact[name]), (row.team, name)


def test_a_score_beyond_floats_is_infinite() -> None:
    assert math.isinf(metric_score(1e6, 1.0))


def test_runtimes_are_scaled_by_the_baseline_of_the_same_run_only() -> None:
    challenge, clock = CHALLENGES[2025], FakeClock()
    ours = contender("Ours", TimedRunner(clock, [0.1]))
    other_engine = contender("Ours", TimedRunner(clock, [0.1]), engine="openvino", precision="bf16")
    baseline = contender("EFDN", TimedRunner(clock, [0.2]), network="efdn")
    object.__setattr__(baseline.model.file.description, "parameters", 276_192)
    times = {ours.name: 100.0, other_engine.name: 50.0, baseline.name: 200.0}

    table = standings(challenge, [ours, other_engine, baseline], times)
    rows = {row["contender"]: row for row in table["measured"]}
    assert rows[ours.name]["scaled_ms"] == pytest.approx(challenge.runtime_ms / 2)
    assert rows[ours.name]["score"] == pytest.approx(challenge.score(challenge.runtime_ms / 2, 0.002, 0.001))
    assert rows[other_engine.name]["scaled_ms"] is None
    assert rows[other_engine.name]["score"] is None
    assert "estimate" in table["scaling"]

    alone = standings(challenge, [ours], times)
    assert alone["measured"][0]["scaled_ms"] is None
    assert "not in this run" in alone["scaling"]
