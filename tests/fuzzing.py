"""Damaged images by the thousand, and a command killed at random: the larger runs of what the tests do in small.

python tests/fuzzing.py flip --files 5000 --model espan.onnx
python tests/fuzzing.py kill --kills 50 --model espan.onnx
python tests/fuzzing.py full --folder /mnt/small --model espan.onnx
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import torture  # noqa: E402

Image.MAX_IMAGE_PIXELS = None  # a flipped size may still be a whole image, 16 times as large in the end

FORMATS = (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("TIFF", "tif"), ("BMP", "bmp"), ("AVIF", "avif"), ("GIF", "gif"))  # noqa: E501  # fmt: skip


def seeds() -> list[tuple[bytes, str]]:
    """Small files of every format and several kinds of pixels, to be damaged."""
    files = []
    for file_format, suffix in FORMATS:
        for channels in (1, 3, 4):
            if channels == 4 and file_format in ("JPEG", "BMP", "GIF"):
                continue
            for width, height in ((7, 5), (40, 31)):
                pixels = torture.picture(width, height, channels, seed=channels)
                arguments: dict[str, Any] = {"exif": torture.exif(6)} if file_format in ("JPEG", "PNG", "WEBP") else {}
                if file_format == "TIFF":
                    for compression in ("raw", "tiff_lzw", "jpeg", "packbits"):
                        if compression == "jpeg" and channels == 4:
                            continue
                        files.append((torture.encoded(pixels, "TIFF", compression=compression), suffix))
                files.append((torture.encoded(pixels, file_format, **arguments), suffix))
    files += [(torture.deep(9, 7, channels), "png") for channels in (1, 2, 3, 4)]
    files += [(torture.deep(9, 7, channels, "tif"), "tif") for channels in (1, 3, 4)]
    return files


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The file with some bytes flipped, mostly in its first part, where its structure is; sometimes cut or doubled."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8, 30))):
        end = len(result) if rng.random() < 0.5 else min(len(result), 120)
        position = rng.randrange(end)
        result[position] = rng.choice((result[position] ^ 1 << rng.randrange(8), 0, 255, rng.randrange(256)))
    if rng.random() < 0.1:
        del result[rng.randrange(len(result)) :]
    if rng.random() < 0.05:
        result *= 2
    return bytes(result)


def write_damaged(folder: Path, count: int, seed: int) -> None:
    """Write so many damaged files."""
    rng = random.Random(seed)
    kinds = seeds()
    for index in range(count):
        data, suffix = rng.choice(kinds)
        target = folder / f"{index // 500:03}" / f"{index:05}.{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(damaged(data, rng))


def check_outputs(output: Path, files: list[dict[str, Any]], scale: int) -> dict[str, int]:
    """Every file has an outcome, and every output is a whole image of the right size."""
    counts: dict[str, int] = {}
    for file in files:
        counts[file["status"]] = counts.get(file["status"], 0) + 1
        target = output / file["output"]
        if file["status"] == "done":
            with Image.open(target) as image:
                image.load()
                assert image.size == (file["width"] * scale, file["height"] * scale), (file, image.size)
        else:
            assert file["error"], file
            assert not target.exists(), file
    return counts


def command(source: Path, output: Path, model: Path, *more: str) -> list[str]:
    """The command line of a run."""
    base = [sys.executable, str(ROOT / "cli.py"), "upscale", str(source), str(output), "--model", str(model)]
    return [*base, "--precision", "fp32", *more]


def flip(options: argparse.Namespace) -> None:
    """Damaged files through the whole command."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        write_damaged(work / "in", options.files, options.seed)
        start = time.monotonic()
        arguments = command(work / "in", work / "out", options.model, "--json", "--memory", "1G")
        process = subprocess.run(arguments, capture_output=True, text=True, timeout=3600, check=False)
        assert process.returncode == 4, (process.returncode, process.stderr[-3000:])
        assert "Traceback" not in process.stderr, process.stderr[-3000:]
        files = json.loads(process.stdout)["files"]
        assert len(files) == options.files
        counts = check_outputs(work / "out", files, 4)
        print(f"{options.files} damaged files in {time.monotonic() - start:.0f} s: {counts}")


def kill(options: argparse.Namespace) -> None:
    """Kill the command at random moments until it is done; nothing half-written at any of them."""
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        (work / "in").mkdir()
        for index in range(options.files):
            image = Image.fromarray(torture.picture(160, 120, seed=index))
            image.save(work / "in" / f"{index:04}.{('png', 'jpg', 'webp', 'tif')[index % 4]}")
        kills = 0
        while kills < options.kills:
            process = subprocess.Popen(
                command(work / "in", work / "out", options.model),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            time.sleep(rng.uniform(0.3, 2.5))
            if process.poll() is None:
                kills += 1
            process.kill()
            process.communicate()
            whole = 0
            for path in (work / "out").glob("[0-9]*"):
                with Image.open(path) as image:
                    image.load()
                    assert image.size == (640, 480), path
                whole += 1
            if whole == options.files and kills < options.kills:
                for path in list((work / "out").glob("[0-9]*"))[:: rng.choice((1, 2, 3))]:
                    path.unlink()
        subprocess.run(command(work / "in", work / "out", options.model), check=True, stdout=subprocess.DEVNULL)
        left = sorted(path.name for path in (work / "out").iterdir())
        assert left == [".espan-deploy.jsonl", *sorted(path.name for path in (work / "in").iterdir())], left
        print(f"{kills} kills, every output whole at each of them, {options.files} files at the end, nothing else")


def full(options: argparse.Namespace) -> None:
    """Fill a small file system; then make room, and the same command finishes the job."""
    output = options.folder / "out"
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        for index in range(options.files):
            Image.fromarray(torture.picture(160, 120, seed=index)).save(source / f"{index:04}.png")
        ballast = options.folder / "ballast"
        ballast.write_bytes(b"\0" * max(0, shutil.disk_usage(options.folder).free - (4 << 20)))
        process = subprocess.run(
            command(source, output, options.model), capture_output=True, text=True, timeout=600, check=False
        )
        assert process.returncode == 4, (process.returncode, process.stderr)
        assert "the disk is full" in process.stderr, process.stderr
        assert "Traceback" not in process.stderr
        done = 0
        for path in output.glob("*.png"):
            with Image.open(path) as image:
                image.load()
            done += 1
        assert not list(output.glob("*.part"))
        assert 0 < done < options.files, done
        ballast.unlink()
        subprocess.run(command(source, output, options.model), check=True, stdout=subprocess.DEVNULL)
        assert len(list(output.glob("*.png"))) == options.files
        shutil.rmtree(output)
        print(f"full after {done} of {options.files}, each whole; finished once there was room")


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["flip", "kill", "full"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--files", type=int, default=80)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    {"flip": flip, "kill": kill, "full": full}[options.what](options)


if __name__ == "__main__":
    main()
