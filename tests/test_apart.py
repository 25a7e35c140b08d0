"""Work in a child process: its result, its exception, and nothing else of it."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from espan_deploy.apart import CrashedError, OutOfTimeError, can_run_apart, run_apart
from espan_deploy.errors import ExportError

pytestmark = pytest.mark.skipif(not can_run_apart(), reason="this system has no safe fork")


def test_the_result_comes_back_and_nothing_that_was_said(capfd: pytest.CaptureFixture[str]) -> None:
    def talkative() -> int:
        sys.stderr.write("a warning")
        sys.stdout.write("progress")
        os.write(2, b"from C++\n")
        return os.getpid()

    assert run_apart(talkative) != os.getpid()
    assert capfd.readouterr() == ("", "")


def test_an_exception_comes_back_whole() -> None:
    def failing() -> None:
        raise ExportError("no such operator", hint="take another")

    with pytest.raises(ExportError, match="no such operator") as caught:
        run_apart(failing)
    assert caught.value.hint == "take another"


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL: last words"),
        (lambda: os._exit(3), "exit code 3: last words"),
        (lambda: lambda: 0, "exit code 1"),  # what cannot be pickled
        (lambda: sys.exit(0), "exit code 1"),
    ],
)
def test_a_child_that_dies_is_one_error(how: object, told: str) -> None:
    def dying() -> object:
        os.write(2, b"last words\n")
        return how()  # type: ignore[operator]

    with pytest.raises(CrashedError, match=told):
        run_apart(dying)


def test_a_child_that_computes_too_long_tells_where_it_was() -> None:
    """And ends there, though the code at work holds on to every exception."""

    def busy(_: int) -> bool:
        try:
            while True:
                sum(range(1000))
        except BaseException:
            return True

    with pytest.raises(OutOfTimeError) as caught:
        run_apart(lambda: list(filter(busy, [1])), most_s=0.2)
    assert caught.value.stack[-1].name == "busy"


def test_what_ends_in_time_is_not_limited() -> None:
    assert run_apart(lambda: 3, most_s=60) == 3
