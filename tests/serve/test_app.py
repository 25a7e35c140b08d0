"""Pictures over HTTP: bytes as the command line's, limits, refusals, and what the overseers see."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import Serve
from starlette.testclient import TestClient

from espan_deploy.backends.model import ModelFile
from espan_deploy.backends.onnxruntime import OnnxRuntimeRunner
from espan_deploy.errors import EngineBuildError
from espan_deploy.models import model_file
from espan_deploy.pipeline import opened as opened_module
from espan_deploy.pipeline.engine import OpenEngine
from espan_deploy.pipeline.opened import UpscaleSettings
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.upscale import Upscaling

UPSCALE = "/v1/upscale"


def encoded(height: int = 24, width: int = 32, kind: str = "png", seed: int = 0, **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def by_the_command(source: Path, output: Path, model: Path | None) -> tuple[bytes, FileReport]:
    """The bytes it writes of one file, and what it says of it."""
    settings = UpscaleSettings(engine="onnxruntime", precision="fp32", threads=2)
    (file,) = Upscaling(source, output, model, settings).run().files
    return (output / source.name).read_bytes(), file


@pytest.mark.parametrize(("kind", "ending"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp"), ("tiff", "tif")])
def test_a_picture_is_what_the_command_line_makes_of_it(
    kind: str, ending: str, client: TestClient, model: Path, tmp_path: Path
) -> None:
    source = tmp_path / f"picture.{ending}"
    source.write_bytes(encoded(kind=kind))
    answer = client.post(UPSCALE, content=source.read_bytes())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"image/{kind}"
    assert answer.content == by_the_command(source, tmp_path / "out", model)[0]
    assert "infer;dur=" in answer.headers["server-timing"]


@pytest.mark.parametrize(
    ("query", "accept", "expected"),
    [
        ("?format=jpeg", "*/*", "JPEG"),
        ("?format=jpg&quality=50", "*/*", "JPEG"),
        ("", "text/html, image/webp;q=0.9, image/png", "WEBP"),
        ("", "*/*", "PNG"),
        ("?format=same", "image/jpeg", "PNG"),
    ],
)
def test_the_format_is_by_query_then_by_accept_then_the_pictures_own(
    query: str, accept: str, expected: str, client: TestClient
) -> None:
    answer = client.post(UPSCALE + query, content=encoded(), headers={"accept": accept})
    with Image.open(io.BytesIO(answer.content)) as image:
        assert (image.format, image.size) == (expected, (128, 96))


@pytest.mark.parametrize(
    ("content", "query", "status", "message"),
    [
        (b"", "", 400, "empty"),
        (b"no picture", "", 400, "not an image"),
        (encoded()[:200], "", 400, "damaged"),
        (encoded(), "?format=xcf", 400, "xcf is no format"),
        (encoded(), "?quality=0", 400, "quality from 1 to 100"),
        (encoded(), "?quality=1e3", 400, "quality from 1 to 100"),
    ],
)
def test_refusals_say_what_is_wrong(content: bytes, query: str, status: int, message: str, client: TestClient) -> None:
    answer = client.post(UPSCALE + query, content=content)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_too_many_bytes_and_pixels_are_413(serve: Serve) -> None:
    bomb = encoded(3000, 3000)[:2000]  # the header alone says how large it is
    with serve(bytes=1 << 20, pixels=1000) as client:
        assert client.post(UPSCALE, content=bytes((1 << 20) + 1)).status_code == 413

        def endless() -> Any:
            for _ in range(100):
                yield bytes(1 << 16)

        assert client.post(UPSCALE, content=endless()).status_code == 413
        answer = client.post(UPSCALE, content=bomb)
        assert answer.status_code == 413
        assert "9,000,000 pixels" in answer.json()["error"]["message"]
        assert client.post(UPSCALE, content=encoded(20, 30)).status_code == 200


class Gate:
    """Holds the engine's calls until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.calls = threading.Event(), []
        infer = OnnxRuntimeRunner._infer

        def held(runner: OnnxRuntimeRunner, images: Any) -> Any:
            self.calls.append(images.shape)
            assert self.open.wait(20)
            return infer(runner, images)

        monkeypatch.setattr(OnnxRuntimeRunner, "_infer", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def test_a_full_queue_is_503_with_a_time_to_come_again(serve: Serve, gate: Gate) -> None:
    with serve(waiting=1) as client, ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(client.post, UPSCALE, content=encoded(200 + i, 200)) for i in range(16)]
        until(lambda: sum(answer.done() for answer in answers) > 0)
        refused = next(answer.result() for answer in answers if answer.done())
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        gate.open.set()
        assert {answer.result().status_code for answer in answers} == {200, 503}


