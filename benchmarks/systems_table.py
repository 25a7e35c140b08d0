"""The tables of docs/systems.md, of what ``systems.py`` measured."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from espan_deploy.networks.catalogue import LINEAGES, NETWORKS

Row = dict[str, Any]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "systems.md"

BEGIN, END = "<!-- made by benchmarks/systems.py table -->", "<!-- end of what is made -->"

MEGA, GIGA = 1e6, 1e9

SYSTEMS = 61
"""Released checkpoints of both challenges."""

LISTED = 3
"""Operators named in a cell."""

KEPT = ": kept on request"
"""Why operators of layers that are counted in a column of their own are FP32."""

EXPLAINED = 0.003
"""A deviation from the published multiply-adds above this is marked: the page says why."""


def write_tables(models: Path) -> None:
    """Put the tables in their place in docs/systems.md."""
    rows = {row["network"]: [] for row in _rows(models)}
    for row in _rows(models):
        rows[row["network"]].append(row)
    count = sum(map(len, rows.values()))
    built = sum("engine_bytes" in row.get("half", {}) for each in rows.values() for row in each)
    parts = [f"Rows so far: {count} of {SYSTEMS} checkpoints exported, {built} engines built."]
    for lineage in LINEAGES:
        of_lineage = [row for entry in lineage.entries for row in rows.get(entry.name, [])]
        if of_lineage:
            parts += [f"### {lineage.title} (`networks/{lineage.folder}`)", _exports(of_lineage)]
            parts += [_engines(of_lineage)] if any("half" in row for row in of_lineage) else []
    everything = [row for entry in NETWORKS for row in rows.get(entry.name, [])]
    parts += ["## What the fold saved", _folds(everything)]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text("\n\n".join([before + BEGIN, *parts, END + after]))


def _rows(models: Path) -> list[Row]:
    rows = (json.loads(path.read_text()) for path in sorted(models.glob("*.json")))
    return [row for row in rows if "network" in row]


def _table(head: list[str], lines: list[list[str]]) -> str:
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _exports(rows: list[Row]) -> str:
    head = ["checkpoint", "network", "parameters, M", "multiply-adds, G", "published", "apart", "from golden", "export"]
    return _table(head, [_export(row) for row in rows])


def _export(row: Row) -> list[str]:
    before = row["unfolded"]["multiply_adds"]
    published = _published(row)
    apart = "" if published is None else f"{before / GIGA / published - 1:+.1%}"
    if apart and abs(before / GIGA / published - 1) > EXPLAINED:
        apart = f"*{apart}*"
    return [
        f"`{row['checkpoint']}`",
        row["title"],
        f"{row['unfolded']['parameters'] / MEGA:.3f}",
        f"{before / GIGA:.2f}",
        "" if published is None else f"{published:.2f}",
        apart,
        f"{row['golden_error']:.0e}",
        f"{row['export_cpu_seconds']:.0f} s" if "export_cpu_seconds" in row else "",
    ]


def _published(row: Row) -> float | None:
    entry = next(entry for entry in NETWORKS if entry.name == row["network"])
    figures = [published.flops_g for published in entry.published]
    return min(figures, key=lambda figure: abs(figure * GIGA - row["unfolded"]["multiply_adds"]), default=None)


def _engines(rows: list[Row]) -> str:
    head = ["checkpoint", "FP16 from FP32", "more than a level off", "stays FP32", "kept FP32", "SM86 engine"]
    return _table(head, [_engine(row) for row in rows if "half" in row])


def _engine(row: Row) -> list[str]:
    half = row["half"]
    if "not_done" in half:
        return [f"`{row['checkpoint']}`", half["not_done"], "", "", "", ""]
    if "psnr_db" not in half:
        quality = [f"refused: {half['refused'].partition(';')[0]}", "", "", ""]
    else:
        stays = dict.fromkeys(op.split(":")[0] for op in half["fp32_operators"] if not op.endswith(KEPT))
        psnr = "equal" if half["psnr_db"] is None else f"{half['psnr_db']:.1f} dB"
        psnr += ", refused" if "refused" in half else ""
        quality = [psnr, f"{half['off_by_more']:.3%}", ", ".join(stays) or "nothing", str(len(half["kept_fp32"]) or "")]
    if "engine_bytes" in half:
        engine = f"{half['engine_precision'].upper()}, {half['engine_bytes'] / MEGA:.2f} MB"
        engine += f", to {half['largest']}x{half['largest']}" if half.get("largest") else ""
    else:
        engine = f"none: {half['not_built'].partition('. Condition')[0]}"
    return [f"`{row['checkpoint']}`", *quality, engine]


def _folds(rows: list[Row]) -> str:
    head = ["checkpoint", "convolutions", "G multiply-adds", "saved", "regions", "where, most first"]
    return _table(head, [_fold(row) for row in rows])


def _fold(row: Row) -> list[str]:
    before, after = row["unfolded"], row
    saved = 1 - after["multiply_adds"] / before["multiply_adds"]
    sites = sorted(row["sites"], key=lambda site: site["multiply_adds_after"] - site["multiply_adds_before"])
    kinds = Counter(_kind(site) for site in sites)
    return [
        f"`{row['checkpoint']}`",
        f"{before['convolutions']} -> {after['convolutions']}",
        f"{before['multiply_adds'] / GIGA:.3f} -> {after['multiply_adds'] / GIGA:.3f}",
        f"{saved:.2%}" if sites else "",
        str(len(sites) or ""),
        "; ".join(f"{count} x {kind}" for kind, count in kinds.most_common(LISTED)),
    ]


def _kind(site: Row) -> str:
    """``4 -> 1: 3x3 48->48``."""
    kernels = " + ".join(site["kernels"]) or "nothing"
    return f"{site['convolutions_before']} -> {site['convolutions_after']}: {kernels}"
