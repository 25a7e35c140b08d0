"""What several tests of the benchmark look at, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from espan_deploy.bench.contenders import Model, load_models


@pytest.fixture(scope="session")
def espan_model(espan_checkpoint: Path) -> Model:
    """The real ESPAN, exported (use with the mark ``shared``)."""
    return load_models([espan_checkpoint])[0]
