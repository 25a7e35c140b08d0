"""Measure the service on this machine, 127.0.0.1 only: latency under load, throughput beside the folder's, and stamina.

python benchmarks/serve.py load --model espan.onnx [--photos DIR] [--seconds 10]
python benchmarks/serve.py fuzz --model espan.onnx [--requests 10000]
python benchmarks/serve.py leak --model espan.onnx [--requests 20000]

``load``: p50, p90 and p99 of a request at 1, 2, 8 and 32 clients at once, and the pictures per second at the most
beside `upscale` on the same pictures, start-up aside. ``fuzz``: malformed requests of every kind; the service must
answer the next good one. ``leak``: good requests; its memory after the first tenth and at the end. Everything ends by
itself.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

from pipeline import make_photos  # noqa: E402

CLIENTS = (1, 2, 8, 32)

WRONG_QUERIES = ("format=%00", "format=exe", "quality=-1", "quality=99999999999", "format=jpeg&quality=x")
WRONG_METHODS = ("PUT", "DELETE", "TRACE", "GET")
WRONG_PATHS = ("/v1/upscale", "/..%2f..", "/v1")


@contextlib.contextmanager
def served(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """The service as a process of its own: its port and process number."""
    command = [sys.executable, str(ROOT / "cli.py"), "serve", "--port", "0", "--model", str(options.model)]
    command += ["--threads", str(options.threads), "--precision", options.precision, "--engine", options.engine]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            port = int(re.findall(r":(\d+)$", process.stderr.readline().strip())[0])
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would hold it up
            while ask(port, "GET", "/readyz")[0] != 200:
                time.sleep(0.1)
            yield port, process.pid
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, "it did not stop cleanly"
        finally:
            process.kill()


def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """One request; status 0 where there was no answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def in_threads(count: int, work: Any) -> None:
    """Run it in so many threads until all return."""
    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def load(options: argparse.Namespace) -> dict[str, Any]:
    """Latency by the number of clients, and throughput beside the folder's."""
    with tempfile.TemporaryDirectory() as scratch:
        photos = options.photos or Path(scratch, "photos")
        if options.photos is None:
            photos.mkdir()
            make_photos(photos, 60)
        pictures = [path.read_bytes() for path in sorted(photos.iterdir())]
        figures: dict[str, Any] = {"clients": {}}
        with served(options) as (port, _):
            for clients in CLIENTS:
                figures["clients"][clients] = under_load(port, pictures, clients, options.seconds)
                print(f"{clients} clients: {figures['clients'][clients]}", flush=True)
        command = [sys.executable, str(ROOT / "cli.py"), "upscale", str(photos), str(Path(scratch, "out")), "--json"]
        command += ["--model", str(options.model), "--threads", str(options.threads), "--precision", options.precision]
        command += ["--engine", options.engine]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    folder = done["counts"]["done"] / (done["seconds"] - done["startup_seconds"])
    best = max(entry["pictures_per_second"] for entry in figures["clients"].values())
    return {**figures, "folder_pictures_per_second": folder, "of_the_folder": best / folder}


def under_load(port: int, pictures: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """So many clients, each asking again as soon as it has its answer."""
    end = time.perf_counter() + seconds
    taken: list[float] = []

    def client(index: int) -> None:
        place = index
        while time.perf_counter() < end:
            start = time.perf_counter()
            status, _ = ask(port, "POST", "/v1/upscale", pictures[place % len(pictures)])
            assert status == 200, status
            taken.append((time.perf_counter() - start) * 1e3)
            place += clients

    begun = time.perf_counter()
    in_threads(clients, client)
    p50, p90, p99 = np.percentile(taken, (50, 90, 99))
    rate = len(taken) / (time.perf_counter() - begun)
    return {"p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99), "pictures_per_second": rate}


def fuzz(options: argparse.Namespace) -> dict[str, Any]:
    """Malformed requests; between them and at the end it must answer a good one."""
    choose = random.Random(17)
    good = small_picture(0)
    statuses: dict[int, int] = {}
    with served(options) as (port, process):
        for number in range(options.requests):
            status = malformed(choose, port, good)
            statuses[status] = statuses.get(status, 0) + 1
            if number % 1000 == 999:
                assert ask(port, "POST", "/v1/upscale", good)[0] == 200, "it does not answer a good request any more"
                print(f"{number + 1} malformed requests, and it answers", file=sys.stderr, flush=True)
        return {"requests": options.requests, "statuses": statuses, "resident_mb": resident(process) / 1e6}


def malformed(choose: random.Random, port: int, good: bytes) -> int:
    """One of many ways to be wrong; the status, 0 for none."""
    flipped = bytearray(good)
    for _ in range(choose.randrange(1, 20)):
        flipped[choose.randrange(len(flipped))] = choose.randrange(256)
    head = b"POST /v1/upscale HTTP/1.1\r\nHost: x\r\n"
    ways = (
        lambda: raw(port, choose.randbytes(choose.randrange(1, 400)) + b"\r\n\r\n"),
        lambda: raw(port, head + b"Content-Length: 500\r\n\r\n" + choose.randbytes(80)),
        lambda: raw(port, head + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n"),
        lambda: ask(port, "POST", "/v1/upscale", bytes(flipped))[0],
        lambda: ask(port, "POST", "/v1/upscale", good[: choose.randrange(len(good))])[0],
        lambda: ask(port, "POST", f"/v1/upscale?{choose.choice(WRONG_QUERIES)}", good)[0],
        lambda: ask(port, choose.choice(WRONG_METHODS), choose.choice(WRONG_PATHS))[0],
    )
    return choose.choice(ways)()


def raw(port: int, data: bytes) -> int:
    """Bytes as they are, and then away."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(64)
        found = re.match(rb"HTTP/1\.1 (\d+)", answer)
        return int(found[1]) if found else 0
    return 0


def leak(options: argparse.Namespace) -> dict[str, Any]:
    """Good requests of a few sizes; memory early and late."""
    pictures = [small_picture(seed) for seed in range(16)]
    with served(options) as (port, process):

        def send(count: int) -> None:
            def client(index: int) -> None:
                for number in range(count // 4):
                    assert ask(port, "POST", "/v1/upscale", pictures[(number + index) % len(pictures)])[0] == 200

            in_threads(4, client)

        send(options.requests // 10)
        early = resident(process)
        send(options.requests - options.requests // 10)
        late = resident(process)
    return {"requests": options.requests, "early_mb": early / 1e6, "late_mb": late / 1e6, "growth": late / early - 1}


def small_picture(seed: int) -> bytes:
    """A PNG of one of a few sizes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16 + seed % 4, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def resident(process: int) -> int:
    """Bytes of memory that a process has."""
    fields = Path(f"/proc/{process}/statm").read_text().split()
    return int(fields[1]) * 4096


def main() -> None:
    """Measure, and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "fuzz", "leak"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--photos", type=Path, help="60 are made up if left out")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load for each number of clients")
    parser.add_argument("--requests", type=int, help="10000 malformed or 20000 good ones if left out")
    options = parser.parse_args()
    options.requests = options.requests or {"fuzz": 10_000, "leak": 20_000}.get(options.what)
    print(json.dumps({"load": load, "fuzz": fuzz, "leak": leak}[options.what](options)))


if __name__ == "__main__":
    main()