def test_a_deadline_is_504_and_frees_its_place(serve: Serve, gate: Gate) -> None:
    with serve(deadline_seconds=0.2, waiting=2) as client:
        assert client.post(UPSCALE, content=encoded()).status_code == 504
        gate.open.set()
        until(lambda: client.post(UPSCALE, content=encoded()).status_code == 200)


def test_requests_of_one_size_share_engine_calls(serve: Serve, gate: Gate) -> None:
    """Twelve at once, the first of which keep the engine busy: the others go together, each with its own pixels."""
    with serve(max_wait_ms=50.0, threads=1) as client, ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(client.post, UPSCALE, content=encoded(seed=seed)) for seed in range(12)]
        until(lambda: "espan_queue_length 0.0" in client.get("/metrics").text and gate.calls)
        gate.open.set()
        bodies = [answer.result().content for answer in answers]
        assert sum(shape[0] for shape in gate.calls) == 12
        assert max(shape[0] for shape in gate.calls) > 1
        alone = [client.post(UPSCALE, content=encoded(seed=seed)).content for seed in range(12)]
        assert bodies == alone
        text = client.get("/metrics").text
        assert "espan_batch_images_sum 24.0" in text
        assert f"espan_batch_images_count {float(len(gate.calls))}" in text


def test_stopping_finishes_what_was_accepted(serve: Serve, gate: Gate) -> None:
    with ThreadPoolExecutor(4) as pool:
        with serve() as client:
            answers = [pool.submit(client.post, UPSCALE, content=encoded(seed=seed)) for seed in range(4)]
            until(lambda: gate.calls)
            threading.Timer(0.2, gate.open.set).start()
            until(lambda: all(answer.done() for answer in answers))
        assert [answer.result().status_code for answer in answers] == [200] * 4


def test_overseers_see_health_metrics_and_the_model(client: TestClient) -> None:
    client.post(UPSCALE, content=encoded())
    client.post(UPSCALE, content=b"no picture")
    assert client.get("/healthz").text == "ok\n"
    assert client.get("/readyz").status_code == 200
    text = client.get("/metrics").text
    for line in ('espan_requests_total{status="200"}', 'espan_requests_total{status="400"}', "espan_queue_length 0.0"):
        assert line in text
    assert 'espan_stage_seconds_bucket{le="+Inf",stage="infer"}' in text
    document = client.get("/v1/model").json()
    assert document["model"]["scale"] == 4
    assert document["engine"]["backend"] == "onnxruntime"


def test_a_token_is_asked_for_where_there_is_one(serve: Serve) -> None:
    with serve(token="secret") as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            assert client.post(UPSCALE, content=encoded(), headers=headers).status_code == 401
        bearer = {"authorization": "Bearer secret"}
        assert client.post(UPSCALE, content=encoded(), headers=bearer).status_code == 200
        assert client.get("/v1/model").status_code == 401
        assert client.get("/healthz").status_code == 200


