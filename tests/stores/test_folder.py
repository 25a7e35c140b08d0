"""What is special about folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from espan_deploy.errors import InputError
from espan_deploy.stores import MadeFrom
from espan_deploy.stores.folder import FolderDestination

MADE = MadeFrom("1" * 64, "2" * 64)


@pytest.mark.parametrize("name", ["../a.png", "b/../../a.png", "/a.png"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with FolderDestination(tmp_path / "out") as destination:
        with pytest.raises(InputError, match="leads out of the output folder"):
            destination.create(name)
        with pytest.raises(InputError, match="leads out of the output folder"):
            destination.state(name, MADE)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    part = tmp_path / "sub" / ".espan-deploy-x.part"
    part.write_bytes(b"half")
    with FolderDestination(tmp_path):
        assert not part.exists()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with FolderDestination(tmp_path), pytest.raises(InputError, match="another run"), FolderDestination(tmp_path):
        pass
