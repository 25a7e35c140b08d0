"""The driver and real workers, without a cluster: who dies when is said beforehand."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torture
from local_actors import Fate, LocalActors, given
from PIL import Image
from synthetic import save_synthetic

from espan_deploy.cluster import worker as worker_module
from espan_deploy.cluster.foreman import Actors
from espan_deploy.cluster.ledger import MAX_DEATHS
from espan_deploy.cluster.report import ClusterReport
from espan_deploy.cluster.upscale import ClusterUpscaling
from espan_deploy.cluster.worker import Orders
from espan_deploy.errors import BackendUnavailableError, InputError
from espan_deploy.pipeline.opened import UpscaleSettings
from espan_deploy.pipeline.shard import Shard
from espan_deploy.pipeline.upscale import Upscaling
from espan_deploy.stores.folder import FolderSource

SETTINGS = UpscaleSettings(engine="onnxruntime", precision="fp32", threads=1)
COUNT = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_synthetic(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for index in range(COUNT):
        Image.fromarray(torture.picture(24, 16, seed=index)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, source: Path, model: Path) -> dict[str, bytes]:
    """What one process makes of it."""
    output = tmp_path_factory.mktemp("plain") / "out"
    Upscaling(source, output, model, SETTINGS).run()
    return results(output)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Four files to a first turn, and no waiting for anything."""
    monkeypatch.setattr("espan_deploy.cluster.foreman.FIRST_PIXELS", 4 << 13)
    monkeypatch.setattr("espan_deploy.cluster.foreman.TURN_SECONDS", 0.05)
    monkeypatch.setattr("espan_deploy.cluster.foreman.STAFF_SECONDS", 0.02)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


class Job:
    """A run, its actors at hand."""

    def __init__(
        self,
        source: Path,
        output: Path,
        model: Path | None,
        fate: Fate = lambda *_: "",
        *,
        places: dict[str, int] | None = None,
        settings: UpscaleSettings = SETTINGS,
    ) -> None:
        self.fate, self.places = fate, places or {"n0": 2, "n1": 1}
        self.upscaling = ClusterUpscaling(source, output, model, settings, self._staffed)

    def _staffed(self, orders: Orders) -> AbstractContextManager[Actors]:
        self.actors = LocalActors(orders, self.places, self.fate)
        return given(self.actors)

    def run(self, during: Callable[[], None] = lambda: None) -> ClusterReport:
        return self.upscaling.run(during)


def test_the_same_files_as_one_process_and_one_report(
    tmp_path: Path, source: Path, model: Path, expected: dict[str, bytes]
) -> None:
    report = Job(source, tmp_path / "out", model).run()
    assert results(tmp_path / "out") == expected
    assert report.count("done") == COUNT
    assert [file.input for file in report.files] == sorted(expected)
    assert set(report.latency_ms()) == {"decode", "infer", "encode", "publish", "end_to_end"}
    assert report.engine["backend"] == "onnxruntime"
    assert sum(worker.files for worker in report.workers) == COUNT
    assert sum(worker.pixels for worker in report.workers) == COUNT * 24 * 16
    again = Job(source, tmp_path / "out", model).run()
    assert (again.count("done"), again.count("skipped")) == (0, COUNT)
    # The folder is as one process would have left it, and one process goes on from it.
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == [".espan-deploy.jsonl"]
    assert Upscaling(source, tmp_path / "out", model, SETTINGS).run().count("skipped") == COUNT


def test_each_file_gets_the_model_that_fits_it(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for index in range(3):
        Image.fromarray(torture.picture(16, 16, seed=index)).save(source / f"{index}.png")
        Image.fromarray(torture.picture(16, 16, seed=index)).save(source / f"{index}.jpg", quality=60)
    Upscaling(source, tmp_path / "plain", None, SETTINGS).run()
    report = Job(source, tmp_path / "out", None, places={"n0": 2}).run()
    assert report.taken == Counter(clean=3, photo=3)
    assert results(tmp_path / "out") == results(tmp_path / "plain")


def test_a_file_that_cannot_be_read_is_a_row(tmp_path: Path, source: Path, model: Path) -> None:
    bad = tmp_path / "in"
    bad.mkdir()
    (bad / "a.png").write_bytes((source / "00.png").read_bytes())
    (bad / "b.png").write_bytes(b"")
    report = Job(bad, tmp_path / "out", model).run()
    assert [(file.input, file.status) for file in report.files] == [("a.png", "done"), ("b.png", "failed")]
    assert report.files[1].error == "the file is empty"


def test_dead_workers_are_replaced_and_nothing_is_lost(
    tmp_path: Path, source: Path, model: Path, expected: dict[str, bytes]
) -> None:
    """Three turns kill, fewer than a file is given up for; what the dead still write does no harm."""
    turns = iter(range(1, 10_000))

    def fate(_worker: str, method: str, _arguments: tuple[Any, ...]) -> str:
        return "killed" if method == "turn" and next(turns) in (1, 3, 5) else ""

    report = Job(source, tmp_path / "out", model, fate).run()
    assert report.deaths == MAX_DEATHS - 1
    assert report.count("done") + report.count("skipped") == COUNT
    assert results(tmp_path / "out") == expected
    assert "died and their files were done by others" in report.summary()


def test_a_poisonous_picture_costs_itself_alone(
    tmp_path: Path, source: Path, model: Path, expected: dict[str, bytes]
) -> None:
    def fate(_worker: str, method: str, arguments: tuple[Any, ...]) -> str:
        if method == "turn" and any(file.entry.name == "07.png" for file in arguments[0]):
            return "killed by signal 11"
        return ""

    report = Job(source, tmp_path / "out", model, fate).run()
    (row,) = (file for file in report.files if file.status == "failed")
    assert row.input == "07.png"
    assert row.error == "4 workers ended while they had it: killed by signal 11"
    assert report.deaths == MAX_DEATHS
    assert report.count("done") + report.count("skipped") == COUNT - 1
    rest = {name: data for name, data in expected.items() if name != "07.png"}
    assert {name: data for name, data in results(tmp_path / "out").items() if name != "07.png"} == rest


def test_who_cannot_begin_takes_no_part(tmp_path: Path, source: Path, model: Path) -> None:
    job = Job(source, tmp_path / "out", model, places={"n0": 1, "n1": 1})
    first = threading.Event()
    real = worker_module.Worker.open

    def refuse(self: worker_module.Worker, decided: Any) -> Any:
        if not first.is_set():
            first.set()
            raise BackendUnavailableError("no such device")
        return real(self, decided)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module.Worker, "open", refuse)
        report = job.run()
    assert report.count("done") == COUNT
    assert report.refused == ["no such device"]
    assert "took no part: no such device, 1 time(s)" in report.summary()


