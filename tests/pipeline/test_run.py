"""The stages together, with an engine made of numpy whose failures can be ordered."""

from __future__ import annotations

import errno
import io
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from synthetic import synthetic_description

from espan_deploy.backends.base import EngineInfo, Images, Runner
from espan_deploy.backends.finite import NonFiniteError
from espan_deploy.errors import InferenceError, InputError
from espan_deploy.pipeline.decode import EXTENSIONS
from espan_deploy.pipeline.decoded import PictureInput, PixelOutput
from espan_deploy.pipeline.encode import EncodeSettings
from espan_deploy.pipeline.encoded import FileSettings, file_jobs
from espan_deploy.pipeline.infer import Fallback, Lane
from espan_deploy.pipeline.jobs import Job
from espan_deploy.pipeline.picture import Picture, Pixels
from espan_deploy.pipeline.plan import BatchPolicy, TilePolicy, fixed_batch
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.run import Run, RunSettings
from espan_deploy.pipeline.work import Work
from espan_deploy.stores.folder import FolderDestination, FolderSource
from espan_deploy.stores.memory import Memory

SCALE, HALO = 4, 2


class NumpyRunner(Runner):
    """Sums over a 5x5 window with zeros outside, so that a missing halo shows; then repeats pixels."""

    def __init__(self, fail: Callable[[Images], None] = lambda _: None) -> None:
        self.description = synthetic_description(halo=HALO)
        self.info = EngineInfo("numpy", np.__version__, "CPU", "fp16")
        self.fail = fail
        self.shapes: list[tuple[int, ...]] = []

    def _infer(self, images: Images) -> Images:
        self.shapes.append(images.shape)
        self.fail(images)
        return upscaled(images)


