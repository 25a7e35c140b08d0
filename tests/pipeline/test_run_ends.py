"""The stages between other ends than folders: pictures, pixels, memory."""

from __future__ import annotations

import io
import itertools
import queue
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from numpy_engine import NumpyRunner, upscaled
from PIL import Image

from espan_deploy.errors import InputError
from espan_deploy.pipeline.decoded import PictureInput, PixelOutput
from espan_deploy.pipeline.encode import EncodeSettings
from espan_deploy.pipeline.encoded import FileSettings, file_jobs
from espan_deploy.pipeline.infer import Fallback, Lane
from espan_deploy.pipeline.jobs import Job
from espan_deploy.pipeline.names import outputs
from espan_deploy.pipeline.picture import Picture, Pixels
from espan_deploy.pipeline.plan import BatchPolicy, TilePolicy, fixed_batch
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.run import Run, RunSettings
from espan_deploy.stores.memory import Memory


class TestOtherEnds:
    """What the stages are for besides folders."""

    def execute(self, jobs: Iterable[Job], **changes: Any) -> dict[int, tuple[FileReport, BaseException | None]]:
        ended: dict[int, tuple[FileReport, BaseException | None]] = {}
        values: dict[str, Any] = {"tiles": TilePolicy("auto", 1 << 20), "batch": BatchPolicy(), **changes}
        Run(
            jobs,
            lanes=[Lane(NumpyRunner(), Fallback(None)) for _ in range(2)],
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
        jobs = file_jobs(source, outputs(source.entries(), "same"), output, FileSettings("s", EncodeSettings()))
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
