"""What is special about folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from espan_deploy.errors import InputError
from espan_deploy.stores import MadeFrom, State, Writer
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


def publish(destination: FolderDestination, name: str, made_from: MadeFrom = MADE) -> None:
    part = destination.create(name)
    part.file.write(name.encode())
    part.publish(made_from, None)


def test_several_writers_know_of_each_other_and_a_run_alone_waits_for_none(tmp_path: Path) -> None:
    first, second = FolderDestination(tmp_path, Writer("1-of-2")), FolderDestination(tmp_path, Writer("2-of-2"))
    with first, second:
        publish(first, "a.png")
        assert second.state("a.png", MADE) is State.CURRENT  # recorded since it looked last
        publish(second, "b.png")
        assert first.state("b.png", MADE) is State.CURRENT
        (tmp_path / "c.png").write_bytes(b"somebody's")
        assert first.state("c.png", MADE) is State.FOREIGN
        with pytest.raises(InputError, match="another run"), FolderDestination(tmp_path):
            pass
        with pytest.raises(InputError, match="another run"), FolderDestination(tmp_path, Writer("2-of-2")):
            pass
    with FolderDestination(tmp_path) as alone:
        assert alone.state("a.png", MADE) is alone.state("b.png", MADE) is State.CURRENT
        with pytest.raises(InputError, match="another run"):
            FolderDestination(tmp_path, Writer("1-of-2")).__enter__()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".jsonl") == [".espan-deploy.jsonl"]
    with FolderDestination(tmp_path, Writer("1-of-2")) as later:
        assert later.state("b.png", MADE) is State.CURRENT


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espan_deploy.stores.manifest.PATIENCE_SECONDS", 0.2)


def test_what_others_are_writing_is_left_alone_until_nobody_writes(tmp_path: Path) -> None:
    with FolderDestination(tmp_path, Writer("1-of-2")) as first:
        part = first.create("a.png")
        with FolderDestination(tmp_path, Writer("2-of-2")):
            assert len(list(tmp_path.glob("*.part"))) == 1
        part.file.close()  # as if killed
    with FolderDestination(tmp_path, Writer("2-of-2")):
        assert not list(tmp_path.glob("*.part"))


def test_a_writer_sees_its_host_or_says_so(tmp_path: Path) -> None:
    with FolderDestination(tmp_path / "shared", Writer("host")):
        with FolderDestination(tmp_path / "shared", Writer("guest", "host")):
            pass
        with (
            pytest.raises(InputError, match="not the folder that the run writes to"),
            FolderDestination(tmp_path / "local", Writer("guest", "host")),
        ):
            pass
    assert not (tmp_path / "local").exists()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with FolderDestination(tmp_path), pytest.raises(InputError, match="another run"), FolderDestination(tmp_path):
        pass
