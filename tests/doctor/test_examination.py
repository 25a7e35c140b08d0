"""Checks one after another: what is fine, what fails, what is not here, and what takes its process with it."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from espan_deploy.apart import can_run_apart
from espan_deploy.doctor.examination import Check, Examination, Finding, examine
from espan_deploy.errors import BackendUnavailableError, VerificationError


def absent() -> Any:
    raise BackendUnavailableError("there is none", hint="get one")


def wrong() -> Any:
    raise VerificationError("30 dB from FP32", hint="send it")


def surprised() -> Any:
    return {}["nobody thought of this"]


def dies() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)  # which no handler writes a page about


def stopped() -> Any:
    raise KeyboardInterrupt


def findings(*checks: Check) -> list[Finding]:
    return [item for item in examine(checks) if isinstance(item, Finding)]


def test_each_outcome_keeps_what_is_to_be_known() -> None:
    fine, gone, failed, bug = findings(
        Check("a", lambda: {"ms": 1.5}), Check("b", absent), Check("c", wrong), Check("d", surprised)
    )
    assert (fine.outcome, fine.facts) == ("fine", {"ms": 1.5})
    assert (gone.outcome, gone.reason, gone.hint) == ("not here", "there is none", "get one")
    assert (failed.outcome, failed.reason, failed.hint) == ("failed", "30 dB from FP32", "send it")
    assert bug.outcome == "failed"
    assert "in surprised" in bug.reason  # where it happened
    assert "nobody thought of this" in bug.reason
    examination = Examination({"cpu": "x"}, (fine, gone, failed, bug))
    assert [finding.name for finding in examination.failed] == ["c", "d"]
    document = json.loads(json.dumps(examination.to_json()))
    assert document["schema_version"] == 1
    assert [finding["outcome"] for finding in document["findings"]] == ["fine", "not here", "failed", "failed"]


def test_what_is_not_here_is_not_asked_again() -> None:
    asked: list[str] = []
    order = [
        Check("x fp32", absent, "x"),
        Check("x fp16", wrong, "x"),
        Check("y fp32", wrong, "y"),
        Check("y fp16", wrong, "y"),
    ]
    asked += [finding.name for finding in findings(*order)]
    assert asked == ["x fp32", "y fp32", "y fp16"]


@pytest.mark.skipif(not can_run_apart(), reason="this system does not fork safely")
def test_a_crash_is_a_finding_and_the_rest_goes_on() -> None:
    crashed, after = findings(Check("a", dies), Check("b", lambda: {}))
    assert crashed.outcome == "failed"
    assert crashed.reason.startswith("its process ended: SIGKILL")
    assert after.outcome == "fine"


def test_stopping_by_hand_ends_it_and_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espan_deploy.doctor.examination.can_run_apart", lambda: False)
    found = findings(Check("a", lambda: {}), Check("b", stopped), Check("c", lambda: {}))
    assert [finding.outcome for finding in found] == ["fine", "interrupted"]
    assert Examination({}, tuple(found)).interrupted
