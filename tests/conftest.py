"""Fixtures every test may use: the data beside the project, and the hardware at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from hypothesis import settings

# Networks here are small: two threads of PyTorch or NumPy gain them nothing, and where the machine is busy each of
# hundreds of operators waits for a thread that has no core. Before either is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine must not fail a test of what is right.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

BESIDE = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu", action="store_true", help="fail, not skip, the tests marked gpu when none is here"
    )
    parser.addoption("--every", action="store_true", help="run the tests marked every too: all networks, not a sample")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--every"):
        left_out = [item for item in items if item.get_closest_marker("every")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("every")]
    if not BESIDE.is_dir():
        skip = pytest.mark.skip(reason=f"the checkpoints and images are not at {BESIDE.name}/ beside the project")
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(skip)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        from espan_deploy.backends.cuda_memory import gpu_unavailable_reason

        reason = gpu_unavailable_reason()
        if reason is not None:
            (pytest.fail if item.config.getoption("--require-gpu") else pytest.skip)(f"needs an NVIDIA GPU: {reason}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints, golden outputs and test images (use with the mark ``shared``)."""
    return BESIDE


@pytest.fixture(scope="session")
def espan_checkpoint(shared: Path) -> Path:
    """The entrants' own ESPAN, deploy form."""
    return shared / "checkpoints" / "2025" / "team36_espan.pth"


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """An object store that checks signatures."""
    with servers.rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[servers.Server]:
    """An object store in memory that knows most of S3's answers."""
    with servers.moto() as server:
        yield server
