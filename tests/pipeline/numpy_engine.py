"""An engine made of numpy whose failures can be ordered, and the stages around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from synthetic import synthetic_description

from espan_deploy.backends.base import EngineInfo, Images, Runner
from espan_deploy.pipeline.decode import EXTENSIONS
from espan_deploy.pipeline.encode import EncodeSettings
from espan_deploy.pipeline.encoded import FileSettings, file_jobs
from espan_deploy.pipeline.infer import Fallback, Lane
from espan_deploy.pipeline.jobs import Job
from espan_deploy.pipeline.names import outputs
from espan_deploy.pipeline.plan import BatchPolicy, TilePolicy, fixed_batch
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.run import Run, RunSettings
from espan_deploy.stores.folder import FolderDestination, FolderSource

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
        files = FileSettings(settings_sha256, EncodeSettings(), overwrite)
        policy = BatchPolicy() if batch is None else fixed_batch(batch)
        settings = RunSettings(tiles=TilePolicy(tile, max_pixels), batch=policy, **changes)
        ended: dict[int, FileReport] = {}

        def on_end(job: Job, report: FileReport, _: BaseException | None) -> None:
            assert job.number not in ended
            ended[job.number] = report

        with FolderDestination(self.output) as destination:
            source = FolderSource(self.source, EXTENSIONS)
            jobs = file_jobs(source, outputs(source.entries(), "png"), destination, files)
            fallback = Fallback(self.fallback)
            self.last = Run(
                jobs,
                lanes=[Lane(runner, fallback) for runner in runners or [NumpyRunner()]],
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


def statuses(reports: list[FileReport]) -> list[str]:
    return [report.status for report in reports]
