"""The command between buckets and folders, on real servers."""

from __future__ import annotations

import io
import itertools
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torture
from click.testing import CliRunner, Result
from PIL import Image
from servers import BUCKET, Request, Server, Troublemaker
from synthetic import save_synthetic

from espan_deploy.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_synthetic(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def trouble(moto: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Troublemaker]:
    moto.use(monkeypatch)
    with Troublemaker(moto) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        yield made


class Folder:
    """A folder of a bucket, cleared."""

    def __init__(self, server: Server, key: str) -> None:
        self.server, self.key, self.url = server, key, f"s3://{BUCKET}/{key}"
        for name in self.names():
            server.client.delete_object(Bucket=BUCKET, Key=f"{key}/{name}")

    def put(self, name: str, data: bytes) -> None:
        self.server.client.put_object(Bucket=BUCKET, Key=f"{self.key}/{name}", Body=data)

    def get(self, name: str) -> bytes:
        body: bytes = self.server.client.get_object(Bucket=BUCKET, Key=f"{self.key}/{name}")["Body"].read()
        return body

    def names(self) -> list[str]:
        pages = self.server.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self.key + "/")
        return [item["Key"].removeprefix(self.key + "/") for page in pages for item in page.get("Contents", [])]


def upscale(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["upscale", *map(str, arguments)])


