"""The command from outside: what it writes, prints and exits with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torture
from click.testing import CliRunner, Result
from PIL import Image
from synthetic import save_synthetic

from espan_deploy.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_synthetic(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def upscale(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["upscale", *map(str, arguments)])


def photos(folder: Path, count: int = 3, width: int = 20, height: int = 14) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(torture.picture(width, height, seed=index)).save(folder / f"{index}.png")
    return folder


def test_a_folder(tmp_path: Path, model: Path) -> None:
    result = upscale(photos(tmp_path / "in"), tmp_path / "out", "--model", model, "--precision", "fp32")
    assert result.exit_code == 0, result.output
    assert "3 done, 0 already done, 0 failed" in result.stdout
    stages = r"latency, ms +p50 +p90 +p99\ndecode .*\ninfer .*\nencode .*\npublish .*\nend to end "
    assert re.search(stages, result.stdout)
    assert result.stderr == ""
    for index in range(3):
        with Image.open(tmp_path / "out" / f"{index}.png") as image:
            assert image.size == (80, 56)
            # The synthetic network is near the identity.
            original = torture.picture(20, 14, seed=index)
            assert np.corrcoef(np.asarray(image)[1::4, 1::4].ravel(), original.ravel())[0, 1] > 0.9


def test_a_single_file(tmp_path: Path, model: Path) -> None:
    source = photos(tmp_path / "in") / "1.png"
    assert upscale(source, tmp_path / "out", "--model", model, "--precision", "fp32").exit_code == 0
    assert [path.name for path in (tmp_path / "out").glob("*.*")] == ["1.png"] or (tmp_path / "out" / "1.png").is_file()


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_tiles_change_nothing(tmp_path: Path, model: Path, engine: str) -> None:
    pytest.importorskip(engine)
    source = photos(tmp_path / "in", 2, 61, 47)
    common = ("--model", model, "--engine", engine, "--precision", "fp32")
    assert upscale(source, tmp_path / "whole", *common, "--tile", "none").exit_code == 0
    assert upscale(source, tmp_path / "tiled", *common, "--tile", "16").exit_code == 0
    for name in ("0.png", "1.png"):
        whole, tiled = (np.asarray(Image.open(tmp_path / kind / name)).astype(int) for kind in ("whole", "tiled"))
        difference = np.abs(whole - tiled)
        assert difference.max() <= 1
        assert (difference == 0).mean() >= 0.99999


@pytest.mark.parametrize("format_name", ["png", "jpeg", "webp", "avif", "tiff"])
def test_formats(tmp_path: Path, model: Path, format_name: str) -> None:
    result = upscale(photos(tmp_path / "in", 1), tmp_path / "out", "--model", model, "--format", format_name)
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "out").glob("0.*")
    with Image.open(path) as image:
        assert (image.format or "").lower() == format_name


def test_two_inputs_for_one_output_are_both_kept(tmp_path: Path, model: Path) -> None:
    source = photos(tmp_path / "in", 1)
    Image.open(source / "0.png").convert("RGB").save(source / "0.jpg")
    Image.open(source / "0.png").convert("RGB").save(source / "0.bmp")
    result = upscale(source, tmp_path / "out", "--model", model, "--format", "png")
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["0.bmp.png", "0.jpg.png", "0.png"]


def test_json_is_one_document_and_the_only_thing_on_stdout(tmp_path: Path, model: Path) -> None:
    source = photos(tmp_path / "in", 2)
    (source / "bad.png").write_bytes(b"")
    report_path = tmp_path / "report.json"
    result = upscale(source, tmp_path / "out", "--model", model, "--json", "--report", report_path)
    assert result.exit_code == 4
    document = json.loads(result.stdout)
    assert document == json.loads(report_path.read_text())
    assert document["schema_version"] == 1
    assert document["counts"] == {"done": 2, "damaged": 0, "skipped": 0, "failed": 1, "planned": 0, "not started": 0}
    assert set(document["latency_ms"]) == {"decode", "infer", "encode", "publish", "end_to_end"}
    by_name = {file["input"]: file for file in document["files"]}
    assert by_name["bad.png"]["error"] == "the file is empty"
    assert by_name["0.png"]["stage_ms"].keys() == {"decode", "infer", "encode", "publish", "end_to_end"}
    assert by_name["0.png"]["output_bytes"] == (tmp_path / "out" / "0.png").stat().st_size
    assert "failed: bad.png: the file is empty" in result.stderr


def test_the_same_command_again_does_nothing(tmp_path: Path, model: Path) -> None:
    arguments = (photos(tmp_path / "in"), tmp_path / "out", "--model", model)
    upscale(*arguments)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    result = upscale(*arguments)
    assert "0 done, 3 already done" in result.stdout
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert "3 done" in upscale(*arguments, "--overwrite").stdout
    assert "3 done" in upscale(*arguments[:3], save_synthetic(tmp_path / "other.onnx", seed=9)).stdout


def test_a_dry_run_touches_nothing(tmp_path: Path, model: Path) -> None:
    source = photos(tmp_path / "in", 1, 30, 20)
    result = upscale(source, tmp_path / "out", "--model", model, "--dry-run", "--tile", "16", "--format", "jpeg")
    assert result.exit_code == 0
    assert result.stdout == "0.png -> 0.jpg  30x20, 6 tile(s)\n"
    assert not (tmp_path / "out").exists()


class TestWhatIsWrongIsSaidFirst:
    def check(self, result: Result, code: int, pattern: str) -> None:
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        assert re.search(pattern, result.stderr), result.stderr
        assert "Traceback" not in result.output

    def test_no_such_folder(self, tmp_path: Path, model: Path) -> None:
        self.check(upscale(tmp_path / "nowhere", tmp_path / "out", "--model", model), 1, "there is no .*nowhere")

    def test_an_empty_folder(self, tmp_path: Path, model: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.txt").touch()
        result = upscale(tmp_path / "in", tmp_path / "out", "--model", model)
        self.check(result, 1, r"no images in .*1 \.txt")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("inner", ["", "sub/out"])
    def test_output_inside_the_input(self, tmp_path: Path, model: Path, inner: str) -> None:
        source = photos(tmp_path / "in")
        self.check(upscale(source, source / inner, "--model", model), 1, "lies in the input folder")

    def test_an_output_that_cannot_be_written(self, tmp_path: Path, model: Path) -> None:
        (tmp_path / "file").touch()
        self.check(upscale(photos(tmp_path / "in"), tmp_path / "file", "--model", model), 1, "not a folder")
        self.check(upscale(tmp_path / "in", tmp_path / "file" / "x", "--model", model), 1, "cannot write")

    def test_models(self, tmp_path: Path) -> None:
        source = photos(tmp_path / "in")
        text = tmp_path / "text.onnx"
        text.write_text("this is no model")
        bare = save_synthetic(tmp_path / "bare.onnx", described=False)
        self.check(upscale(source, tmp_path / "out", "--model", tmp_path / "none.onnx"), 1, "cannot read the model")
        self.check(upscale(source, tmp_path / "out", "--model", text), 1, "not an ONNX file")
        self.check(upscale(source, tmp_path / "out", "--model", bare), 1, "export")

    def test_engines(self, tmp_path: Path, model: Path) -> None:
        source = photos(tmp_path / "in")
        self.check(upscale(source, tmp_path / "out", "--model", model, "--engine", "abacus"), 5, "no engine 'abacus'")
        result = upscale(source, tmp_path / "out", "--model", model, "--engine", "onnxruntime", "--precision", "bf16")
        self.check(result, 5, "no precision bf16")

    def test_a_missing_engine_names_its_remedy(
        self, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import importlib.util

        real = importlib.util.find_spec
        for module in ("openvino", "onnxruntime"):
            monkeypatch.setattr(
                f"espan_deploy.backends.{module}.find_spec", lambda name: None if name in ENGINES else real(name)
            )
        result = upscale(photos(tmp_path / "in"), tmp_path / "out", "--model", model, "--engine", "openvino")
        self.check(result, 5, r"openvino is not installed(.|\n)*pip install")

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--tile", "seven"),
            ("--tile", "3"),
            ("--batch", "0"),
            ("--memory", "1M"),
            ("--memory", "lots"),
            ("--quality", "101"),
            ("--threads", "0"),
            ("--format", "xcf"),
        ],
    )
    def test_usage(self, tmp_path: Path, arguments: tuple[str, str]) -> None:
        result = upscale(photos(tmp_path / "in"), tmp_path / "out", *arguments)
        assert result.exit_code == 2
        assert "Usage:" in result.stderr

    def test_errors_as_json(self, tmp_path: Path, model: Path) -> None:
        result = upscale(tmp_path / "nowhere", tmp_path / "out", "--model", model, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["error"]["type"] == "InputError"


ENGINES = ("openvino", "onnxruntime")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX file system")
def test_the_torture_folder(tmp_path: Path, model: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    cases = torture.make(source)
    assert len(cases) >= 80
    report_path = tmp_path / "report.json"
    result = upscale(source, output, "--model", model, "--precision", "fp32", "--report", report_path)
    assert result.exit_code == 4, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    files = {file["input"]: file for file in json.loads(report_path.read_text())["files"]}
    assert len(files) == len(cases)
    expected = {b".espan-deploy.jsonl"}
    for case in cases:
        file = files[case.name.decode("utf-8", "backslashreplace")]
        target = os.path.join(os.fsencode(output), case.output or case.name)
        if case.error is not None:
            assert file["status"] == "failed", case
            assert re.search(case.error, file["error"]), (case, file["error"])
            continue
        assert file["status"] == "done", (case, file["error"])
        expected.add(case.output or case.name)
        with Image.open(target) as image:
            image.load()
            assert image.size == (case.size[0] * 4, case.size[1] * 4), case
            assert re.fullmatch(case.mode.replace("*", "A?"), image.mode), (case, image.mode)
    written = {
        os.path.relpath(os.path.join(folder, name), os.fsencode(output))
        for folder, _, names in os.walk(os.fsencode(output))
        for name in names
    }
    assert written == expected
    again = upscale(source, output, "--model", model, "--precision", "fp32")
    done = sum(case.error is None for case in cases)
    assert f"0 done, {done} already done, {len(cases) - done} failed" in again.stdout


class TestInterruption:
    def start(self, source: Path, output: Path, model: Path, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "cli.py"), "upscale", str(source), str(output), "--model", str(model)]
        return subprocess.Popen(
            [*command, "--precision", "fp32"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def wait_for_output(self, output: Path, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 60
        while not list(output.glob("*.png")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_control_c_finishes_what_is_in_flight(self, tmp_path: Path, model: Path) -> None:
        source, output = photos(tmp_path / "in", 70, 200, 150), tmp_path / "out"
        process = self.start(source, output, model)
        self.wait_for_output(output, process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        assert "latency, ms" in stdout
        assert "interrupted; the same command goes on from here" in stderr
        self.check_whole(output)
        finished = self.start(source, output, model)
        stdout, _ = finished.communicate(timeout=120)
        assert finished.returncode == 0
        assert len(list(output.glob("*.png"))) == 70

    def test_kill_nine_leaves_nothing_half_written(self, tmp_path: Path, model: Path) -> None:
        source, output = photos(tmp_path / "in", 60, 200, 150), tmp_path / "out"
        rng = np.random.default_rng(1)
        for _ in range(4):
            process = self.start(source, output, model)
            self.wait_for_output(output, process)
            time.sleep(float(rng.random()) * 0.2)
            process.kill()
            process.communicate()
            self.check_whole(output)
        finished = self.start(source, output, model)
        _, stderr = finished.communicate(timeout=120)
        assert finished.returncode == 0, stderr
        self.check_whole(output)
        assert len(list(output.glob("*.png"))) == 60
        assert not list(output.glob(".espan-deploy-*"))

    def check_whole(self, output: Path) -> None:
        for path in output.glob("*.png"):
            with Image.open(path) as image:
                image.load()


def test_help_has_an_example() -> None:
    result = upscale("--help")
    assert result.exit_code == 0
    assert "espan-deploy upscale photos/ upscaled/" in result.stdout


@pytest.fixture(scope="module")
def espan(espan_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("espan") / "espan.onnx"
    result = CliRunner().invoke(main, ["export", str(espan_checkpoint), "-o", str(path)])
    assert result.exit_code == 0, result.output
    return path


@pytest.mark.shared
class TestTheRealThing:
    """PSNR through the command's own PNG files, in FP32."""

    TOLERANCE = 0.002
    GREY_TOLERANCE = 0.005
    """Set14 has a grey image; it comes out grey, and the published figure is of three channels that differ."""

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize(("name", "published"), [("Set5", (30.043, 31.942)), ("Set14", (26.702, 28.520))])
    def test_psnr(
        self, tmp_path: Path, shared: Path, espan: Path, *, engine: str, name: str, published: tuple[float, float]
    ) -> None:
        pytest.importorskip(engine)
        images = shared / "images" / name
        result = upscale(images / "LR", tmp_path, "--model", espan, "--engine", engine, "--precision", "fp32")
        assert result.exit_code == 0, result.output
        figures = [
            self.psnr(path, images / "HR" / path.name.replace("LRBI", "HR").replace("_LR", "_HR"))
            for path in tmp_path.glob("*.png")
        ]
        assert len(figures) == len(list((images / "LR").iterdir()))
        assert np.mean(figures, axis=0) == pytest.approx(
            published, abs=self.GREY_TOLERANCE if name == "Set14" else self.TOLERANCE
        )

    def psnr(self, ours: Path, truth: Path) -> tuple[float, float]:
        a, b = (np.asarray(Image.open(path).convert("RGB")).astype(float) for path in (ours, truth))
        height, width = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])
        a, b = (image[4 : height - 4, 4 : width - 4] for image in (a, b))
        luma = np.array([65.481, 128.553, 24.966]) / 255
        return tuple(10 * np.log10(255**2 / np.mean(d**2)) for d in (a - b, (a - b) @ luma))  # type: ignore[return-value]