def test_where_nobody_can_begin_the_reason_is_said(tmp_path: Path, source: Path, model: Path) -> None:
    settings = UpscaleSettings(engine="tensorrt", precision="fp16", threads=1)
    with pytest.raises(BackendUnavailableError, match="TensorRT cannot be used"):
        Job(source, tmp_path / "out", model, settings=settings).run()
    with pytest.raises(BackendUnavailableError, match="ended before they could begin: killed"):
        Job(source, tmp_path / "out", model, lambda _w, method, _a: "killed" * (method == "open")).run()


def test_another_version_is_refused(tmp_path: Path, source: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(source, tmp_path / "out", model)
    monkeypatch.setattr(worker_module, "__version__", "0.0")
    with pytest.raises(BackendUnavailableError, match=r"espan-deploy 0\.0 is installed on"):
        job.run()


def test_a_worker_that_sees_another_folder_is_refused(
    tmp_path: Path, source: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine does that has a folder of the same name."""
    job = Job(source, tmp_path / "out", model)
    real = worker_module.open_destination

    def elsewhere(location: str, writer: Any) -> Any:
        return real(location + "-of-another-machine", writer)

    monkeypatch.setattr(worker_module, "open_destination", elsewhere)
    with pytest.raises(InputError, match="not the folder that the run writes"):
        job.run()
    assert not (tmp_path / "out-of-another-machine").exists()


def test_a_stopped_run_finishes_what_was_begun_and_goes_on_later(
    tmp_path: Path, source: Path, model: Path, expected: dict[str, bytes]
) -> None:
    job = Job(source, tmp_path / "out", model)

    def stop_soon() -> None:
        if job.upscaling.finished:
            job.upscaling.stop()

    report = job.run(stop_soon)
    assert report.interrupted
    assert report.count("done") > 0
    assert report.counts.total() == COUNT
    assert len(results(tmp_path / "out")) == report.count("done")
    again = Job(source, tmp_path / "out", model).run()
    assert again.count("skipped") == report.count("done")
    assert results(tmp_path / "out") == expected


def test_a_listing_that_breaks_off_is_said_and_what_was_listed_is_done(
    tmp_path: Path, source: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FolderSource.entries

    def broken(self: FolderSource) -> Any:
        for index, entry in enumerate(real(self)):
            if index == 10:
                raise InputError("cannot list it any more")
            yield entry

    job = Job(source, tmp_path / "out", model)
    monkeypatch.setattr(FolderSource, "entries", broken)
    job.upscaling.total = None
    report = job.run()
    assert report.stopped_because == "cannot list it any more"
    assert report.count("done") == 9  # the tenth's name depends on what is next


def test_a_full_disk_stops_everybody(
    tmp_path: Path, source: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from espan_deploy.stores.folder import FolderPart

    def full(self: FolderPart, *_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(FolderPart, "publish", full)
    report = Job(source, tmp_path / "out", model).run()
    assert report.stopped_because == "the disk is full"
    assert report.counts.total() == COUNT
    assert report.count("done") == 0
    assert results(tmp_path / "out") == {}


def test_a_cluster_without_room_is_said(
    tmp_path: Path, source: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("espan_deploy.cluster.foreman.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(LocalActors, "call", lambda *_: None)  # nobody ever answers
    job = Job(source, tmp_path / "out", model)
    said: list[str] = []

    def look() -> None:
        said.append(job.upscaling.notice)
        job.upscaling.stop()

    report = job.run(look)
    assert said[0] == "the cluster has had no room so far for any of 3 worker(s); waiting for it"
    assert report.count("not started") == COUNT


def test_a_shard_by_a_cluster(tmp_path: Path, source: Path, model: Path, expected: dict[str, bytes]) -> None:
    for number in (1, 2):
        settings = UpscaleSettings(engine="onnxruntime", precision="fp32", threads=1, shard=Shard(number, 2))
        report = Job(source, tmp_path / "out", model, settings=settings).run()
        assert 0 < report.count("done") < COUNT
    assert results(tmp_path / "out") == expected