def upscaled(images: NDArray[Any]) -> NDArray[Any]:
    padded = np.pad(images.astype(np.float64), ((0, 0), (HALO, HALO), (HALO, HALO), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    summed = windows.sum(axis=(-1, -2)) / 25
    summed = np.rint(summed) if images.dtype == np.uint8 else summed
    return summed.astype(images.dtype).repeat(SCALE, axis=1).repeat(SCALE, axis=2)


def photo(path: Path, height: int = 24, width: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


class Setup:
    def __init__(self, root: Path) -> None:
        self.source, self.output = root / "in", root / "out"
        self.source.mkdir()
        self.fallback: Callable[[], Runner] | None = None

    def run(
        self,
        *runners: Runner,
        during: Callable[[Run], None] = lambda _: None,
        tile: int | str = "auto",
        max_pixels: int = 1 << 20,
        batch: int | None = None,
        settings_sha256: str = "s",
        overwrite: bool = False,
        **changes: Any,
    ) -> list[FileReport]:
        files = FileSettings(settings_sha256, EncodeSettings(), "png", overwrite)
        policy = BatchPolicy() if batch is None else fixed_batch(batch)
        settings = RunSettings(tiles=TilePolicy(tile, max_pixels), batch=policy, **changes)
        ended: dict[int, FileReport] = {}

        def on_end(job: Job, report: FileReport, _: BaseException | None) -> None:
            assert job.number not in ended
            ended[job.number] = report

        with FolderDestination(self.output) as destination:
            source = FolderSource(self.source, EXTENSIONS)
            jobs = file_jobs(source, source.entries(), destination, files)
            self.last = Run(
                jobs,
                runners=list(runners) or [NumpyRunner()],
                fallback=Fallback(self.fallback),
                settings=settings,
                on_end=on_end,
            )
            during(self.last)
            self.last.execute()
        assert self.last.finished == len(ended)
        for job in jobs:
            ended[job.number] = FileReport(job.input.name, job.output.name, "not started")
        return [report for _, report in sorted(ended.items())]

    def result(self, name: str) -> NDArray[Any]:
        return np.asarray(Image.open(self.output / name))


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def statuses(reports: list[FileReport]) -> list[str]:
    return [report.status for report in reports]


def test_every_image_is_upscaled_and_named_as_it_was(setup: Setup) -> None:
    pixels = {f"{i % 3}/{i}.png": photo(setup.source / f"{i % 3}/{i}.png", 10 + i % 4, 12, i) for i in range(20)}
    reports = setup.run(NumpyRunner(), NumpyRunner(), decoders=2, encoders=2)
    assert statuses(reports) == ["done"] * 20
    for name, image in pixels.items():
        assert np.array_equal(setup.result(name), upscaled(image[None])[0])
    assert all(set(report.stage_ms) == {"decode", "infer", "encode", "end_to_end"} for report in reports)
    assert all(0 < report.stage_ms["end_to_end"] < 60_000 for report in reports)


def test_images_of_one_shape_share_calls(setup: Setup) -> None:
    for i in range(12):
        photo(setup.source / f"{i:02}.png", 8, 8 + i % 2, i)
    gate = threading.Event()

    def wait(_: Images) -> None:
        gate.wait(5)

    runner = NumpyRunner(wait)
    threading.Timer(0.5, gate.set).start()
    reports = setup.run(runner, batch=4)
    assert statuses(reports) == ["done"] * 12
    assert sum(shape[0] for shape in runner.shapes) == 12
    assert max(shape[0] for shape in runner.shapes) == 4


@pytest.mark.parametrize("tile", [5, 9, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_tiles_equal_the_whole(setup: Setup, tile: int, suffix: str) -> None:
    pixels = photo(setup.source / f"a.{suffix}", 41, 53)
    (report,) = setup.run(NumpyRunner(), NumpyRunner(), tile=tile, encoders=2)
    assert report.status == "done"
    assert report.tiles > 1
    assert np.array_equal(setup.result("a.png"), upscaled(pixels[None])[0])


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


@pytest.mark.parametrize(
    ("takes", "padded"), [({"size_multiple": 8}, (16, 24)), ({"min_size": 15}, (15, 18)), ({"min_size": 20}, (20, 20))]
)
def test_sizes_that_the_network_does_not_take_are_padded(
    setup: Setup, takes: dict[str, int], padded: tuple[int, int]
) -> None:
    photo(setup.source / "a.png", 13, 18)
    runner = NumpyRunner()
    runner.description = synthetic_description(halo=HALO, **takes)
    assert statuses(setup.run(runner)) == ["done"]
    assert runner.shapes == [(1, *padded, 3)]
    assert setup.result("a.png").shape == (13 * SCALE, 18 * SCALE, 3)


def seeing_everything() -> NumpyRunner:
    runner = NumpyRunner()
    runner.description = synthetic_description(
        halo=None, local_halo=HALO, halo_reason="ReduceMean sees the whole image"
    )
    return runner


def test_a_network_that_sees_everything_is_cut_approximately_and_says_so_once(setup: Setup) -> None:
    for name in ("a.png", "b.png"):
        photo(setup.source / name, 200, 260)
    reports = setup.run(seeing_everything(), max_pixels=900)
    assert statuses(reports) == ["done", "done"]
    assert all(report.tiles > 1 for report in reports)
    assert "ReduceMean sees the whole image" in setup.last.remark
    assert "they differ from the whole by nothing" in setup.last.remark  # it sees two pixels, whatever it says
    assert setup.last.remark.count("png") == 1


def test_an_image_that_fits_is_not_cut_and_nothing_is_said(setup: Setup) -> None:
    photo(setup.source / "a.png", 60, 60)
    assert statuses(setup.run(seeing_everything())) == ["done"]
    assert setup.last.remark == ""


def test_grey_alpha_and_sixteen_bits_go_through(setup: Setup) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (9, 9), dtype=np.uint8)
    Image.fromarray(grey).save(setup.source / "grey.png")
    alpha = np.full((9, 9, 4), 200, np.uint8)
    alpha[..., 3] = rng.integers(1, 256, (9, 9))
    Image.fromarray(alpha).save(setup.source / "alpha.png")
    deep = rng.integers(0, 65536, (9, 9), dtype=np.uint16)
    Image.fromarray(deep).save(setup.source / "deep.png")
    assert statuses(setup.run()) == ["done"] * 3
    assert np.abs(setup.result("grey.png") - upscaled(grey[None, ..., None])[0, ..., 0].astype(int)).max() <= 1
    expected = upscaled(alpha[None, ..., :3])[0]
    assert np.abs(setup.result("alpha.png")[..., :3].astype(int) - expected).max() <= 1
    mask = Image.fromarray(alpha[..., 3]).resize((36, 36), Image.Resampling.BICUBIC)
    assert np.array_equal(setup.result("alpha.png")[..., 3], mask)
    result = np.asarray(Image.open(setup.output / "deep.png"))
    assert result.dtype == np.uint16
    wide = upscaled(deep[None, ..., None].astype(np.float64))[0, ..., 0]
    assert np.abs(result - wide).max() <= 1


@pytest.mark.parametrize("tile", [9, 16])
def test_alpha_has_no_seams(setup: Setup, tile: int) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (41, 53, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(setup.source / "a.png")
    assert statuses(setup.run(tile=tile)) == ["done"]
    mask = Image.fromarray(pixels[..., 3]).resize((53 * 4, 41 * 4), Image.Resampling.BICUBIC)
    assert np.array_equal(setup.result("a.png")[..., 3], mask)


def test_flat_alpha_stays_flat(setup: Setup) -> None:
    for value in (255, 7):
        pixels = np.full((9, 9, 4), value, np.uint8)
        Image.fromarray(pixels).save(setup.source / f"{value}.png")
    assert statuses(setup.run()) == ["done"] * 2
    for value in (255, 7):
        assert (setup.result(f"{value}.png")[..., 3] == value).all()


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


class TestOtherEnds:
    """What the stages are for besides folders."""

    def execute(self, jobs: Iterable[Job], **changes: Any) -> dict[int, tuple[FileReport, BaseException | None]]:
        ended: dict[int, tuple[FileReport, BaseException | None]] = {}
        values: dict[str, Any] = {"tiles": TilePolicy("auto", 1 << 20), "batch": BatchPolicy(), **changes}
        Run(
            jobs,
            runners=[NumpyRunner(), NumpyRunner()],
            fallback=Fallback(None),
            settings=RunSettings(**values),
            on_end=lambda job, report, exc: ended.update({job.number: (report, exc)}),
        ).execute()
        return ended

    @pytest.mark.parametrize("tile", ["auto", 16])
    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    @pytest.mark.parametrize("depth", [8, 16])
    def test_pictures_in_pixels_out(self, tile: int | str, channels: int, depth: int) -> None:
        rng = np.random.default_rng(channels)
        values = rng.integers(0, 256, (5, 23, 31, channels), dtype=np.uint8)
        frames = values if depth == 8 else (values / 255).astype(np.float32)
        results: dict[int, Pixels] = {}

        def job(number: int) -> Job:
            color = frames[number, ..., 0] if channels < 3 else np.ascontiguousarray(frames[number, ..., :3])
            alpha = None if channels in (1, 3) else frames[number, ..., -1]
            picture = Picture(color, alpha, depth, "")
            return Job(
                number,
                PictureInput("frame", picture),
                PixelOutput("", lambda pixels: results.update({number: pixels})),
            )

        ended = self.execute(map(job, range(5)), tiles=TilePolicy(tile, 1 << 20))
        assert {report.status for report, _ in ended.values()} == {"done"}
        for number, frame in enumerate(frames):
            expected = upscaled(frame[None])[0]
            result = results[number].reshape(expected.shape)
            assert results[number].ndim == (2 if channels == 1 else 3)
            assert result.dtype == frame.dtype
            colors = slice(0, 1 if channels < 3 else 3)
            tolerance = (1 if depth == 8 else 1e-6) if channels < 3 else 0  # grey goes through the luma weights
            assert np.abs(result[..., colors].astype(float) - expected[..., colors]).max() <= tolerance

    def test_files_through_memory(self) -> None:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "png")
        source, output = Memory({"a.png": buffer.getvalue(), "b.png": b"no image"}), Memory()
        jobs = file_jobs(source, source.entries(), output, FileSettings("s", EncodeSettings()))
        ended = self.execute(jobs)
        assert [ended[number][0].status for number in (1, 2)] == ["done", "failed"]
        assert isinstance(ended[2][1], InputError)
        assert list(output.files) == ["a.png"]
        assert np.array_equal(Image.open(io.BytesIO(output.files["a.png"].data)), upscaled(pixels[None])[0])

    def test_jobs_may_come_for_ever_and_results_come_back_one_by_one(self) -> None:
        """As a service has them: the next picture arrives when the result before is there."""
        waiting: queue.Queue[Job | None] = queue.Queue()
        sums: list[int] = []

        def ask() -> None:
            picture = Picture(np.full((6, 6, 3), len(sums), np.uint8), None, 8, "")
            waiting.put(Job(len(sums), PictureInput("request", picture), PixelOutput("", answer)))

        def answer(pixels: Pixels) -> None:
            sums.append(int(pixels[12, 12, 0]))
            ask() if len(sums) < 30 else waiting.put(None)

        ask()
        self.execute(iter(waiting.get, None))
        assert sums == list(range(30))

    def test_millions_of_jobs_are_asked_for_only_when_there_is_room(self) -> None:
        asked, delivered = itertools.count(), itertools.count()
        most = 0

        def job(number: int) -> Job:
            nonlocal most
            most = max(most, next(asked) - number_delivered[0])
            picture = Picture(np.zeros((8, 8, 3), np.uint8), None, 8, "")
            return Job(number, PictureInput("", picture), PixelOutput("", deliver))

        def deliver(_: Pixels) -> None:
            number_delivered[0] = next(delivered) + 1

        number_delivered = [0]
        self.execute(map(job, range(2000)), in_flight_bytes=1 << 16, batch=fixed_batch(4))
        assert number_delivered == [2000]
        assert most < 100


class TestResume:
    def test_what_is_current_is_skipped_whatever_the_clock_says(self, setup: Setup) -> None:
        import os

        photo(setup.source / "a.png")
        setup.run()
        os.utime(setup.source / "a.png", (0, 0))
        os.utime(setup.output / "a.png", (10**9, 10**9))
        assert statuses(setup.run()) == ["skipped"]

    def test_another_input_or_other_settings_redo_it(self, setup: Setup) -> None:
        photo(setup.source / "a.png")
        setup.run()
        assert statuses(setup.run(settings_sha256="other")) == ["done"]
        pixels = photo(setup.source / "a.png", seed=5)
        assert statuses(setup.run(settings_sha256="other")) == ["done"]
        assert np.array_equal(setup.result("a.png"), upscaled(pixels[None])[0])
        assert statuses(setup.run(settings_sha256="other")) == ["skipped"]

    def test_a_missing_output_is_made_again(self, setup: Setup) -> None:
        photo(setup.source / "a.png")
        setup.run()
        (setup.output / "a.png").unlink()
        assert statuses(setup.run()) == ["done"]

    def test_what_somebody_else_made_or_edited_is_never_replaced_unasked(self, setup: Setup) -> None:
        photo(setup.source / "a.png")
        photo(setup.source / "b.png")
        setup.output.mkdir()
        (setup.output / "a.png").write_bytes(b"precious")
        reports = setup.run()
        assert statuses(reports) == ["failed", "done"]
        assert "not made by this tool" in reports[0].error
        assert (setup.output / "a.png").read_bytes() == b"precious"
        (setup.output / "b.png").write_bytes(b"edited")
        assert statuses(setup.run()) == ["failed", "failed"]
        assert statuses(setup.run(overwrite=True)) == ["done", "done"]

    def test_a_damaged_manifest_says_nothing_and_breaks_nothing(self, setup: Setup) -> None:
        photo(setup.source / "a.png")
        setup.run()
        path = setup.output / ".espan-deploy.jsonl"
        path.write_text(path.read_text() + 'null\n[]\n{"a": 1}\n{"output": "x', encoding="utf-8")
        assert statuses(setup.run()) == ["skipped"]
        photo(setup.source / "b.png")
        assert statuses(setup.run()) == ["skipped", "done"]
        assert statuses(setup.run()) == ["skipped", "skipped"]

    def test_leftovers_of_a_killed_run_are_removed(self, setup: Setup) -> None:
        photo(setup.source / "sub" / "a.png")
        (setup.output / "sub").mkdir(parents=True)
        part = setup.output / "sub" / ".espan-deploy-x.part"
        part.write_bytes(b"half")
        setup.run()
        assert not part.exists()

    def test_a_second_run_on_the_same_folder_is_refused(self, setup: Setup) -> None:
        photo(setup.source / "a.png")
        with FolderDestination(setup.output), pytest.raises(InputError, match="another run"):
            setup.run()


def test_a_lane_retries_only_what_memory_failed(setup: Setup) -> None:
    def fail(_: Images) -> None:
        raise InferenceError("unsupported")

    with pytest.raises(InferenceError, match="unsupported"):
        Lane(NumpyRunner(fail), Fallback(None)).upscale(
            [np.zeros((4, 4, 3), np.uint8)], (slice(0, 4), slice(0, 4)), None
        )
