"""A repository for Triton: as its own schema has it, and answered by the real server with the command's bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from synthetic import save_synthetic
from tritonserver import Server, cannot_run, running

from espan_deploy.backends.model import read_model
from espan_deploy.cli.main import main
from espan_deploy.errors import ExportError
from espan_deploy.pipeline.opened import UpscaleSettings
from espan_deploy.pipeline.upscale import Upscaling
from espan_deploy.serve.triton import TileBackend, write_repository
from espan_deploy.serve.triton_models import alike

TILE = 40


def picture(height: int, width: int, kind: str = "png", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def parsed(path: Path) -> Any:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(), schema.ModelConfig())


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_the_configuration_is_what_tritons_schema_has(backend: TileBackend, model: Path, tmp_path: Path) -> None:
    written = write_repository(read_model(model), tmp_path, tile=TILE, batch=4, backend=backend)
    assert all(path.is_file() for path in written)
    front, tiles = parsed(tmp_path / "tiny" / "config.pbtxt"), parsed(tmp_path / "tiny_tiles" / "config.pbtxt")
    assert (front.name, front.backend, front.max_batch_size) == ("tiny", "python", 0)
    assert front.parameters["tiles"].string_value == tiles.name == "tiny_tiles"
    assert (tiles.backend, tiles.max_batch_size, tiles.HasField("dynamic_batching")) == (backend, 4, True)
    assert list(tiles.input[0].dims) == [-1, -1, 3]
    assert list(tiles.model_warmup[0].inputs["input"].dims) == [TILE, TILE, 3]


def test_tiles_go_in_and_out_as_bytes(model: Path, tmp_path: Path) -> None:
    import onnxruntime

    write_repository(read_model(model), tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "tiny_tiles" / "1" / "model.onnx")
    given, made = session.get_inputs()[0], session.get_outputs()[0]
    assert (given.name, given.type, made.name, made.type) == ("input", "tensor(uint8)", "output", "tensor(uint8)")
    (result,) = session.run(["output"], {"input": np.zeros((2, 20, 30, 3), np.uint8)})
    assert result.shape == (2, 80, 120, 3)


def test_a_network_that_sees_everything_is_refused(tmp_path: Path) -> None:
    whole = save_synthetic(tmp_path / "whole.onnx", halo=None)
    with pytest.raises(ExportError, match="sees the whole image"):
        write_repository(read_model(whole), tmp_path / "repository")


def test_regions_of_one_size_go_together() -> None:
    class Sized:
        def __init__(self, key: int) -> None:
            self.key = key

    regions = [Sized(key) for key in (1, 1, 1, 2, 1, 1)]
    assert [[region.key for region in batch] for batch in alike(regions, 2)] == [[1, 1], [1], [2], [1, 1]]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    reason = cannot_run()
    if reason:
        pytest.skip(reason)
    repository = tmp_path_factory.mktemp("triton")
    write_repository(read_model(model), repository, tile=TILE, batch=4, backend="python")
    with running(repository) as started:
        yield started


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("size", [(24, 31), (90, 130)])
def test_the_real_server_gives_the_commands_bytes(
    ending: str, size: tuple[int, int], server: Server, model: Path, tmp_path: Path
) -> None:
    source = tmp_path / f"picture.{ending}"
    source.write_bytes(picture(*size, {"jpg": "jpeg"}.get(ending, ending)))
    Upscaling(source, tmp_path / "out", model, UpscaleSettings(threads=2)).run()
    assert server.upscale(source.read_bytes()) == (tmp_path / "out" / source.name).read_bytes()


def test_a_format_may_be_asked_for_and_a_refusal_is_an_error(server: Server) -> None:
    with Image.open(io.BytesIO(server.upscale(picture(20, 30), "jpeg"))) as made:
        assert (made.format, made.size) == ("JPEG", (120, 80))
    with pytest.raises(Exception, match="not an image of a known format"):
        server.upscale(b"no picture")


def test_the_command_writes_it_and_refuses_what_would_do_nothing(model: Path, tmp_path: Path) -> None:
    command = ["export", str(model), "--triton", str(tmp_path / "repository")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "repository" / "tiny_tiles" / "1" / "model.onnx").is_file(), done.stdout
    assert str(tmp_path / "repository" / "tiny" / "config.pbtxt") in done.stdout
    assert CliRunner().invoke(main, [*command, "--precision", "fp16"]).exit_code == 2
    assert CliRunner().invoke(main, ["export", str(model), "--triton-tiles", "python"]).exit_code == 2
