"""A whole benchmark on engines of known speed: what the document says is what they took."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from clocks import FakeClock, TimedRunner, contender

from espan_deploy.backends.base import Step
from espan_deploy.bench import report_table
from espan_deploy.bench.contenders import AS_TRAINED, Contender
from espan_deploy.bench.images import Pair, generated_case
from espan_deploy.bench.roofline import Peaks
from espan_deploy.bench.score import CHALLENGES
from espan_deploy.bench.suite import Settings, Suite
from espan_deploy.errors import InferenceError, InputShapeError

PEAKS = Peaks("this machine", "test", {"fp32": 100.0}, ((0.0, 10e9),))


def probe(*_: Any, **__: Any) -> Peaks:
    return PEAKS


def suite(clock: FakeClock, contenders: list[Contender], **changes: Any) -> Suite:
    settings = Settings(**{"runs": 30, "seconds": 1000.0, **changes.pop("settings", {})})
    cases = changes.pop("cases", [generated_case(16, 24, 1)])
    return Suite(contenders, cases, settings, clock=clock, probe=probe, **changes)


def two(clock: FakeClock) -> list[Contender]:
    slow = contender("Slow", TimedRunner(clock, [0.080]))
    fast = contender("Fast", TimedRunner(clock, [0.020], stages={"copy in": 5.0, "engine": 15.0}, noise=3))
    return [slow, fast]


def test_the_document_says_what_was_measured() -> None:
    clock = FakeClock()
    document = suite(clock, two(clock)).run()
    slow, fast = document["results"]
    assert slow["latency_ms"]["p50"] == pytest.approx(80.0)
    assert fast["latency_ms"]["p50"] == pytest.approx(20.0)
    assert fast["latency_ms"]["ci95"] == pytest.approx((20.0, 20.0))
    assert fast["latency_ms"]["samples"] == len(fast["series_ms"]) == len(fast["started_s"]) == 30
    assert fast["ratio"]["ratio"] == pytest.approx(0.25)
    assert fast["throughput"]["images_per_s"] == pytest.approx(50.0)
    assert fast["throughput"]["output_megapixels_per_s"] == pytest.approx(16 * 24 * 16 / 1e6 * 50)
    assert fast["stages_ms"]["engine"]["p50"] == 15.0
    assert slow["stages_ms"] == {}
    assert slow["verdicts"] == []
    assert not document["interrupted"]


def test_the_document_is_json() -> None:
    clock = FakeClock()
    pair = Pair("flat", np.full((16, 16, 3), 9, np.uint8), np.full((64, 64, 3), 9, np.uint8))
    document = suite(clock, two(clock), pairs=[pair], settings={"challenge": CHALLENGES[2026], "layers": True}).run()
    assert json.loads(json.dumps(document, allow_nan=False))["schema_version"] == 1
    exact, noisy = document["quality"]["contenders"]
    assert exact["mean"]["psnr_rgb_db"] is None  # equal to the truth
    assert noisy["mean"]["psnr_rgb_db"] == pytest.approx(20 * np.log10(255 / 3))
    assert document["challenge"]["case"] == "16x24"


def test_every_latency_reads_as_a_share_of_the_limit() -> None:
    clock = FakeClock()
    document = suite(clock, two(clock), settings={"layers": True}).run()
    slow = document["results"][0]
    macs = 16 * 24 * (8 * 27 + 48 * 72)
    assert slow["limit"]["compute_ms"] == pytest.approx(2 * macs / 100e9 * 1e3)
    assert slow["limit"]["share"] == pytest.approx(slow["limit"]["ms"] / 80.0)
    assert slow["limit"]["gflops"] == pytest.approx(2 * macs / 0.080 / 1e9)
    assert sum(layer["ms"] for layer in slow["limit"]["layers"]) == pytest.approx(slow["limit"]["ms"])


def test_every_layer_is_told_what_it_took() -> None:
    clock = FakeClock()
    steps = [
        Step(("f_nchwc", "f"), "Conv", 3.0),
        Step(("s",), "Sigmoid", 0.25),
        Step(("output",), "FusedConv", 4.0, "u8"),  # with the pixel shuffle that alone reads it
        Step((), "Reorder", 0.5),
        Step(("s",), "Sigmoid", 0.125),
    ]
    told = contender("Told", TimedRunner(clock, [0.01], steps=steps))
    silent = contender("Silent", TimedRunner(clock, [0.01]))
    document = suite(clock, [told, silent], settings={"layers": True}).run()
    first, second = (result["limit"] for result in document["results"])
    assert [layer["took_ms"] for layer in first["layers"]] == [3.0, 4.0]
    assert [layer["computed_in"] for layer in first["layers"]] == ["", "u8"]
    assert first["profile"] == {"ms": 7.875, "between_ms": {"Reorder": 0.5, "Sigmoid": 0.375}}
    assert [layer["took_ms"] for layer in second["layers"]] == [None, None]
    assert second["profile"] is None
    text = report_table.render(document, layers=True)
    assert f"{first['layers'][0]['ms'] / 3.0:.0%}" in text
    assert "(Reorder)" in text


def test_difference_to_fp32_does_not_depend_on_the_order() -> None:
    clock = FakeClock()
    exact = TimedRunner(clock, [0.01])
    reduced = contender("Net", TimedRunner(clock, [0.01], noise=2), engine="openvino", precision="bf16")
    full = Contender("Net · openvino fp32", reduced.model, "openvino", "fp32", exact)
    truth = np.full((64, 64, 3), 100, np.uint8)
    pair = Pair("flat", np.full((16, 16, 3), 104, np.uint8), truth)
    rows = suite(clock, [reduced, full], pairs=[pair]).run()["quality"]["contenders"]
    assert rows[1]["difference_to_fp32"]["psnr_rgb_db"] == 0.0
    assert rows[0]["difference_to_fp32"]["psnr_rgb_db"] == pytest.approx(20 * np.log10(4 / 6))


def test_a_size_that_is_refused_is_told_before_anything_is_timed() -> None:
    clock = FakeClock()

    def refuse() -> None:
        raise InferenceError("kernel larger than the padded input")

    contenders = [*two(clock), contender("Picky", TimedRunner(clock, [0.01], before=refuse))]
    with pytest.raises(InputShapeError, match=r"Picky .* does not take 16x24: kernel larger"):
        suite(clock, contenders).run()
    assert clock.now < 101


@pytest.mark.parametrize("at", [3, 40])
def test_an_interruption_keeps_what_is_there(at: int) -> None:
    clock, calls = FakeClock(), 0

    def interrupt() -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt

    contenders = [contender("One", TimedRunner(clock, [0.01], before=interrupt))]
    document = suite(clock, contenders, settings={"runs": 100, "challenge": CHALLENGES[2025]}).run()
    assert document["interrupted"]
    (result,) = document["results"]
    assert (result["latency_ms"] is not None) == (at == 40)
    text = report_table.render(document)
    assert "interrupted" in text
    assert ("not measured" in text) == (at == 3)


def test_too_short_a_run_is_told() -> None:
    clock = FakeClock()
    document = suite(clock, two(clock), settings={"runs": 4}).run()
    assert "too short (4 of 20 runs)" in document["results"][0]["verdicts"]
    assert "too short" in report_table.render(document)


def test_a_noisy_machine_is_told() -> None:
    clock = FakeClock()
    rng = np.random.default_rng(9)
    contenders = [contender("One", TimedRunner(clock, list(rng.lognormal(-4, 0.5, 200))))]
    document = suite(clock, contenders, settings={"runs": 100}).run()
    assert any("noisy machine" in note for note in document["notes"])
    (row,) = [line for line in report_table.render(document).splitlines() if line.startswith("One")]
    assert "." not in row.split()[4]  # no decimals where the interval spans milliseconds


def test_the_table_shows_everything_asked_for() -> None:
    clock = FakeClock()
    pair = Pair("flat", np.full((16, 16, 3), 9, np.uint8), np.full((64, 64, 3), 19, np.uint8))
    cases = [generated_case(16, 24, 1), generated_case(8, 8, 4)]
    settings = {"challenge": CHALLENGES[2025], "layers": True}
    document = suite(clock, two(clock), pairs=[pair], cases=cases, settings=settings).run()
    text = report_table.render(document, layers=True)
    for expected in (
        "16x24: 30",
        "8x8 x4: 30",
        "0.250 (0.250 to 0.250)",
        "quality",
        "EMSR",
        "> Fast",
        "w2",
        "at least ms",
    ):
        assert expected in text, expected
    assert max(map(len, text.splitlines())) < 200


def test_the_same_model_in_torch_is_what_an_engine_is_held_against() -> None:
    clock = FakeClock()
    engine, other = contender("Net", TimedRunner(clock, [0.02])), contender("Other", TimedRunner(clock, [0.03]))
    torch = Contender("Net · torch", engine.model, "torch", "fp32", TimedRunner(clock, [0.05]), AS_TRAINED)
    document = suite(clock, [engine, torch, other]).run()
    first, _, last = document["results"]
    assert first["speedup_over_torch"]["ratio"] == pytest.approx(2.5)
    assert last["speedup_over_torch"] is None
    assert any("not run in PyTorch" in note and "Other" in note for note in document["notes"])
