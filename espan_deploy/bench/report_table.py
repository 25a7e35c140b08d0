"""The document as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espan_deploy.bench.environment import one_line
from espan_deploy.bench.statistics import decimals

Row = Sequence[str]

CHALLENGE_ROWS = 12
"""Published rows shown on a terminal; the page and the JSON have all."""

SMALL_KIND = 0.01
"""Kinds of kernels that took less of a profile are summed up on a terminal."""

WARNINGS = 8
"""Contenders whose doubts are listed on a terminal."""


def render(document: dict[str, Any], *, layers: bool = False) -> str:
    """Everything a reader needs at a glance; no more digits than the intervals bear out."""
    parts = [_latencies(document, case["label"]) for case in document["cases"]]
    parts += [_quality(document["quality"])] if document["quality"] else []
    parts += [_challenge(document["challenge"])] if document["challenge"] else []
    parts += [_layers(document)] if layers else []
    foot = [f"note: {note}" for note in document["notes"]]
    foot += ["interrupted: what was measured until then is shown"] if document["interrupted"] else []
    foot.append(one_line(document["environment"]))
    return "\n\n".join(part for part in (*parts, "\n".join(foot)) if part)


def _latencies(document: dict[str, Any], label: str) -> str:
    results = [r for r in document["results"] if r["case"] == label]
    header = ("", "p50 ms", "95 % interval", "p90", "p99", "min", "ratio", "images/s", "of limit")
    rows, warnings = [], []
    for result in results:
        latency = result["latency_ms"]
        if latency is None:
            rows.append((result["contender"], "not measured", *[""] * 7))
            continue
        digits = decimals(latency["ci95"])
        low, high = latency["ci95"]
        ratio = result["ratio"]
        limit = result.get("limit")
        rows.append(
            (
                result["contender"],
                f"{latency['p50']:.{digits}f}",
                f"{low:.{digits}f} to {high:.{digits}f}",
                *(("-" if latency[p] is None else f"{latency[p]:.{digits}f}") for p in ("p90", "p99", "min")),
                _ratio(ratio),
                f"{result['throughput']['images_per_s']:.3g}",
                "-" if limit is None else f"{limit['share']:.0%}",
            )
        )
        if result["verdicts"]:
            warnings.append(f"  ! {result['contender']}: {', '.join(result['verdicts'])}")
    if not rows:
        return ""
    samples = max((r["latency_ms"]["samples"] for r in results if r["latency_ms"]), default=0)
    title = f"{label}: {samples} interleaved runs each, ratio to the first"
    if len(warnings) > WARNINGS:
        warnings[WARNINGS:] = [f"  ! and {len(warnings) - WARNINGS} more: see --json"]
    return "\n".join([title, table(header, rows), *warnings])


def _ratio(ratio: dict[str, Any]) -> str:
    low, high = ratio["ci95"]
    if low == high == 1:
        return "1"
    digits = max(1, decimals(ratio["ci95"]))
    return f"{ratio['ratio']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _quality(quality: dict[str, Any]) -> str:
    border = sorted(set(quality["border"].values()))
    rows = []
    for entry in quality["contenders"]:
        mean, drop = entry["mean"], entry["difference_to_fp32"]
        rows.append(
            (
                entry["contender"],
                *("equal" if mean[key] is None else f"{mean[key]:.3f}" for key in ("psnr_rgb_db", "psnr_y_db")),
                f"{mean['ssim_y']:.4f}",
                "-" if drop["psnr_rgb_db"] is None else f"{drop['psnr_rgb_db']:+.4f}",
            )
        )
    title = f"quality: mean of {len(quality['images'])} images, {'/'.join(map(str, border))} px border cut off"
    return "\n".join([title, table(("", "RGB dB", "Y dB", "SSIM", "RGB to FP32"), rows)])


def _challenge(challenge: dict[str, Any]) -> str:
    published = challenge["published"][:CHALLENGE_ROWS]
    entries = [
        (row["computed"], (row["team"], f"{row['psnr_test_db']:.2f}", f"{row['runtime_ms']:.3f}", "",
                           f"{row['params_m']:.3f}", f"{row['flops_g']:.2f}", f"{row['computed']:.2f}"))
        for row in published
    ]  # fmt: skip
    for row in challenge["measured"]:
        score = row["score"]
        cells = (
            f"> {row['contender']}",
            "",
            "-" if row["scaled_ms"] is None else f"~{row['scaled_ms']:.1f}",
            f"{row['measured_ms']:.1f}",
            f"{row['params_m']:.3f}",
            f"{row['flops_g']:.2f}",
            "-" if score is None else f"~{score:.1f}",
        )
        entries.append((float("inf") if score is None else score, cells))
    rows = [cells for _, cells in sorted(entries, key=lambda entry: entry[0])]
    header = ("", "test dB", "runtime ms", "here ms", "M", "G", "score")
    title = f"NTIRE {challenge['year']} efficient SR, the first {len(published)} published rows and this run"
    return "\n".join([title, table(header, rows), f"  ~ {challenge['scaling']}"])


def _layers(document: dict[str, Any]) -> str:
    parts = []
    for result in document["results"]:
        limit = result.get("limit")
        if not limit or "layers" not in limit:
            continue
        rows = [
            (
                layer["name"],
                layer["kernel"],
                f"{layer['macs'] / 1e9:.3f}",
                f"{layer['ms']:.3f}",
                layer["bound"],
                layer["computed_in"],
                *_took(layer),
            )
            for layer in limit["layers"]
        ]
        profile = limit["profile"]
        if profile:
            rows += [(f"({kind})", "", "", "", "", "", f"{ms:.3f}", "") for kind, ms in _between(profile)]
        title = f"{result['contender']}, {result['case']}: limit {limit['ms']:.2f} ms, {limit['share']:.0%} reached"
        if profile:
            title += f"; profiled apart: {profile['ms']:.2f} ms"
        header = ("layer", "kernel", "G per image", "at least ms", "bound by", "computed in", "took ms", "of limit")
        parts.append(f"{title}\n{table(header, rows)}")
    return "\n\n".join(parts)


def _took(layer: dict[str, Any]) -> tuple[str, str]:
    took = layer["took_ms"]
    return (f"{took:.3f}", f"{layer['ms'] / took:.0%}") if took else ("", "")


def _between(profile: dict[str, Any]) -> list[tuple[str, float]]:
    """What the kernels between the layers took, by kind; the small ones together."""
    kinds = profile["between_ms"].items()
    large = [(kind, ms) for kind, ms in kinds if ms >= SMALL_KIND * profile["ms"]]
    small = sum(ms for _, ms in kinds) - sum(ms for _, ms in large)
    return [*large, ("other kernels", small)] if small else large


def table(header: Row, rows: Sequence[Row]) -> str:
    """Columns of text: the first to the left, the rest to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
