"""A cache folder of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from espan_deploy.files import CACHE_VARIABLE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is. It is made when something is first kept."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder
