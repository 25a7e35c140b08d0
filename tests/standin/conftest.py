"""Tests on the stand-in driver run in a process of their own: whoever loads a driver has it until the process ends.

Seen from here they are tests like others; each report comes from that process. Inside it the driver is controlled and
asked through the fixture ``driver``, and no test may end with a violation.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standin.build import Built, CannotBuildError, built
from synthetic import save_synthetic

HERE = Path(__file__).parent
INSIDE, REPORTS, REQUIRED = "STANDIN_INSIDE", "STANDIN_REPORTS", "ESPAN_DEPLOY_REQUIRE_STANDIN"
RUN_SECONDS = 300


def environment(made: Built) -> dict[str, str]:
    """Of a process in which the stand-in is the driver, and the modules beside it are TensorRT."""
    paths = [str(made.site), str(HERE / "modules"), str(HERE.parent.parent)]
    return {
        **os.environ,
        INSIDE: "1",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(made.driver), os.environ.get("LD_LIBRARY_PATH")])),
        "PYTHONPATH": os.pathsep.join(filter(None, [*paths, os.environ.get("PYTHONPATH")])),
    }


if INSIDE in os.environ:

    class Reporter:
        """Writes each report down for the process that waits for it."""

        def __init__(self, config: pytest.Config) -> None:
            self.config = config

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
            with open(os.environ[REPORTS], "a") as file:
                file.write(json.dumps(data) + "\n")

    def pytest_configure(config: pytest.Config) -> None:
        config.pluginmanager.register(Reporter(config))

else:

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
        if not item.path.is_relative_to(HERE):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in reports_of(item.session).get(item.nodeid) or [lost(item)]:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


_stash = pytest.StashKey[dict[str, list[Any]]]()
_said = pytest.StashKey[str]()


def reports_of(session: pytest.Session) -> dict[str, list[Any]]:
    """Test -> its reports, from one run of all the tests here that were asked for."""
    if _stash not in session.stash:
        items = [item for item in session.items if item.path.is_relative_to(HERE)]
        try:
            session.stash[_stash] = run_inside(session, items)
        except CannotBuildError as exc:
            outcome = "failed" if os.environ.get(REQUIRED) else "skipped"
            session.stash[_stash] = {item.nodeid: [verdict(item, outcome, str(exc))] for item in items}
    return session.stash[_stash]


def run_inside(session: pytest.Session, items: list[pytest.Item]) -> dict[str, list[Any]]:
    """The same tests in a process with the driver."""
    config = session.config
    cache = config.cache
    assert cache is not None
    folder = cache.mkdir("standin")
    made = built(folder)
    results = folder / "reports"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(item.nodeid for item in items)]
    done = subprocess.run(
        command,
        cwd=config.rootpath,
        env={**environment(made), REPORTS: str(results)},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    session.stash[_said] = f"the process ended with {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    found: dict[str, list[Any]] = {}
    for line in results.read_text().splitlines() if results.is_file() else ():
        report = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
        found.setdefault(report.nodeid, []).append(report)
    return found


def lost(item: pytest.Item) -> pytest.TestReport:
    return verdict(item, "failed", item.session.stash.get(_said, "it was not run"))


def verdict(item: pytest.Item, outcome: Any, text: str) -> pytest.TestReport:
    told: Any = (str(item.path), (item.location[1] or 0) + 1, text) if outcome == "skipped" else text
    return pytest.TestReport(item.nodeid, item.location, dict.fromkeys(item.keywords, 1), outcome, told, when="call")


KINDS = {"stream": 1, "event": 2, "graph": 3, "executable": 4}


class Driver:
    """The stand-in, seen from outside."""

    OUT_OF_MEMORY, INVALID_HANDLE, LAUNCH_FAILED = 2, 400, 719

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.library.standin_violations.restype = ctypes.c_char_p
        self.library.standin_count.restype = ctypes.c_long
        self.library.standin_used.restype = ctypes.c_size_t

    def fail(self, function: str, *, after: int = 0, times: int = -1, code: int = OUT_OF_MEMORY) -> None:
        """Let a function fail: first ``after`` calls succeed, then ``times`` fail, -1 for all."""
        self.library.standin_fail(function.encode(), after, times, code)

    def limit(self, nbytes: int) -> None:
        self.library.standin_limit(ctypes.c_size_t(nbytes))

    def count(self, name: str) -> int:
        return int(self.library.standin_count(name.encode()))

    def live(self, kind: str) -> int:
        return int(self.library.standin_live(KINDS[kind]))

    def held(self) -> dict[str, int]:
        """What is not given back."""
        held = {kind: self.live(kind) for kind in KINDS}
        return held | {"bytes": int(self.library.standin_used()), "pinned": int(self.library.standin_pinned_live())}

    def violations(self) -> list[str]:
        """Since the last time: whoever looks has seen them."""
        found = self.library.standin_violations().decode().splitlines()
        self.forget()
        return list(dict.fromkeys(found))

    def wipe(self) -> None:
        """All objects end, as with their process: what follows a kernel that failed."""
        self.library.standin_wipe()

    def forget(self) -> None:
        self.library.standin_forget()
        self.limit(48 << 30)


@pytest.fixture(autouse=True)
def driver() -> Iterator[Driver]:
    driver = Driver()
    driver.forget()
    yield driver
    assert driver.violations() == []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ESPAN_DEPLOY_CACHE", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_synthetic(tmp_path / "tiny.onnx")


@pytest.fixture
def rtx() -> Any:
    """Here the stand-in's, as everything in this process."""
    from espan_deploy.backends.trt_module import load_module

    return load_module("tensorrt-rtx")
