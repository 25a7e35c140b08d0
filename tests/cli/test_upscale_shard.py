"""``upscale --shard``: what an array of jobs does."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torture
from click.testing import CliRunner, Result
from PIL import Image
from synthetic import save_synthetic

from espan_deploy.cli.main import main


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def upscale(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["upscale", *map(str, arguments)])


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_the_parts_make_the_whole_and_each_goes_on_alone(tmp_path: Path) -> None:
    model, source = save_synthetic(tmp_path / "tiny.onnx"), tmp_path / "in"
    source.mkdir()
    for index in range(12):
        Image.fromarray(torture.picture(20, 14, seed=index)).save(source / f"{index}.png")
    (source / "bad.png").write_bytes(b"")
    options = ("--model", model, "--precision", "fp32", "--engine", "onnxruntime", "--json")
    assert upscale(source, tmp_path / "whole", *options).exit_code == 4
    parts = [upscale(source, tmp_path / "parts", *options, "--shard", f"{number}/4") for number in range(1, 5)]
    counts = [json.loads(part.stdout)["counts"] for part in parts]
    assert sum(count["done"] for count in counts) == 12
    assert [count["failed"] for count in counts].count(1) == 1
    assert sorted(part.exit_code for part in parts) == [0, 0, 0, 4]
    assert json.loads(parts[2].stdout)["settings"]["shard"] == {"number": 3, "of": 4}
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    # A run without parts knows what they did.
    again = json.loads(upscale(source, tmp_path / "parts", *options).stdout)["counts"]
    assert (again["done"], again["skipped"]) == (0, 12)


@pytest.mark.parametrize("part", ["0/4", "5/4", "3", "a/b", "1/0"])
def test_what_is_no_part(tmp_path: Path, part: str) -> None:
    result = upscale(tmp_path, tmp_path / "out", "--shard", part)
    assert result.exit_code == 2
    assert "is no part like 3/16" in result.stderr


def test_a_part_may_have_nothing_to_do(tmp_path: Path) -> None:
    model, source = save_synthetic(tmp_path / "tiny.onnx"), tmp_path / "in"
    source.mkdir()
    Image.fromarray(torture.picture(8, 8)).save(source / "0.png")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda part: _counts(source, tmp_path / "out", model, part), ("1/2", "2/2")))
    assert sorted(found) == [0, 1]


def _counts(source: Path, output: Path, model: Path, part: str) -> int:
    from espan_deploy.pipeline.opened import UpscaleSettings
    from espan_deploy.pipeline.shard import Shard
    from espan_deploy.pipeline.upscale import Upscaling

    settings = UpscaleSettings(
        engine="onnxruntime", precision="fp32", threads=1, shard=Shard(*map(int, part.split("/")))
    )
    report = Upscaling(source, output, model, settings).run()
    assert report.counts.total() == report.count("done")
    return report.count("done")