def test_the_page_asks_nobody_else(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("page.css", "page.js"):
        answer = client.get(f"/{path}")
        assert answer.status_code == 200
        assert "http://" not in answer.text
        assert "https://" not in answer.text
    assert client.get("/../pyproject.toml").status_code == 404
    assert client.get("/v1/upscale").status_code == 405


PICTURES = {
    "png": ("clean", "PNG, lossless", {}),
    "jpeg": ("camera", "JPEG of quality 90", {"quality": 90}),
    "jpg": ("photo", "JPEG of quality 50", {"quality": 50}),
    "webp": ("camera", "lossy WebP", {}),
}
"""By ending: what fits a picture, why, and how it is written."""


def kept_as(ending: str, seed: int = 0) -> bytes:
    return encoded(kind="jpeg" if ending == "jpg" else ending, seed=seed, **PICTURES[ending][2])


@pytest.fixture(scope="module")
def choosing(serve: Serve) -> Iterator[TestClient]:
    with serve(chooses=True) as running:
        yield running


class TestWhichModel:
    @pytest.mark.parametrize("ending", PICTURES)
    def test_each_picture_gets_what_the_command_takes_for_it(
        self, ending: str, choosing: TestClient, tmp_path: Path
    ) -> None:
        source = tmp_path / f"a.{ending}"
        source.write_bytes(kept_as(ending))
        expected, file = by_the_command(source, tmp_path / "out", None)
        assert (file.model, file.model_because) == PICTURES[ending][:2]
        answer = choosing.post(UPSCALE, content=source.read_bytes())
        assert answer.content == expected
        assert (answer.headers["x-model"], answer.headers["x-model-because"]) == (file.model, file.model_because)

    @pytest.mark.parametrize("name", ["clean", "camera", "photo"])
    def test_a_request_may_ask_for_one(self, name: str, choosing: TestClient, tmp_path: Path) -> None:
        source = tmp_path / "a.jpg"
        source.write_bytes(kept_as("jpg"))
        expected, _ = by_the_command(source, tmp_path / "out", model_file(name))
        answer = choosing.post(f"{UPSCALE}?model={name}", content=source.read_bytes())
        assert answer.content == expected
        assert (answer.headers["x-model"], answer.headers["x-model-because"]) == (name, "asked for")

    def test_what_cannot_be_asked_for_is_said_so(self, choosing: TestClient, client: TestClient) -> None:
        answer = choosing.post(f"{UPSCALE}?model=sharp", content=encoded())
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "'sharp' is no model here"
        assert answer.json()["error"]["hint"] == "there are clean, camera, photo"
        answer = client.post(f"{UPSCALE}?model=clean", content=encoded())
        assert answer.status_code == 400
        assert "one model for all pictures" in answer.json()["error"]["message"]

    def test_a_service_of_one_model_takes_it_for_all(self, client: TestClient) -> None:
        answer = client.post(UPSCALE, content=kept_as("jpg"))
        assert answer.status_code == 200
        assert "x-model" not in answer.headers
        assert client.get("/v1/model").json()["models"] == {}

    def test_engines_are_opened_when_needed_and_overseers_see_which(self, serve: Serve) -> None:
        with serve(chooses=True) as running:

            def opened() -> list[str]:
                models = running.get("/v1/model").json()["models"]
                assert list(models) == ["clean", "camera", "photo"]
                assert {model["scale"] for model in models.values()} == {4}
                return [name for name, model in models.items() if model["engine"]]

            assert opened() == ["clean"]
            running.post(UPSCALE, content=kept_as("png"))
            assert opened() == ["clean"]
            for _ in range(2):
                running.post(UPSCALE, content=kept_as("jpg"))
            assert opened() == ["clean", "photo"]
            text = running.get("/metrics").text
            assert 'espan_pictures_total{model="clean"} 1.0' in text
            assert 'espan_pictures_total{model="photo"} 2.0' in text

    def test_engine_calls_are_shared_by_pictures_of_one_model_alone(self, serve: Serve, gate: Gate) -> None:
        pictures = [kept_as(ending, seed) for seed in range(5) for ending in ("png", "jpg", "jpeg")]
        with serve(chooses=True, max_wait_ms=50.0, threads=1) as running, ThreadPoolExecutor(15) as pool:
            answers = [pool.submit(running.post, f"{UPSCALE}?format=png", content=content) for content in pictures]
            until(lambda: "espan_requests_in_progress 15.0" in running.get("/metrics").text)
            until(lambda: "espan_queue_length 0.0" in running.get("/metrics").text and gate.calls)
            gate.open.set()
            bodies = [answer.result().content for answer in answers]
            assert sum(shape[0] for shape in gate.calls) == 15
            assert max(shape[0] for shape in gate.calls) > 1
            alone = [running.post(f"{UPSCALE}?format=png", content=content) for content in pictures]
            assert bodies == [answer.content for answer in alone]
            assert [answer.headers["x-model"] for answer in alone] == ["clean", "photo", "camera"] * 5

    def test_while_one_is_opened_the_others_go_on(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        begun, finish = threading.Event(), threading.Event()

        def held(model: ModelFile, *arguments: Any, **settings: Any) -> OpenEngine:
            if model.path.stem == "camera":
                begun.set()
                assert finish.wait(20)
            return OpenEngine(model, *arguments, **settings)

        monkeypatch.setattr(opened_module, "OpenEngine", held)
        with serve(chooses=True) as running, ThreadPoolExecutor(1) as pool:
            waits = pool.submit(running.post, UPSCALE, content=kept_as("jpeg"))
            assert begun.wait(20)
            assert running.post(UPSCALE, content=kept_as("png")).status_code == 200
            assert not waits.done()
            finish.set()
            assert waits.result().headers["x-model"] == "camera"

    def test_one_that_cannot_be_opened_costs_only_its_pictures(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(model: ModelFile, *arguments: Any, **settings: Any) -> OpenEngine:
            if model.path.stem == "photo":
                raise EngineBuildError("no room for it")
            return OpenEngine(model, *arguments, **settings)

        monkeypatch.setattr(opened_module, "OpenEngine", failing)
        with serve(chooses=True) as running:
            answer = running.post(UPSCALE, content=kept_as("jpg"))
            assert answer.status_code == 500
            assert answer.json()["error"]["message"] == "no room for it"
            assert running.post(UPSCALE, content=kept_as("jpeg")).headers["x-model"] == "camera"
