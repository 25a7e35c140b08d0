"""Pictures over HTTP: bytes as the command line's, limits, refusals, and what the overseers see."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import Serve
from starlette.testclient import TestClient

from espan_deploy.backends.onnxruntime import OnnxRuntimeRunner
from espan_deploy.pipeline.upscale import UpscaleSettings, Upscaling

UPSCALE = "/v1/upscale"


def encoded(height: int = 24, width: int = 32, kind: str = "png", seed: int = 0, **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "ending"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp"), ("tiff", "tif")])
def test_a_picture_is_what_the_command_line_makes_of_it(
    kind: str, ending: str, client: TestClient, model: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in" / f"picture.{ending}"
    source.parent.mkdir()
    source.write_bytes(encoded(kind=kind))
    settings = UpscaleSettings(engine="onnxruntime", precision="fp32", threads=2)
    Upscaling(source, tmp_path / "out", model, settings).run()
    answer = client.post(UPSCALE, content=source.read_bytes())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"image/{kind}"
    assert answer.content == (tmp_path / "out" / source.name).read_bytes()
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
        assert 'espan_batch_images_bucket{le="1.0"}' in client.get("/metrics").text


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
