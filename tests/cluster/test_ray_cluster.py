"""On real Ray clusters of several nodes on this machine: what is killed, removed and restarted costs no picture."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torture
from click.testing import CliRunner, Result
from mortal_worker import POISON, MortalWorker
from PIL import Image
from ray_nodes import Nodes, kill_one, nodes
from servers import BUCKET, Server, free_port
from synthetic import save_synthetic

from espan_deploy.cli.main import main
from espan_deploy.cluster.actors import RayActors, Resources, connected
from espan_deploy.cluster.report import ClusterReport
from espan_deploy.cluster.upscale import ClusterUpscaling, staffed_by_ray
from espan_deploy.cluster.worker import Orders
from espan_deploy.errors import BackendUnavailableError
from espan_deploy.pipeline.opened import UpscaleSettings
from espan_deploy.pipeline.upscale import Upscaling

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = UpscaleSettings(engine="onnxruntime", precision="fp32")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the workers to kill in /proc")

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_synthetic(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def two_nodes(moto: Server) -> Iterator[Nodes]:
    """With what leads to the bucket in their environment, as machines have it."""
    with pytest.MonkeyPatch.context() as patch:
        moto.use(patch)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for MortalWorker
        with nodes(2) as made:
            yield made


def photographs(folder: Path, count: int, width: int = 200, height: int = 150) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.fromarray(torture.picture(width, height, seed=index % 7)).save(folder / f"{index:03}.png")
    return folder


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def plain(source: Path, output: Path, model: Path) -> dict[str, bytes]:
    Upscaling(source, output, model, SETTINGS).run()
    return results(output)


def on(address: str, source: Path, output: Path, model: Path, **resources: Any) -> ClusterReport:
    staffed = staffed_by_ray(address, Resources(**resources))
    return ClusterUpscaling(source, output, model, SETTINGS, staffed).run()


def upscale(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["upscale", *map(str, arguments)])


def test_between_buckets(two_nodes: Nodes, moto: Server, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    moto.use(monkeypatch)
    source = photographs(tmp_path / "in", 20, 40, 30)
    (source / "bad.png").write_bytes(b"")
    for path in source.iterdir():
        moto.client.put_object(Bucket=BUCKET, Key=f"ray/in/{path.name}", Body=path.read_bytes())
    ends = (f"s3://{BUCKET}/ray/in", f"s3://{BUCKET}/ray/out")
    options = (
        "--model",
        model,
        "--engine",
        "onnxruntime",
        "--precision",
        "fp32",
        "--cluster",
        two_nodes.client_address,
    )
    result = upscale(*ends, *options, "--json")
    assert result.exit_code == 4, result.output
    document = json.loads(result.stdout)
    assert (document["counts"]["done"], document["counts"]["failed"]) == (20, 1)
    assert document["engine"]["threads"] == 1
    assert 1 <= len([worker for worker in document["cluster"]["workers"] if worker["files"]]) <= 2
    for name, data in plain(source, tmp_path / "out", model).items():
        assert moto.client.get_object(Bucket=BUCKET, Key=f"ray/out/{name}")["Body"].read() == data
    again = upscale(*ends, *options)
    assert "0 done, 20 already done, 1 failed" in again.stdout
    assert "cluster: " in again.stdout


def test_killed_workers_cost_nothing(two_nodes: Nodes, model: Path, tmp_path: Path) -> None:
    source = photographs(tmp_path / "in", 160)
    upscaling = ClusterUpscaling(
        source, tmp_path / "out", model, SETTINGS, staffed_by_ray(two_nodes.address, Resources())
    )
    killed: list[int] = []

    def kill() -> None:
        if upscaling.finished >= 30 * (len(killed) + 1) and len(killed) < 3 and kill_one():
            killed.append(upscaling.finished)

    report = upscaling.run(kill)
    assert 1 <= report.deaths <= len(killed)  # a fast machine may be done before the third
    assert report.count("done") + report.count("skipped") == 160, report.summary()
    assert results(tmp_path / "out") == plain(source, tmp_path / "plain", model)
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".espan-deploy.jsonl"]


@pytest.mark.every
def test_a_worker_killed_every_few_seconds_whatever_it_does(
    two_nodes: Nodes, moto: Server, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between buckets; also while it has a picture that is suspect already."""
    moto.use(monkeypatch)
    source = photographs(tmp_path / "in", 250)
    for path in source.iterdir():
        moto.client.put_object(Bucket=BUCKET, Key=f"mortal/in/{path.name}", Body=path.read_bytes())
    staffed = staffed_by_ray(two_nodes.address, Resources())
    ends = (f"s3://{BUCKET}/mortal/in", f"s3://{BUCKET}/mortal/out")
    upscaling = ClusterUpscaling(*ends, model, SETTINGS, staffed)
    last = [time.monotonic()]

    def kill() -> None:
        if time.monotonic() - last[0] > 3 and kill_one():
            last[0] = time.monotonic()

    report = upscaling.run(kill)
    assert report.count("done") + report.count("skipped") == 250, report.summary()
    expected = plain(source, tmp_path / "plain", model)
    listed = moto.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="mortal/out/")
    assert len([item for page in listed for item in page["Contents"]]) == 250
    for name, data in expected.items():
        assert moto.client.get_object(Bucket=BUCKET, Key=f"mortal/out/{name}")["Body"].read() == data


