"""What was found out: kept, aged, damaged, unwritable, by two at once, under a clock that jumps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from espan_deploy.backends import kept
from espan_deploy.backends.kept import CLOCK_TOLERANCE_S, keep, recall, remembered

WHAT = ("psnr", "model", "1.0")
DAY = 24 * 3600.0


def test_a_finding_comes_back_with_its_time() -> None:
    assert recall(WHAT).finding is None
    assert keep(WHAT, {"a": [1, 2.5, None]}, clock=lambda: 1e9) == ""
    found = recall(WHAT, clock=lambda: 1e9 + DAY).finding
    assert found is not None
    assert (found.value, found.at) == ({"a": [1, 2.5, None]}, 1e9)


@pytest.mark.parametrize("changed", [("psnr", "other", "1.0"), ("psnr", "model", "1.1"), ("psnr", "model"), ()])
def test_another_key_is_another_finding(changed: tuple[str, ...]) -> None:
    keep(WHAT, 1)
    assert recall(changed).finding is None


def test_another_processor_is_another_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(WHAT, 1)
    monkeypatch.setattr(kept, "processor_name", lambda: "an abacus")
    assert recall(WHAT).finding is None


def test_it_ages() -> None:
    keep(WHAT, 1, clock=lambda: 0)
    assert recall(WHAT, max_age_s=DAY, clock=lambda: DAY - 1).finding is not None
    assert recall(WHAT, max_age_s=DAY, clock=lambda: DAY + 1).finding is None
    assert recall(WHAT, clock=lambda: 1e6 * DAY).finding is not None


def test_a_clock_that_was_put_back() -> None:
    """A finding of a time to come would never age; a day's difference between machines is allowed."""
    keep(WHAT, 1, clock=lambda: 1e9)
    assert recall(WHAT, max_age_s=DAY, clock=lambda: 1e9 - CLOCK_TOLERANCE_S / 2).finding is not None
    assert recall(WHAT, max_age_s=DAY, clock=lambda: 1e9 - 2 * CLOCK_TOLERANCE_S).finding is None


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b"null", b'{"key": "x"}', b'{"at": 1, "finding": 2}'])
def test_damage_is_said_and_mended(cache: Path, content: bytes) -> None:
    keep(WHAT, 1)
    (file,) = (cache / kept.FOLDER).iterdir()
    file.write_bytes(content)
    recalled = recall(WHAT)
    assert recalled.finding is None
    assert "is damaged" in recalled.problem
    assert keep(WHAT, 2) == ""
    assert recall(WHAT).problem == ""


def test_a_cache_that_cannot_be_written_or_read_is_said(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert "cannot" in keep(WHAT, 1)
    assert "cannot read" in recall(WHAT).problem
    assert remembered(WHAT, int, lambda: 7) == 7


def test_remembered_measures_once_and_again_where_something_else_stands_there() -> None:
    calls: list[int] = []

    def measure() -> int:
        calls.append(1)
        return 7

    assert [remembered(WHAT, int, measure) for _ in range(3)] == [7, 7, 7]
    assert len(calls) == 1
    keep(WHAT, "seven")
    assert remembered(WHAT, int, measure) == 7
    assert len(calls) == 2


def test_two_processes_leave_one_whole_finding() -> None:
    code = (
        "import sys; from espan_deploy.backends.kept import keep, recall\n"
        "for i in range(100):\n"
        f"    assert keep({WHAT!r}, [int(sys.argv[1])] * 1000) == ''\n"
        f"    found = recall({WHAT!r})\n"
        "    assert found.finding is not None and len(set(found.finding.value)) == 1, found\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(i)]) for i in range(2)]
    assert [process.wait() for process in both] == [0, 0]
