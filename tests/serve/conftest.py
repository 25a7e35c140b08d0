"""A service with a small network, and a client that speaks to it in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from synthetic import save_synthetic

pytest.importorskip("starlette", reason="Starlette, of the extra 'serve', is not installed")
pytest.importorskip("prometheus_client", reason="prometheus-client, of the extra 'serve', is not installed")

from served import Serve
from starlette.testclient import TestClient

from espan_deploy.serve.app import application
from espan_deploy.serve.desk import Limits
from espan_deploy.serve.service import ServiceSettings


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_synthetic(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="session")
def serve(model: Path) -> Serve:
    """A context manager that gives a client; keywords are those of Limits, of ServiceSettings, token and chooses.

    chooses: without a model, so that each picture gets the package's own that fits.
    """

    @contextmanager
    def running(token: str | None = None, chooses: bool = False, **changes: Any) -> Iterator[TestClient]:
        limits = Limits(**{name: changes.pop(name) for name in list(changes) if name in Limits.__dataclass_fields__})
        settings = ServiceSettings(**{"engine": "onnxruntime", "precision": "fp32", "threads": 2, **changes})
        app = application(None if chooses else model, settings, limits, token=token)
        with TestClient(app, raise_server_exceptions=True) as client:
            yield client

    return running


@pytest.fixture(scope="module")
def client(serve: Serve) -> Iterator[TestClient]:
    with serve() as running:
        yield running
