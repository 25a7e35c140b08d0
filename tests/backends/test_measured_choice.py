"""Measured, known or guessed: with engines whose speed a test sets, on a clock that moves only when they work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from clocks import FakeClock
from quantising import save_quantised
from synthetic import save_synthetic

from engines import SpeedBackend
from espan_deploy import backends
from espan_deploy.backends.choice import (
    LEAST_CALLS,
    MAX_AGE_S,
    MAX_SECONDS,
    MAX_SHARE,
    Chooser,
    Decision,
    Workload,
    decide,
)
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.backends.ranking import PIXELS_PER_CALL, Table

NOW = 1_780_000_000.0
THREADS = 2


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    return read_model(save_synthetic(tmp_path / "tiny.onnx"))


def job(calls: float, height: int = 300, width: int = 400) -> Workload:
    return Workload(int(calls * PIXELS_PER_CALL), height, width)


class Machine:
    """Two engines: one with two precisions, and one that is slower as it is."""

    def __init__(self, model: ModelFile, *, fp32: float = 0.02, bf16: float = 0.01, other: float = 0.024) -> None:
        self.model = model
        self.clock = FakeClock()
        self.first = SpeedBackend("first", self.clock, {"fp32": fp32, "bf16": bf16})
        self.other = SpeedBackend("other", self.clock, {"fp32": other})

    def chooser(self, *, precision: str = "auto", now: float = NOW, threads: int = THREADS) -> Chooser:
        usable: Any = [self.first, self.other]
        return Chooser(self.model, "auto", precision, threads, usable=usable, clock=self.clock, wall_clock=lambda: now)

    def decide(self, workload: Workload | None, *, now: float = NOW, most: int = THREADS) -> Decision:
        return self.chooser(now=now).decide(workload, most)


def taken(decision: Decision) -> tuple[str, str, str]:
    return decision.basis, decision.backend.name, decision.precision


class TestWhatIsTaken:
    def test_fast_bf16_is_taken(self, model: ModelFile) -> None:
        assert taken(Machine(model).decide(job(2000))) == ("measured", "first", "bf16")

    def test_slow_bf16_is_not(self, model: ModelFile) -> None:
        assert taken(Machine(model, bf16=0.034).decide(job(2000))) == ("measured", "first", "fp32")

    def test_another_engine_that_is_faster_is(self, model: ModelFile) -> None:
        assert taken(Machine(model, bf16=0.034, other=0.016).decide(job(2000))) == ("measured", "other", "fp32")

    def test_a_tie_keeps_the_simpler(self, model: ModelFile) -> None:
        assert taken(Machine(model, bf16=0.0198, other=0.0196).decide(job(2000))) == ("measured", "first", "fp32")

    def test_wrong_numbers_disqualify_before_time_counts(self, model: ModelFile) -> None:
        machine = Machine(model)
        machine.first.off["bf16"] = 9
        decision = machine.decide(job(2000))
        assert taken(decision) == ("measured", "first", "fp32")
        assert decision.table is not None
        excluded = {row.engine: row.excluded for row in decision.table.rows}["first bf16"]
        assert "dB from fp32 on a made-up" in excluded
        assert "which decides" in excluded

    def test_an_engine_that_computes_something_else_is_not_taken(self, model: ModelFile) -> None:
        machine = Machine(model, bf16=0.04, other=0.002)
        machine.other.off["fp32"] = 9
        decision = machine.decide(job(2000))
        assert taken(decision) == ("measured", "first", "fp32")
        assert "from the first engine" in decision.reason

    def test_an_engine_that_does_not_open_is_left_out_with_its_reason(self, model: ModelFile) -> None:
        machine = Machine(model, other=0.002)
        machine.other.broken = True
        decision = machine.decide(job(2000))
        assert taken(decision) == ("measured", "first", "bf16")
        assert "other fp32: other refuses it" in decision.reason

    def test_nothing_opens_so_the_job_itself_says_why(self, model: ModelFile) -> None:
        machine = Machine(model)
        machine.first.broken = machine.other.broken = True
        assert taken(machine.decide(job(2000))) == ("guess", "first", "fp32")

    def test_only_what_is_asked_for(self, model: ModelFile) -> None:
        machine = Machine(model, other=0.01)
        assert taken(machine.chooser(precision="fp32").decide(job(2000), 2)) == ("measured", "other", "fp32")

    @pytest.mark.parametrize(("one", "two", "lanes"), [(0.01, 0.01, 2), (0.01, 0.006, 2), (0.01, 0.02, 1)])
    def test_how_the_cores_are_split(self, model: ModelFile, one: float, two: float, lanes: int) -> None:
        """Two runners of the fake engine take turns on one clock: a call of two images takes twice ``two``."""
        machine = Machine(model, bf16=one)
        machine.first.seconds["bf16", 2] = two
        decision = machine.decide(job(20000))
        assert (decision.precision, decision.lanes) == ("bf16", lanes)
        assert machine.decide(job(20000), most=1).lanes == 1


class TestInt8:
    """Beside FP32 where a file of it lies there, and alone."""

    @pytest.fixture
    def both(self, model: ModelFile) -> ModelFile:
        save_quantised(model.path.with_name("tiny_int8.onnx"), of=model.path)
        return read_model(model.path)

    @pytest.mark.parametrize(("int8", "expected"), [(0.004, "int8"), (0.012, "bf16")])
    def test_is_taken_where_it_is_faster(self, both: ModelFile, int8: float, expected: str) -> None:
        machine = Machine(both)
        machine.first.seconds["int8"] = int8
        assert taken(machine.decide(job(2000))) == ("measured", "first", expected)
        assert taken(machine.decide(job(2000))) == ("known", "first", expected)

    def test_a_precision_that_this_machine_is_slow_in_leaves_time_for_it(self, both: ModelFile) -> None:
        """As bfloat16 where it is emulated."""
        machine = Machine(both, bf16=0.1)
        machine.first.seconds["int8"] = 0.01
        assert taken(machine.decide(job(LEAST_CALLS))) == ("measured", "first", "int8")

    def test_is_not_tried_where_there_is_no_file(self, model: ModelFile) -> None:
        machine = Machine(model)
        machine.first.seconds["int8"] = 0.001
        assert {each.precision for each in machine.chooser().engines} == {"fp32", "bf16"}

    @pytest.mark.parametrize(("off", "expected"), [(2, "int8"), (4, "bf16")])
    def test_may_be_farther_off_than_another_precision_but_not_wrong(
        self, both: ModelFile, off: int, expected: str
    ) -> None:
        machine = Machine(both)
        machine.first.seconds["int8"] = 0.004
        machine.first.off["int8"] = off
        decision = machine.decide(job(2000))
        assert decision.precision == expected
        assert ("40 asked for" in decision.reason) == (expected == "bf16" or off == 2)

    def test_another_int8_file_is_another_choice(self, both: ModelFile) -> None:
        machine = Machine(both)
        machine.first.seconds["int8"] = 0.004
        machine.decide(job(2000))
        save_quantised(both.path.with_name("tiny_int8.onnx"), of=both.path, title="Again")
        machine.model = read_model(both.path)
        assert machine.decide(job(2000)).basis == "measured"

    def test_alone_the_fastest_engine_is_taken_that_agrees_with_the_first(self, both: ModelFile) -> None:
        machine = Machine(read_model(both.path.with_name("tiny_int8.onnx")), other=1.0)
        machine.first.seconds["int8"], machine.other.seconds["int8"] = 0.02, 0.01
        assert taken(machine.decide(job(2000))) == ("measured", "other", "int8")
        machine.other.off["int8"] = 9
        assert taken(machine.decide(job(2000), now=NOW + MAX_AGE_S + 1)) == ("measured", "first", "int8")


class TestChance:
    def test_a_moment_in_which_nothing_moved_leaves_no_verdict(self, model: ModelFile) -> None:
        machine = Machine(model, other=0.01)
        machine.first.slow_calls["fp32", 1] = 20.0
        decision = machine.chooser(precision="fp32").decide(job(2000), 2)
        assert taken(decision) == ("guess", "first", "fp32")
        assert "no time to compare" in decision.reason
        machine.first.slow_calls.clear()
        assert taken(machine.chooser(precision="fp32").decide(job(2000), 2)) == ("measured", "other", "fp32")

    def test_two_precisions_of_one_engine_are_compared_in_any_case(self, model: ModelFile) -> None:
        machine = Machine(model)
        machine.first.slow_calls["fp32", 1] = 20.0
        assert taken(machine.decide(job(2000))) == ("measured", "first", "bf16")

    @pytest.mark.parametrize(("slow", "bf16", "expected"), [("fp32", 0.034, "fp32"), ("bf16", 0.01, "bf16")])
    def test_one_slow_call_decides_nothing(self, model: ModelFile, slow: str, bf16: float, expected: str) -> None:
        machine = Machine(model, bf16=bf16)
        machine.first.slow_calls[slow, 2] = 0.2
        assert taken(machine.decide(job(2000))) == ("measured", "first", expected)


class TestCost:
    @pytest.mark.parametrize("calls", [LEAST_CALLS, 5000, 100_000])
    @pytest.mark.parametrize("bf16", [0.01, 0.06])
    def test_at_most_its_share_or_two_seconds(self, model: ModelFile, calls: int, bf16: float) -> None:
        machine = Machine(model, bf16=bf16)
        before = machine.clock()
        machine.decide(job(calls))
        spent = machine.clock() - before
        one_call_too_many = 0.06 * THREADS
        assert spent <= min(MAX_SECONDS, MAX_SHARE * calls * 0.02) + one_call_too_many

    def test_of_a_small_network_the_loaded_engines_precisions_are_compared(self, model: ModelFile) -> None:
        """Five per cent of so short a job would not open a second engine, and nothing would ever be known."""
        machine = Machine(model, fp32=0.002, bf16=0.001, other=0.003)
        assert taken(machine.decide(job(LEAST_CALLS))) == ("measured", "first", "bf16")
        assert not machine.other.log
        assert taken(machine.decide(job(LEAST_CALLS))) == ("known", "first", "bf16")

    def test_what_could_not_be_compared_is_not_tried_in_vain_again(self, model: ModelFile) -> None:
        machine = Machine(model, fp32=0.002, other=0.001)
        del machine.first.seconds["bf16"]
        assert taken(machine.decide(job(LEAST_CALLS))) == ("guess", "first", "fp32")
        before = machine.clock()
        assert taken(machine.decide(job(LEAST_CALLS))) == ("guess", "first", "fp32")
        assert machine.clock() == before
        assert taken(machine.decide(job(50_000))) == ("measured", "other", "fp32")

    def test_a_small_job_is_not_measured(self, model: ModelFile) -> None:
        machine = Machine(model)
        decision = machine.decide(job(LEAST_CALLS - 1))
        assert taken(decision) == ("guess", "first", "fp32")
        assert "a safe guess" in decision.reason
        assert not machine.first.log

    def test_what_is_slower_by_far_takes_no_turns(self, model: ModelFile) -> None:
        machine = Machine(model, bf16=0.06, other=0.022)
        machine.decide(job(2000))
        assert machine.first.log.count("bf16x1") == 3, "on either probe, and once more for what was chance"
        assert machine.first.log.count("fp32x1") > 2

    def test_contenders_take_turns(self, model: ModelFile) -> None:
        machine = Machine(model, bf16=0.022, other=0.1)
        machine.decide(job(5000))
        turns = [each for each in machine.first.log if each.endswith("x1") and not each.startswith("close")][4:]
        assert turns[:6] == ["fp32x1", "bf16x1"] * 3

    def test_every_runner_is_closed(self, model: ModelFile) -> None:
        machine = Machine(model)
        machine.decide(job(5000))
        for name in ("fp32x1", "bf16x1", "bf16x2"):
            assert machine.first.log.count(f"close {name}") == int(name[-1])

    def test_what_there_was_no_time_for_is_said_and_done_by_a_longer_job(self, model: ModelFile) -> None:
        machine = Machine(model)
        short = machine.decide(job(LEAST_CALLS))
        assert short.table is not None
        assert not short.table.complete
        assert any("no time" in row.excluded for row in short.table.rows)
        assert machine.decide(job(LEAST_CALLS)).basis == "known"
        long = machine.decide(job(5000))
        assert long.basis == "measured"
        assert machine.decide(job(5000)).basis == "known"


class TestKnown:
    def test_a_verdict_is_kept_and_costs_nothing(self, model: ModelFile) -> None:
        machine = Machine(model)
        measured = machine.decide(job(2000))
        before = machine.clock()
        known = machine.decide(job(3))
        assert taken(known) == ("known", "first", "bf16")
        assert machine.clock() == before
        assert known.table == measured.table
        assert known.measured_at == NOW

    @pytest.mark.parametrize("change", ["version", "threads", "engines", "model", "size"])
    def test_a_changed_key_is_measured_again(self, model: ModelFile, tmp_path: Path, change: str) -> None:
        machine = Machine(model)
        machine.decide(job(2000))
        assert machine.decide(job(2000)).basis == "known"
        threads, workload = THREADS, job(2000)
        if change == "version":
            machine.other.version = "2"
        elif change == "engines":
            del machine.first.seconds["bf16"]
        elif change == "model":
            machine.model = read_model(save_synthetic(tmp_path / "other.onnx", gain=2.0))
        elif change == "threads":
            threads = 1
        else:
            workload = job(2000, 30, 30)
        assert machine.chooser(threads=threads).decide(workload, threads).basis == "measured"

    def test_it_ages_and_small_jobs_still_take_the_best_known(self, model: ModelFile) -> None:
        machine = Machine(model)
        machine.decide(job(2000))
        later = NOW + MAX_AGE_S + 1
        assert taken(machine.decide(job(3), now=later)) == ("known", "first", "bf16")
        assert machine.decide(job(2000), now=later).basis == "measured"

    def test_another_size_is_better_known_than_none(self, model: ModelFile) -> None:
        machine = Machine(model)
        machine.decide(job(2000))
        assert taken(machine.decide(job(3, 20, 20))) == ("known", "first", "bf16")

    def test_a_clock_that_was_put_back(self, model: ModelFile) -> None:
        machine = Machine(model)
        machine.decide(job(2000))
        assert machine.decide(job(2000), now=NOW - 400 * 24 * 3600).basis == "measured"

    def test_a_corrupt_verdict_is_said_and_replaced(self, model: ModelFile, cache: Path) -> None:
        machine = Machine(model)
        machine.decide(job(2000))
        (kept,) = (cache / "measured").iterdir()
        kept.write_text("{")
        decision = machine.decide(job(3))
        assert decision.basis == "guess"
        assert "is damaged" in decision.problem
        assert machine.decide(job(2000)).basis == "measured"
        assert machine.decide(job(2000)).problem == ""

    @pytest.mark.parametrize("old", ['"rows": [', '"turns"', '"first bf16"'])
    def test_a_table_of_another_kind_is_not_used(self, model: ModelFile, cache: Path, old: str) -> None:
        machine = Machine(model)
        machine.decide(job(2000))
        (kept,) = (cache / "measured").iterdir()
        kept.write_text(kept.read_text().replace(old, old.replace("rows", "lines").replace("bf16", "fp8").upper()))
        assert machine.decide(job(2000)).basis == "measured"

    def test_a_cache_that_cannot_be_written_is_said(self, model: ModelFile, cache: Path) -> None:
        cache.write_text("a file where the folder should be")
        decision = Machine(model).decide(job(2000))
        assert taken(decision) == ("measured", "first", "bf16")
        assert "cannot" in decision.problem

    def test_a_table_survives_json(self, model: ModelFile) -> None:
        table = Machine(model).decide(job(5000)).table
        assert table is not None
        assert Table.from_json(table.to_json()) == table


def test_the_whole_table_leaves_nothing_out(model: ModelFile) -> None:
    machine = Machine(model, bf16=0.06)
    table = machine.chooser().measure(96, None)
    assert [(row.engine, row.lanes) for row in table.rows] == [
        (engine, lanes) for lanes in (1, 2) for engine in ("first fp32", "first bf16", "other fp32")
    ]
    assert all(row.turns > 3 for row in table.rows)


def test_what_it_says(model: ModelFile) -> None:
    machine = Machine(model)
    decision = machine.decide(job(20000))
    when = "measured on this machine on 2026-05-28"
    assert decision.reason.startswith(f"10.0 ms for 96x96 (fp32 20.0, other fp32 24.0), {when}; 200.0 dB from fp32")
    document = decision.to_json()
    assert document["basis"] == "measured"
    assert document["table"]["rows"][0]["ms"] == pytest.approx(20.0)


class TestRealEngines:
    def test_the_engines_of_this_machine(self, model: ModelFile) -> None:
        pytest.importorskip("openvino")
        pytest.importorskip("onnxruntime")
        choice = backends.choose("auto")
        if not choice.backend.on_cpu:
            pytest.skip("this machine has a GPU")
        arguments: dict[str, Any] = {"threads": 2, "at_once": None, "workload": job(1e6)}
        decision = decide(model, choice, engine="auto", precision="auto", **arguments)
        assert decision.basis == "measured"
        assert decision.table is not None
        assert {row.engine for row in decision.table.rows} >= {"openvino fp32", "onnxruntime fp32"}
        assert decide(model, choice, engine="auto", precision="auto", **arguments).basis == "known"

    @pytest.mark.parametrize(("engine", "precision"), [("openvino", "fp32"), ("onnxruntime", "auto")])
    def test_what_is_asked_for_is_not_measured(self, model: ModelFile, engine: str, precision: str) -> None:
        pytest.importorskip(engine)
        choice = backends.choose(engine)
        arguments: dict[str, Any] = {"threads": 2, "at_once": None, "workload": job(1e6)}
        decision = decide(model, choice, engine=engine, precision=precision, **arguments)
        assert (decision.basis, decision.backend.name, decision.precision) == ("asked for", engine, "fp32")
