"""``upscale --cluster``: what is said without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torture
from click.testing import CliRunner, Result
from PIL import Image
from synthetic import save_synthetic

from espan_deploy.cli.main import main


def upscale(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["upscale", *map(str, arguments)])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "a.png"
    path.parent.mkdir()
    Image.fromarray(torture.picture(8, 8)).save(path)
    return path


def test_without_ray_its_extra_is_named(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    model = save_synthetic(tmp_path / "tiny.onnx")
    result = upscale(photo, tmp_path / "out", "--model", model, "--cluster", "auto", "--json")
    assert result.exit_code == 5
    error = json.loads(result.stdout)["error"]
    assert error["message"] == "--cluster needs Ray, which is not installed"
    assert error["hint"] == "pip install 'espan-deploy[cluster]'"


def test_a_dry_run_needs_no_cluster(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = upscale(photo.parent, tmp_path / "out", "--cluster", "ray://nowhere:1", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "a.png -> a.png  8x8" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--actors", "2"), ("--actor-cpus", "2"), ("--actor-gpus", "1")])
def test_actors_without_a_cluster_are_a_mistake(tmp_path: Path, photo: Path, option: tuple[str, str]) -> None:
    result = upscale(photo, tmp_path / "out", *option)
    assert result.exit_code == 2
    assert "are for --cluster" in result.stderr


def test_a_pipe_and_a_cluster_exclude_each_other(photo: Path) -> None:
    result = upscale(photo, "-", "--cluster", "auto")
    assert result.exit_code == 2
    assert "leave out --cluster" in result.stderr