def photo(width: int = 20, height: int = 14, seed: int = 0, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(torture.picture(width, height, seed=seed)).save(buffer, file_format)
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    kinds = [("a.png", "PNG"), ("b/a.jpg", "JPEG"), ("b/c.bmp", "BMP"), ("d e.tif", "TIFF"), ("ü.webp", "WEBP")]
    return {name: photo(20 + index, 14, index, kind) for index, (name, kind) in enumerate(kinds)}


@pytest.mark.parametrize("name", ["rclone", "moto"])
def test_folder_or_bucket_makes_no_difference(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Server = request.getfixturevalue(name)
    server.use(monkeypatch)
    source, output, uploaded = Folder(server, "same/in"), Folder(server, "same/out"), Folder(server, "same/up")
    for path, data in files().items():
        source.put(path, data)
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(data)
    source.put("notes.txt", b"")
    options = ("--model", model, "--precision", "fp32")
    for ends in (
        (tmp_path / "in", tmp_path / "out"),
        (source.url, output.url),
        (tmp_path / "in", uploaded.url),
        (source.url, tmp_path / "down"),
    ):
        result = upscale(*ends, *options)
        assert result.exit_code == 0, result.output
        assert "5 done, 0 already done, 0 failed" in result.stdout
        assert ("1 .txt" in result.stderr) == (ends[0] == source.url)
        assert "0 done, 5 already done" in upscale(*ends, *options).stdout
    for path in files():
        expected = (tmp_path / "out" / path).read_bytes()
        assert output.get(path) == uploaded.get(path) == (tmp_path / "down" / path).read_bytes() == expected
    assert sorted(output.names()) == sorted(uploaded.names()) == sorted(files())


def test_what_is_done_costs_one_question(moto: Server, trouble: Troublemaker, model: Path) -> None:
    source, output = Folder(moto, "asked/in"), Folder(moto, "asked/out")
    for index in range(12):
        source.put(f"{index}.png", photo(seed=index))
    arguments = (source.url, output.url, "--model", model)
    assert upscale(*arguments).exit_code == 0
    first = trouble.kinds()
    assert (first["GET"], first["HEAD"], first["PUT"]) == (12, 12, 12 + 1)  # and the probe
    trouble.requests.clear()
    assert "0 done, 12 already done" in upscale(*arguments).stdout
    again = trouble.kinds()
    assert (again["GET"], again["HEAD"], again["PUT"]) == (0, 12, 1)
    source.put("3.png", photo(seed=99))
    assert "1 done, 11 already done" in upscale(*arguments).stdout
    output.put("4.png", b"precious")
    result = upscale(*arguments)
    assert result.exit_code == 4
    assert "4.png is there already and was not made by this tool" in result.stderr
    assert output.get("4.png") == b"precious"


def test_transfers_go_side_by_side(moto: Server, trouble: Troublemaker, model: Path) -> None:
    source, output = Folder(moto, "beside/in"), Folder(moto, "beside/out")
    for index in range(24):
        source.put(f"{index}.png", photo(seed=index))
    trouble.delay = 0.05
    assert upscale(source.url, output.url, "--model", model, "--threads", 2).exit_code == 0
    assert trouble.most_at_once >= 8


def test_a_tenth_of_all_requests_fails_and_nothing_is_lost(moto: Server, trouble: Troublemaker, model: Path) -> None:
    source, output = Folder(moto, "rough/in"), Folder(moto, "rough/out")
    for index in range(30):
        source.put(f"{index}.png", photo(seed=index))
    rng = random.Random(5)
    trouble.trouble = lambda _: rng.choice([500, 503, 429, "reset"]) if rng.random() < 0.1 else None
    result = upscale(source.url, output.url, "--model", model)
    assert result.exit_code == 0, result.output
    assert len(output.names()) == 30


def test_rights_that_are_lost_stop_the_run_and_it_goes_on_later(
    moto: Server, trouble: Troublemaker, model: Path
) -> None:
    source, output = Folder(moto, "rights/in"), Folder(moto, "rights/out")
    for index in range(60):
        source.put(f"{index:02}.png", photo(seed=index))
    uploads = itertools.count()

    def expired(request: Request) -> int | None:
        return 403 if request.verb == "PUT" and next(uploads) > 10 else None

    trouble.trouble = expired
    arguments = (source.url, output.url, "--model", model)
    result = upscale(*arguments)
    assert result.exit_code == 4
    assert "stopped: the destination became read-only; the same command goes on from here" in result.stderr
    assert 0 < len(output.names()) < 60
    trouble.trouble = lambda _: None
    assert upscale(*arguments).exit_code == 0
    assert len(output.names()) == 60


def test_a_listing_that_breaks_off_is_said_and_what_was_listed_is_done(
    moto: Server, trouble: Troublemaker, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("espan_deploy.stores.bucket.PAGE", 50)
    source, output = Folder(moto, "broken/in"), Folder(moto, "broken/out")
    for index in range(120):
        source.put(f"{index:03}.png", photo(8, 8, seed=index))
    trouble.trouble = lambda request: 403 if "continuation-token" in request.query else None
    result = upscale(source.url, output.url, "--model", model)
    assert result.exit_code == 4, result.output
    assert re.search("stopped: cannot list .*access denied", result.stderr)
    assert len(output.names()) == 49  # the fiftieth's name depends on what is next


def test_kill_nine_leaves_whole_objects_only(rclone: Server, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = Folder(rclone, "killed/in"), Folder(rclone, "killed/out")
    for index in range(40):
        source.put(f"{index:02}.png", photo(150, 120, seed=index))
    command = [sys.executable, str(ROOT / "cli.py"), "upscale", source.url, output.url, "--model", str(model)]
    environment = {**os.environ, **rclone.environment}
    rng = np.random.default_rng(2)
    for _ in range(3):
        process = subprocess.Popen(
            [*command, "--precision", "fp32"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        before, deadline = len(output.names()), time.monotonic() + 60
        while len(output.names()) <= before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(float(rng.random()) * 0.2)
        process.kill()
        process.communicate()
        self_check(output)
    done = subprocess.run([*command, "--precision", "fp32"], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(output.names()) == 40
    self_check(output)


def self_check(output: Folder) -> None:
    for name in output.names():
        with Image.open(io.BytesIO(output.get(name))) as image:
            image.load()
            assert image.size == (600, 480)


def test_the_line_of_the_readme(moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = re.findall(r"^espan-deploy (upscale s3://\S+ s3://\S+) +#", (ROOT / "README.md").read_text("utf-8"), re.M)
    moto.use(monkeypatch)
    source, output = Folder(moto, "in"), Folder(moto, "out")
    source.put("a.png", photo())
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == 0, result.output
    assert output.names() == ["a.png"]
