"""What only a real socket shows: slow and vanishing clients, and a stop that finishes what was accepted."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image
from served import Served, served


def encoded(height: int = 24, width: int = 32, kind: str = "png", **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def until_ready(server: Served) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            if httpx2.get(f"{server.address}/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        assert time.monotonic() < end, "it never got ready"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Served]:
    with served(model, "--max-waiting", "8", "--upload-timeout", "0.3") as running:
        until_ready(running)
        yield running


def request_head(length: int) -> bytes:
    return f"POST /v1/upscale HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n\r\n".encode()


def test_a_slow_sender_is_408_and_the_others_do_not_wait(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(request_head(1000) + b"\x89PNG")
        assert httpx2.post(f"{server.address}/v1/upscale", content=encoded()).status_code == 200
        slow.settimeout(10)
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_clients_that_vanish_free_their_places(server: Served) -> None:
    picture = encoded(600, 600)
    for _ in range(30):  # more than may wait
        with socket.create_connection(("127.0.0.1", server.port)) as gone:
            gone.sendall(request_head(len(picture)) + picture)
    end = time.monotonic() + 30
    while httpx2.post(f"{server.address}/v1/upscale", content=encoded()).status_code != 200:
        assert time.monotonic() < end, "their places were never freed"
        time.sleep(0.05)


def test_sigterm_finishes_what_was_accepted(model: Path) -> None:
    picture = encoded(700, 700)
    with served(model) as running, ThreadPoolExecutor(6) as pool:
        until_ready(running)
        address = f"{running.address}/v1/upscale"
        answers = [pool.submit(httpx2.post, address, content=picture, timeout=60) for _ in range(6)]
        end = time.monotonic() + 30
        while "espan_requests_in_progress 6.0" not in httpx2.get(f"{running.address}/metrics").text:
            assert time.monotonic() < end
            if all(answer.done() for answer in answers):
                break  # a machine so fast that there is nothing left to finish
        assert running.stop() == 0
        assert [answer.result().status_code for answer in answers] == [200] * 6


def test_without_a_model_it_takes_the_one_that_fits_each_picture() -> None:
    with served(None) as running:
        until_ready(running)
        for content, model in ((encoded(), "clean"), (encoded(kind="jpeg", quality=90), "camera")):
            answer = httpx2.post(f"{running.address}/v1/upscale", content=content, timeout=60)
            assert (answer.status_code, answer.headers["x-model"]) == (200, model)
        assert running.stop() == 0
