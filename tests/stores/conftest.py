"""The place of a test: every kind in turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import BucketPlace, FolderPlace, MemoryPlace, Place
from servers import Server


@pytest.fixture(params=["folder", "memory", "rclone", "moto"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "folder":
        return FolderPlace(tmp_path)
    if request.param == "memory":
        return MemoryPlace(tmp_path)
    server: Server = request.getfixturevalue(request.param)
    server.use(monkeypatch)
    return BucketPlace(server)
