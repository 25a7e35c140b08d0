"""What ``upscale`` says of its choice, and the line on a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from synthetic import save_synthetic

from espan_deploy import backends
from espan_deploy.backends import choice
from espan_deploy.cli.main import main
from espan_deploy.cli.upscale import progress_text
from espan_deploy.files import CACHE_VARIABLE

ROOT = Path(__file__).resolve().parents[2]

SIDE = 300


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, and the model beside them."""
    save_synthetic(tmp_path / "tiny.onnx")
    (tmp_path / "in").mkdir()
    for index in range(3):
        pixels = np.full((SIDE, SIDE, 3), 80 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{index}.png")
    return tmp_path


def upscale(folder: Path, *options: str) -> Any:
    paths = [str(folder / "in"), str(folder / "out"), "--model", str(folder / "tiny.onnx"), "--overwrite"]
    return CliRunner().invoke(main, ["upscale", *paths, "--threads", "2", *options])


def on_cpu() -> bool:
    return backends.choose("auto").backend.on_cpu


class TestChoice:
    def test_a_small_job_is_a_safe_guess(self, folder: Path) -> None:
        if not on_cpu():
            pytest.skip("this machine has a GPU")
        result = upscale(folder)
        assert result.exit_code == 0, result.output
        assert "fp32: a safe guess: so small a job is not measured; `espan-deploy bench --choose`" in result.stdout

    def test_a_long_one_is_measured_and_the_next_knows(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if not on_cpu():
            pytest.skip("this machine has a GPU")
        least = 3 * SIDE * SIDE // choice.PIXELS_PER_CALL
        monkeypatch.setattr(choice, "LEAST_CALLS", least)
        monkeypatch.setattr(choice, "MAX_SHARE", 1e6)
        found = json.loads(upscale(folder, "--json").stdout)["engine"]
        assert found["choice"]["basis"] == "measured"
        assert len(found["choice"]["table"]["rows"]) >= 2
        monkeypatch.setattr(choice, "LEAST_CALLS", least + 1)
        known = json.loads(upscale(folder, "--json").stdout)["engine"]
        assert known["choice"]["basis"] == "known"
        assert (known["backend"], known["precision"]) == (found["backend"], found["precision"])
        text = upscale(folder).stdout.splitlines()[0]
        assert text.startswith(f"{found['backend']} {found['precision']}: ")
        assert "measured on this machine on" in text

    def test_what_is_asked_for_is_said_so(self, folder: Path) -> None:
        result = upscale(folder, "--engine", "onnxruntime", "--precision", "fp32")
        assert result.stdout.startswith("onnxruntime fp32: asked for\n")

    def test_without_a_cache_it_works_and_says_so(
        self, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not on_cpu():
            pytest.skip("this machine has a GPU")
        cache.write_text("a file where the folder should be")
        monkeypatch.setattr(choice, "LEAST_CALLS", 1)
        monkeypatch.setattr(choice, "MAX_SHARE", 1e6)
        result = upscale(folder)
        assert result.exit_code == 0
        assert "3 done" in result.stdout
        assert "without what earlier runs found out: cannot" in result.stderr


class TestProgress:
    def test_what_it_says(self) -> None:
        assert progress_text(4, 2.0, "24 megapixels", 1) == "2.0 images/s, 24 megapixels, 1 failed"
        assert progress_text(1, 2.0, "", 0) == "0.5 images/s"
        assert progress_text(0, 0.0, "", 0) == ""

    @pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
    def test_on_a_terminal_it_counts_to_the_end(self, folder: Path) -> None:
        import pty

        ours, theirs = pty.openpty()
        command = [sys.executable, str(ROOT / "cli.py"), "upscale", str(folder / "in"), str(folder / "out")]
        done = subprocess.run(
            [*command, "--model", str(folder / "tiny.onnx"), "--precision", "fp32"],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
            check=True,
        )
        os.close(theirs)
        shown = os.read(ours, 1 << 16).decode()
        os.close(ours)
        assert "0/3" in shown
        assert "3/3" in shown
        assert "images/s" in shown
        assert b"3 done" in done.stdout
        assert b"images/s, " in done.stdout