@pytest.mark.every
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_is_stopped_or_killed_goes_on_later(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Politely, by Ctrl-C (which reaches all processes of a terminal), or not at all."""
    source, output = photographs(tmp_path / "in", 250), tmp_path / "out"
    options = ("--model", str(model), "--engine", "onnxruntime", "--precision", "fp32", "--cluster", "auto", "--json")
    command = [sys.executable, str(ROOT / "cli.py"), "upscale", str(source), str(output), *options]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        while process.poll() is None and len(list(output.glob("*.png"))) < 20:
            time.sleep(0.02)
        if number is signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        said, talk = process.communicate(timeout=60)
    if number is signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 130, talk
        counts = json.loads(said)["counts"]
        assert counts["done"] + counts["not started"] == 250
    again = subprocess.run(command, check=True, timeout=200, **pipes)
    counts = json.loads(again.stdout)["counts"]
    assert counts["done"] + counts["skipped"] == 250
    assert counts["skipped"] >= 20
    assert results(output) == plain(source, tmp_path / "plain", model)


def test_a_poisonous_picture_costs_itself_alone(two_nodes: Nodes, model: Path, tmp_path: Path) -> None:
    source = photographs(tmp_path / "in", 30, 40, 30)
    (source / "017.png").write_bytes((source / "017.png").read_bytes() + POISON)

    @contextmanager
    def staffed(orders: Orders) -> Iterator[RayActors]:
        with connected(two_nodes.address):
            yield RayActors(orders, Resources(), MortalWorker)

    report = ClusterUpscaling(source, tmp_path / "out", model, SETTINGS, staffed).run()
    (row,) = (file for file in report.files if file.status == "failed")
    assert row.input == "017.png"
    assert re.match(
        "4 workers ended while they had it: The actor is dead because its worker process has died", row.error
    )
    expected = plain(source, tmp_path / "plain", model)
    del expected["017.png"]
    assert results(tmp_path / "out") == expected


def test_a_node_is_removed_and_another_joins(two_nodes: Nodes, model: Path, tmp_path: Path) -> None:
    source = photographs(tmp_path / "in", 160)
    staffed = staffed_by_ray(two_nodes.address, Resources())
    upscaling = ClusterUpscaling(source, tmp_path / "out", model, SETTINGS, staffed)
    removed: list[Any] = []

    def trouble() -> None:
        if upscaling.finished >= 20 and not removed:
            removed.append(two_nodes.nodes[0])
            two_nodes.remove(removed[0])
            two_nodes.nodes.append(two_nodes.add())

    report = upscaling.run(trouble)
    assert removed
    assert report.count("done") + report.count("skipped") == 160, report.summary()
    assert results(tmp_path / "out") == plain(source, tmp_path / "plain", model)


@pytest.mark.every
def test_the_head_is_restarted_between_two_runs_and_the_second_goes_on(model: Path, tmp_path: Path) -> None:
    source = photographs(tmp_path / "in", 60)
    with nodes(1) as first:
        upscaling = ClusterUpscaling(
            source, tmp_path / "out", model, SETTINGS, staffed_by_ray(first.address, Resources())
        )
        report = upscaling.run(lambda: upscaling.stop() if upscaling.finished >= 10 else None)
    assert report.interrupted
    assert 10 <= report.count("done") < 60
    with nodes(1) as second:
        again = on(second.address, source, tmp_path / "out", model)
    assert again.count("skipped") == report.count("done")
    assert again.count("done") + again.count("skipped") == 60
    assert results(tmp_path / "out") == plain(source, tmp_path / "plain", model)


def test_the_line_of_the_readme(moto: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a cluster of its own, on this machine alone."""
    text = (ROOT / "README.md").read_text("utf-8")
    (line,) = re.findall(r"^espan-deploy (upscale .* --cluster \S+)", text, re.M)
    moto.use(monkeypatch)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    source = photographs(tmp_path / "in", 2, 24, 16)
    for path in source.iterdir():
        moto.client.put_object(Bucket=BUCKET, Key=f"in/{path.name}", Body=path.read_bytes())
    try:
        result = CliRunner().invoke(main, line.split())
        assert result.exit_code == 0, result.output
        assert "2 done" in result.stdout
        for path in source.iterdir():
            moto.client.head_object(Bucket=BUCKET, Key=f"out/{path.name}")
    finally:
        for folder in ("in", "out"):
            for path in source.iterdir():
                moto.client.delete_object(Bucket=BUCKET, Key=f"{folder}/{path.name}")


def test_there_is_no_such_cluster() -> None:
    address = f"ray://127.0.0.1:{free_port()}"
    with pytest.raises(BackendUnavailableError, match=f"cannot reach a Ray cluster at {address}"), connected(address):
        pass
