"""Builds the stand-in driver, and the real pycuda on it from its source package, into a folder of the tests' cache."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PYCUDA = "2026.1"
SOURCES = Path(__file__).with_name("driver")
HEADERS = "nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-profiler-api"
BUILD_SECONDS = 420

# No optimisation, no curand, and pycuda's own Boost: what is tested is what it calls.
SITE_CONFIGURATION = """
CUDA_INC_DIR = [{headers!r}]
CUDADRV_LIB_DIR = [{driver!r}]
CUDA_ENABLE_CURAND = False
CXXFLAGS = ["-O0", "-g0", "-w"]
LDFLAGS = ["-Wl,--no-as-needed"]
"""


class CannotBuildError(Exception):
    """What this machine lacks."""


@dataclass(frozen=True)
class Built:
    """driver: the folder of libcuda.so.1. site: where pycuda is, as in site-packages."""

    driver: Path
    site: Path


def built(cache: Path) -> Built:
    """Both, built where they are new.

    Raises CannotBuildError where a compiler, headers or pycuda's sources are missing; what fails for another reason
    is a CalledProcessError with the compiler's words.
    """
    if not sys.platform.startswith("linux"):
        raise CannotBuildError("the stand-in driver is loaded as Linux loads one")
    for compiler in ("cc", "c++"):
        if shutil.which(compiler) is None:
            raise CannotBuildError(f"there is no C and C++ compiler ({compiler}) to build the stand-in driver with")
    headers = cuda_headers()
    sources = b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))
    driver = once(cache / "driver", sources, lambda folder: build_driver(folder, headers))
    what = f"{PYCUDA} {sysconfig.get_config_var('SOABI')} {SITE_CONFIGURATION}"
    site = once(cache / "pycuda", what.encode(), lambda folder: build_pycuda(folder, headers, driver))
    return Built(driver, site)


def once(place: Path, made_of: bytes, build: Callable[[Path], None]) -> Path:
    """The folder of what these bytes make, built whole or not at all."""
    folder = place / hashlib.sha256(made_of).hexdigest()[:16]
    if not folder.is_dir():
        shutil.rmtree(place, ignore_errors=True)
        half = place / "half"
        half.mkdir(parents=True)
        build(half)
        half.rename(folder)
    return folder


def cuda_headers() -> Path:
    """Where the wheels of CUDA 13 put cuda.h."""
    spec = find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        folder = Path(place) / "cu13" / "include"
        if (folder / "cuda.h").is_file():
            return folder
    raise CannotBuildError(f"CUDA's headers are not installed: pip install {HEADERS}")


def build_driver(folder: Path, headers: Path) -> None:
    """Strictly: against NVIDIA's own declarations, and without a warning."""
    library = folder / "libcuda.so.1"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared", "-pthread"]
    sources = sorted(map(str, SOURCES.glob("*.c")))
    run("cc", *flags, f"-I{headers}", "-Wl,-soname,libcuda.so.1", *sources, "-o", str(library))
    (folder / "libcuda.so").symlink_to(library.name)


def build_pycuda(folder: Path, headers: Path, driver: Path) -> None:
    """From the source package, as a user's pip does."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
    options = ("--no-deps", "--no-build-isolation", "--quiet")
    with tempfile.TemporaryDirectory() as work:
        try:
            run(*pip, "download", *options, "--no-binary", "pycuda", f"pycuda=={PYCUDA}", "--dest", work)
        except subprocess.CalledProcessError as exc:
            raise CannotBuildError(f"pycuda's sources cannot be had: {exc.stderr.strip()[-300:]}") from exc
        with tarfile.open(next(Path(work).glob("*.tar.gz"))) as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(work)
        (sources,) = (path for path in Path(work).iterdir() if path.is_dir())
        configuration = SITE_CONFIGURATION.format(headers=str(headers), driver=str(driver))
        (sources / "siteconf.py").write_text(configuration)
        run(*pip, "wheel", *options, "--wheel-dir", work, str(sources))
        with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
            wheel.extractall(folder)


def run(*command: str) -> None:
    """Raises CalledProcessError with what it said."""
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_SECONDS)
