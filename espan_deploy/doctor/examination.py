"""Checks one after another, each in a process of its own, so that one that crashes is a finding like others."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

from espan_deploy.apart import CrashedError, can_run_apart, run_apart
from espan_deploy.errors import BackendUnavailableError, EspanDeployError

SCHEMA_VERSION = 1

Outcome = Literal["fine", "failed", "not here", "interrupted"]

Facts = dict[str, Any]

Answer = tuple[Outcome, Facts, str, str]
"""Outcome, facts, reason and hint, as they leave a check's process."""

TRACE_LINES = 12
"""Of an unexpected error, its last: on hardware that nobody has met, these are what to send."""


@dataclass(frozen=True)
class Check:
    """Something to find out. group: once one of it is not here, the others are not tried.

    find_out: returns facts as plain data, or raises; BackendUnavailableError for what this machine does not have.
    """

    name: str
    find_out: Callable[[], Facts]
    group: str = ""


@dataclass(frozen=True)
class Finding:
    """What a check found. reason, hint: of what failed or is not here."""

    name: str
    outcome: Outcome
    seconds: float
    facts: Facts = field(default_factory=dict)
    reason: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Examination:
    """Everything found, in order. interrupted: somebody stopped it, and the last finding says where."""

    environment: Facts
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> list[Finding]:
        """What is here and does not do what it should."""
        return [finding for finding in self.findings if finding.outcome == "failed"]

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped before its end."""
        return any(finding.outcome == "interrupted" for finding in self.findings)

    def to_json(self) -> Facts:
        """The document to send back."""
        findings = [asdict(finding) for finding in self.findings]
        return {"schema_version": SCHEMA_VERSION, "environment": self.environment, "findings": findings}


def examine(checks: Sequence[Check], *, clock: Callable[[], float] = time.perf_counter) -> Iterator[Check | Finding]:
    """Each check as it begins, then what it found. Ends early after Ctrl-C, with a finding that says so."""
    absent: set[str] = set()
    for check in checks:
        if check.group in absent:
            continue
        yield check
        finding = _find_out(check, clock)
        if finding.outcome == "not here" and check.group:
            absent.add(check.group)
        yield finding
        if finding.outcome == "interrupted":
            return


def _find_out(check: Check, clock: Callable[[], float]) -> Finding:
    started = clock()
    told = partial(_told, check.find_out)
    answer: Answer
    try:
        answer = run_apart(told) if can_run_apart() else told()
    except CrashedError as exc:
        answer = ("failed", {}, f"its process ended: {exc}", "")
    except KeyboardInterrupt:
        answer = ("interrupted", {}, "stopped by hand", "")
    outcome, facts, reason, hint = answer
    return Finding(check.name, outcome, clock() - started, facts, reason, hint)


def _told(find_out: Callable[[], Facts]) -> Answer:
    """In the process of the check: exceptions lose their traceback on the way out."""
    try:
        return "fine", find_out(), "", ""
    except BackendUnavailableError as exc:
        return "not here", {}, exc.message, exc.hint
    except EspanDeployError as exc:
        return "failed", {}, exc.message, exc.hint
    except Exception:  # whatever it is, the report is wanted
        return "failed", {}, "\n".join(traceback.format_exc().strip().splitlines()[-TRACE_LINES:]), ""
