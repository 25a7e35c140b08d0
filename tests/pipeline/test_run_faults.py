"""The stages together, when memory, numbers, disks or invariants fail."""

from __future__ import annotations

import errno
import threading
import time
from typing import Any

import numpy as np
import pytest
from numpy_engine import NumpyRunner, Setup, photo, statuses, upscaled

from espan_deploy.backends.base import Images, Runner
from espan_deploy.backends.finite import NonFiniteError
from espan_deploy.errors import InferenceError
from espan_deploy.pipeline.infer import Fallback, Lane
from espan_deploy.pipeline.run import Run
from espan_deploy.pipeline.work import Work
from espan_deploy.stores.folder import FolderPart


def test_out_of_memory_halves_the_tiles_and_loses_nothing(setup: Setup) -> None:
    pixels = photo(setup.source / "a.png", 50, 70)

    def fail(images: Images) -> None:
        if images.shape[1] * images.shape[2] > 400:
            raise InferenceError("could not allocate 3 GB")

    runner = NumpyRunner(fail)
    assert statuses(setup.run(runner)) == ["done"]
    assert np.array_equal(setup.result("a.png"), upscaled(pixels[None])[0])


def test_memory_that_never_suffices_is_a_failure_not_a_loop(setup: Setup) -> None:
    photo(setup.source / "a.png")

    def fail(_: Images) -> None:
        raise InferenceError("out of memory")

    (report,) = setup.run(NumpyRunner(fail))
    assert report.status == "failed"
    assert "not enough memory even for" in report.error
    assert not (setup.output / "a.png").exists()


def test_non_finite_tiles_are_redone_in_fp32_and_counted(setup: Setup) -> None:
    images = [photo(setup.source / f"{i}.png", 16, 16, i) for i in range(4)]
    bright = images[2].copy()

    def fail(batch: Images) -> None:
        bad = [i for i, image in enumerate(batch) if np.array_equal(image, bright)]
        if bad:
            raise NonFiniteError(bad)

    opened: list[Runner] = []

    def fallback() -> Runner:
        opened.append(NumpyRunner())
        return opened[-1]

    setup.fallback = fallback
    reports = setup.run(NumpyRunner(fail), batch=4)
    assert statuses(reports) == ["done"] * 4
    assert [report.redone_fp32 for report in reports] == [0, 0, 1, 0]
    assert len(opened) == 1
    for i, image in enumerate(images):
        assert np.array_equal(setup.result(f"{i}.png"), upscaled(image[None])[0])


def test_non_finite_in_fp32_too_is_a_failure(setup: Setup) -> None:
    photo(setup.source / "a.png")

    def fail(_: Images) -> None:
        raise NonFiniteError([0])

    (report,) = setup.run(NumpyRunner(fail))
    assert report.status == "failed"
    assert "non-finite" in report.error


def test_a_batch_that_fails_costs_only_the_image_that_made_it_fail(setup: Setup) -> None:
    images = [photo(setup.source / f"{i}.png", 16, 16, i) for i in range(5)]

    def fail(batch: Images) -> None:
        if any(np.array_equal(image, images[3]) for image in batch):
            raise InferenceError("no such kernel")

    reports = setup.run(NumpyRunner(fail), batch=5)
    assert statuses(reports) == ["done", "done", "done", "failed", "done"]
    assert reports[3].error == "no such kernel"


def test_stopping_finishes_what_is_in_flight(setup: Setup) -> None:
    for i in range(30):
        photo(setup.source / f"{i:02}.png", 128, 128, i)
    started = threading.Event()

    def slow(_: Images) -> None:
        started.set()
        time.sleep(0.05)

    def during(run: Run) -> None:
        threading.Thread(target=lambda: started.wait() and run.stop()).start()

    reports = setup.run(NumpyRunner(slow), during=during)
    done = [report for report in reports if report.status == "done"]
    assert 0 < len(done) < 30
    assert {report.status for report in reports} == {"done", "not started"}
    assert sorted(path.name for path in setup.output.glob("*.png")) == [report.output for report in done]
    assert not list(setup.output.glob("*.part"))
    again = setup.run()
    assert [report.status for report in again].count("skipped") == len(done)
    assert not {report.status for report in again} - {"done", "skipped"}


def test_a_full_disk_stops_the_run_and_leaves_nothing_half_written(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(10):
        photo(setup.source / f"{i}.png", seed=i)
    real, calls = Work.encode, []

    def full(work: Work, band: int) -> bool:
        calls.append(work)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(work, band)

    monkeypatch.setattr(Work, "encode", full)
    reports = setup.run()
    assert "failed" in statuses(reports)
    assert setup.last.stopped_because == "the disk is full"
    assert len(list(setup.output.glob("*.png"))) == statuses(reports).count("done") == 3
    assert not list(setup.output.rglob("*.part"))
    monkeypatch.undo()
    assert not {report.status for report in setup.run()} - {"done", "skipped"}


def test_who_waits_for_the_disk_keeps_nobody_from_encoding(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(12):
        photo(setup.source / f"{i}.png", seed=i)
    real, together = FolderPart.publish, threading.Barrier(4)

    def slow(part: FolderPart, *arguments: Any, **options: Any) -> int:
        together.wait(30)  # for three more results of the only encoder
        return real(part, *arguments, **options)

    monkeypatch.setattr(FolderPart, "publish", slow)
    assert statuses(setup.run(encoders=1, publishers=4)) == ["done"] * 12


def test_a_result_that_cannot_be_published_fails_alone(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        photo(setup.source / f"{i}.png", seed=i)
    real = FolderPart.publish

    def broken(part: FolderPart, *arguments: Any, **options: Any) -> int:
        if part._name == "2.png":
            raise OSError(errno.EIO, "Input/output error")
        return real(part, *arguments, **options)

    monkeypatch.setattr(FolderPart, "publish", broken)
    reports = setup.run()
    assert statuses(reports) == ["done", "done", "failed", "done", "done"]
    assert reports[2].error == "Input/output error"
    assert not list(setup.output.rglob("*.part"))


def test_a_broken_invariant_keeps_its_traceback_and_does_not_hang(setup: Setup) -> None:
    for i in range(40):
        photo(setup.source / f"{i}.png", seed=i)

    def fail(_: Images) -> None:
        raise ZeroDivisionError("a bug of ours")

    with pytest.raises(ZeroDivisionError, match="a bug of ours"):
        setup.run(NumpyRunner(fail))
    assert not list(setup.output.rglob("*.part"))


def test_memory_in_flight_is_bounded(setup: Setup) -> None:
    for i in range(25):
        photo(setup.source / f"{i}.png", 32, 32, i)
    assert statuses(setup.run(in_flight_bytes=1)) == ["done"] * 25  # one at a time, and no deadlock


def test_a_lane_retries_only_what_memory_failed(setup: Setup) -> None:
    def fail(_: Images) -> None:
        raise InferenceError("unsupported")

    with pytest.raises(InferenceError, match="unsupported"):
        Lane(NumpyRunner(fail), Fallback(None)).upscale(
            [np.zeros((4, 4, 3), np.uint8)], (slice(0, 4), slice(0, 4)), None
        )
