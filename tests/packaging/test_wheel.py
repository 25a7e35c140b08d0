"""What gets installed: one importable package, with its data."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = {".git", ".venv", "build", "tests", "docs", "training"}
    source.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ignored and not path.name.endswith(".egg-info"):
            subprocess.run(["cp", "-r", str(path), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_one_top_level_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"espan_deploy"}


def test_every_package_is_listed(wheel: zipfile.ZipFile) -> None:
    """pyproject lists packages by hand; one forgotten would be missing from the wheel only."""
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "espan_deploy").rglob("*.py")}
    assert expected | {"espan_deploy/py.typed"} <= set(wheel.namelist())


def test_licence_and_command_are_in_it(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert any(name.endswith("LICENSE") for name in names)
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "espan-deploy = espan_deploy.cli.main:main" in wheel.read(entry_points).decode()
