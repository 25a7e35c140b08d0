"""The library's front door gives what the command gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torture
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import ExifTags, Image
from synthetic import save_synthetic

from espan_deploy import Upscaler
from espan_deploy.backends.model import ModelFile
from espan_deploy.cli.main import main
from espan_deploy.errors import BackendUnavailableError, InputError, InputShapeError
from espan_deploy.pipeline import opened as opened_module
from espan_deploy.pipeline import tiff
from espan_deploy.pipeline.engine import OpenEngine

ROOT = Path(__file__).resolve().parents[1]

GREY_LEVELS = 1
"""Grey goes through three channels and back, and 16 bits through float32: a level may round otherwise."""


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_synthetic(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def upscaler(model: Path) -> Iterator[Upscaler]:
    with Upscaler(model, precision="fp32") as opened:
        yield opened


def picture(width: int = 31, height: int = 23, seed: int = 0) -> NDArray[np.uint8]:
    return np.ascontiguousarray(torture.picture(width, height, seed=seed))


def test_arrays_images_and_paths_are_what_the_command_makes(tmp_path: Path, model: Path, upscaler: Upscaler) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    Image.fromarray(picture()).save(source / "a.png")
    arguments = ["upscale", str(source), str(output), "--model", str(model), "--precision", "fp32"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    with Image.open(output / "a.png") as file:
        expected = np.asarray(file)
    assert np.array_equal(upscaler(picture()), expected)
    for given in (Image.fromarray(picture()), source / "a.png", str(source / "a.png")):
        result = upscaler(given)
        assert isinstance(result, Image.Image)
        assert result.mode == "RGB"
        assert np.array_equal(np.asarray(result), expected)


def test_lists_share_calls_and_keep_their_order(upscaler: Upscaler) -> None:
    arrays = [picture(20 + index % 2, 16, index) for index in range(12)]
    results = upscaler(arrays)
    assert [result.shape for result in results] == [(64, 80 + 4 * (index % 2), 3) for index in range(12)]
    for array, result in zip(arrays, results, strict=True):
        assert np.array_equal(upscaler(array), result)
    assert upscaler([]) == []
    mixed = upscaler([arrays[0], Image.fromarray(arrays[1])])
    assert np.array_equal(mixed[0], results[0])
    assert isinstance(mixed[1], Image.Image)


def test_a_batch_gives_a_batch(upscaler: Upscaler) -> None:
    batch = np.stack([picture(seed=index) for index in range(3)])
    result = upscaler(batch)
    assert result.shape == (3, 92, 124, 3)
    assert np.array_equal(result[1], upscaler(batch[1]))


def test_tiles_change_nothing(model: Path, upscaler: Upscaler) -> None:
    array = picture(61, 47)
    with Upscaler(model, precision="fp32", tile=16) as tiled:
        difference = np.abs(tiled(array).astype(int) - upscaler(array))
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.999


@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_every_kind_of_array(upscaler: Upscaler, channels: int | None, dtype: Any) -> None:
    # Far from black and white: what overshoots them is clipped before three channels become grey, or after.
    levels = np.random.default_rng(0).integers(124, 133, (12, 14, channels or 1), dtype=np.uint8)
    top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    array = (levels / 255 * top).astype(dtype)
    if channels is None:
        array = array[..., 0]
    result = upscaler(array)
    assert result.dtype == (np.float32 if np.issubdtype(dtype, np.floating) else dtype)
    assert result.shape == (48, 56, *array.shape[2:])
    assert result.min() >= 0
    assert result.max() <= top
    reference = upscaler(levels if channels is not None else levels[..., 0])
    assert np.abs(result / top * 255 - reference.astype(float)).max() <= 0.5 + GREY_LEVELS


@pytest.mark.parametrize(
    ("mode", "result"),
    [("1", "L"), ("L", "L"), ("LA", "LA"), ("P", "RGB"), ("RGBA", "RGBA"), ("CMYK", "RGB"), ("I;16", "I;16")],
)
def test_every_kind_of_image(upscaler: Upscaler, mode: str, result: str) -> None:
    image = Image.fromarray(picture()).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    large = upscaler(image)
    assert (large.mode, large.size) == (result, (124, 92))


def test_orientation_profile_and_resolution(tmp_path: Path, upscaler: Upscaler) -> None:
    image, exif = Image.fromarray(picture()), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "somebody"
    path = tmp_path / "a.jpg"
    image.save(path, exif=exif, dpi=(72, 72), icc_profile=b"profile", quality=95)
    with Image.open(path) as opened:
        results = [upscaler(path), upscaler(opened)]
    for large in results:
        assert large.size == (92, 124)
        assert large.info["icc_profile"] == b"profile"
        assert large.info["dpi"] == (288, 288)
        assert large.getexif()[ExifTags.Base.Orientation] == 1
        assert large.getexif()[ExifTags.Base.Artist] == "somebody"


def test_sixteen_bits_of_colour_in_a_file_become_pillows_eight(tmp_path: Path, upscaler: Upscaler) -> None:
    pixels = picture().astype(np.uint16) * 257
    with (tmp_path / "deep.tif").open("wb") as file:
        writer = tiff.Writer(file, 31, 23, 3, 16)
        writer.write(tiff.compressed(pixels))
        writer.finish()
    large = upscaler(tmp_path / "deep.tif")
    assert large.mode == "RGB"
    assert np.abs(np.asarray(large).astype(int) - upscaler(picture())).max() <= 1


@pytest.fixture(scope="module")
def choosing() -> Iterator[Upscaler]:
    with Upscaler(engine="onnxruntime", precision="fp32", threads=2) as opened:
        yield opened


class TestWhichModel:
    """With none named, each image gets what the command takes for its file."""

    QUALITIES: ClassVar = {"a.png": None, "b.jpg": 90, "c.jpg": 50, "d.png": None}
    MODELS: ClassVar = {"a.png": "clean", "b.jpg": "camera", "c.jpg": "photo", "d.png": "clean"}

    @pytest.fixture
    def files(self, tmp_path: Path) -> dict[str, Path]:
        (tmp_path / "in").mkdir()
        paths = {name: tmp_path / "in" / name for name in self.QUALITIES}
        for seed, (name, path) in enumerate(paths.items()):
            quality = self.QUALITIES[name]
            Image.fromarray(picture(seed=seed)).save(path, **({} if quality is None else {"quality": quality}))
        return paths

    def by_the_command(self, folder: Path) -> dict[str, tuple[NDArray[np.uint8], str, str]]:
        """Of each file the pixels, the model taken, and why."""
        options = ["--format", "png", "--engine", "onnxruntime", "--precision", "fp32", "--threads", "2", "--json"]
        done = CliRunner().invoke(main, ["upscale", str(folder / "in"), str(folder / "out"), *options])
        assert done.exit_code == 0, done.output
        made = {}
        for file in json.loads(done.stdout)["files"]:
            with Image.open(folder / "out" / file["output"]) as result:
                made[file["input"]] = (np.asarray(result), file["model"], file["model_because"])
        return made

    def test_files_and_opened_images_get_the_commands(
        self, tmp_path: Path, files: dict[str, Path], choosing: Upscaler
    ) -> None:
        expected = self.by_the_command(tmp_path)
        assert {name: model for name, (_, model, _) in expected.items()} == self.MODELS
        for name, (pixels, model, because) in expected.items():
            with Image.open(files[name]) as image:
                for result in (choosing(files[name]), choosing(str(files[name])), choosing(image)):
                    assert np.array_equal(np.asarray(result), pixels), name
                    assert (result.info["model"], result.info["model_because"]) == (model, because)

    def test_a_list_may_need_them_all(self, tmp_path: Path, files: dict[str, Path], choosing: Upscaler) -> None:
        expected = self.by_the_command(tmp_path)
        for result, (pixels, model, _) in zip(choosing(list(files.values())), expected.values(), strict=True):
            assert np.array_equal(np.asarray(result), pixels)
            assert result.info["model"] == model

    def test_what_says_nothing_gets_clean(self, files: dict[str, Path], choosing: Upscaler) -> None:
        with Image.open(files["c.jpg"]) as image:
            kept, copied = np.asarray(image), image.copy()
        result = choosing(copied)
        assert result.info["model"] == "clean"
        assert result.info["model_because"] == "nothing says how it was kept"
        with Upscaler("clean", engine="onnxruntime", precision="fp32", threads=2) as clean:
            expected = clean(kept)
            assert np.array_equal(np.asarray(clean(files["c.jpg"])), expected)
            assert "model" not in clean(files["c.jpg"]).info
        assert np.array_equal(np.asarray(result), expected)
        assert np.array_equal(choosing(kept), expected)

    def test_engines_are_opened_when_needed(self, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[str] = []

        def counted(model: ModelFile, *arguments: Any, **settings: Any) -> OpenEngine:
            opened.append(model.path.stem)
            return OpenEngine(model, *arguments, **settings)

        monkeypatch.setattr(opened_module, "OpenEngine", counted)
        with Upscaler(engine="onnxruntime", precision="fp32", threads=2) as upscaler:
            for _ in range(2):
                upscaler(files["a.png"])
                assert upscaler(picture()).shape == (92, 124, 3)
            assert opened == ["clean"]
            assert (upscaler.engine["backend"], upscaler.scale) == ("onnxruntime", 4)
            for _ in range(2):
                upscaler(files["c.jpg"])
            assert opened == ["clean", "photo"]
            upscaler([files["c.jpg"]] * 2)  # with an engine for as many at once as there are threads
            assert opened == ["clean", "photo", "photo"]


class TestWhatIsWrongIsSaid:
    @pytest.mark.parametrize("shape", [(5,), (4, 4, 5), (0, 4, 3), (2, 2, 2, 2, 2)])
    def test_shapes(self, upscaler: Upscaler, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputShapeError, match="is no image"):
            upscaler(np.zeros(shape, np.uint8))

    def test_types(self, upscaler: Upscaler) -> None:
        with pytest.raises(InputShapeError, match="int64"):
            upscaler(np.zeros((4, 4), np.int64))
        with pytest.raises(InputError, match="image 2 is a dict"):
            upscaler([np.zeros((4, 4), np.uint8), {}])  # type: ignore[list-item]

    def test_files(self, tmp_path: Path, upscaler: Upscaler) -> None:
        with pytest.raises(InputError, match=r"cannot read .*nowhere\.png: No such file"):
            upscaler(tmp_path / "nowhere.png")
        (tmp_path / "empty.png").touch()
        with pytest.raises(InputError, match=r"empty\.png: the file is empty"):
            upscaler([picture(), tmp_path / "empty.png"])
        assert upscaler(picture()).shape == (92, 124, 3)  # and it goes on

    def test_engines(self, model: Path) -> None:
        with pytest.raises(BackendUnavailableError, match="no engine 'abacus'"):
            Upscaler(model, engine="abacus")


def test_threads_may_share_one(upscaler: Upscaler) -> None:
    arrays = [picture(seed=index) for index in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(upscaler, arrays))
    for array, result in zip(arrays, results, strict=True):
        assert np.array_equal(upscaler(array), result)


def test_the_package_stays_light() -> None:
    script = (
        "import sys, espan_deploy\n"
        "heavy = {'numpy', 'PIL', 'onnx', 'click', 'espan_deploy.upscaler'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert espan_deploy.Upscaler.__module__ == 'espan_deploy.upscaler'\n"
        "runtimes = {'torch', 'openvino', 'onnxruntime', 'click'} & set(sys.modules)\n"
        "assert not runtimes, runtimes\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    with Image.open(ROOT / "docs" / "photos" / "chelsea.png") as photo:
        photo.resize((40, 30)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    with Image.open(tmp_path / "large.png") as large:
        assert large.size == (160, 120)
