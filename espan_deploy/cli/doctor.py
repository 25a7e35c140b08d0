"""``espan-deploy doctor``: examine this machine, and print a report to send back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from espan_deploy.cli.main import INTERRUPTED, json_option
from espan_deploy.errors import VerificationError

if TYPE_CHECKING:
    from espan_deploy.doctor.examination import Finding

NAME_WIDTH = 26


@click.command(
    "doctor",
    epilog="""\b
Examples:
  espan-deploy doctor
  espan-deploy doctor --json > doctor.json
""",
)
@click.option("--model", type=click.Path(path_type=Path), help="ONNX file; the package's own if left out.")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True, help="For each timing."
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all]")
@json_option
@click.pass_context
def command(ctx: click.Context, /, *, model: Path | None, seconds: float, threads: int | None, as_json: bool) -> None:
    """Check, build, verify and time everything at hand: driver, GPU, engines, recipes, a whole run.

    Each check runs in a process of its own: what crashes is reported, and the rest goes on. Exit code 3 where
    something that is here does not do what it should. What the engines build is kept in the cache, as always.
    """
    from espan_deploy.backends.model import read_model
    from espan_deploy.bench.environment import environment, one_line
    from espan_deploy.doctor.checks import all_checks
    from espan_deploy.doctor.examination import Examination, Finding, examine
    from espan_deploy.models import default_model

    file = read_model(model or default_model())
    facts = environment(threads=threads)
    if not as_json:
        click.echo(one_line(facts))
    findings: list[Finding] = []
    for item in examine(all_checks(file, seconds=seconds, threads=threads)):
        if not isinstance(item, Finding):
            click.echo(f"{item.name} ...", err=True)
            continue
        findings.append(item)
        if not as_json:
            click.echo(_line(item))
    examination = Examination(facts, tuple(findings))
    if as_json:
        click.echo(json.dumps(examination.to_json()))
    else:
        click.echo(
            f"\n{_verdict(examination.failed)}; `espan-deploy doctor --json > doctor.json` has all figures to send"
        )
    if examination.interrupted:
        ctx.exit(INTERRUPTED)
    if examination.failed:
        ctx.exit(VerificationError.exit_code)


def _verdict(failed: list[Finding]) -> str:
    if not failed:
        return "everything that is here does what it should"
    return f"failed: {', '.join(finding.name for finding in failed)}"


def _line(finding: Finding) -> str:
    name = f"{finding.name:<{NAME_WIDTH}} {finding.outcome:<9}"
    if finding.outcome == "fine":
        return f"{name} {_figures(finding.facts)}"
    hint = f" ({finding.hint})" if finding.hint else ""
    return f"{name} {finding.reason}{hint}"


def _figures(facts: dict[str, Any]) -> str:
    """The facts that a reader looks for first."""
    parts = []
    if "cuda" in facts:
        parts.append(f"CUDA {facts['cuda']}")
    if "copy_in_gb_per_s" in facts:
        parts.append(f"{facts['name']} ({facts['capability']}), {facts['free_gib']:.1f} GiB free")
        parts.append(f"copies {facts['copy_in_gb_per_s']:.1f} in and {facts['copy_out_gb_per_s']:.1f} GB/s out")
    if "engine_bytes" in facts:
        parts.append(f"{facts['engine_bytes'] / 1e6:.2f} MB built in {facts['build_seconds']:.1f} s")
    if "not_run" in facts:
        parts.append(f"not run: {facts['not_run']}")
    if facts.get("psnr_db"):
        parts.append(f"{min(facts['psnr_db']):.1f} dB from FP32")
    for timing in facts.get("timings", ()):
        size = f"{timing['height']}x{timing['width']}" + (f" x{timing['batch']}" if timing["batch"] > 1 else "")
        parts.append(f"{size} {timing['median_ms']:.2f} ms" if "median_ms" in timing else f"{size} refused")
    if "mixed_ms_per_image" in facts:
        parts.append(f"mixed sizes {facts['mixed_ms_per_image']:.2f} ms")
    if "images_per_s" in facts:
        engine = facts["engine"]
        parts.append(f"{facts['images_per_s']:.1f} images/s by {engine['backend']} {engine['precision']}")
    return ", ".join(parts)
