"""Every contender against the truth, and against its own model in FP32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from espan_deploy.bench.contenders import Contender
from espan_deploy.bench.images import Pair
from espan_deploy.bench.quality import quality

FIGURES = ("psnr_rgb_db", "psnr_y_db", "ssim_y")


def compare_with_truth(
    contenders: Sequence[Contender], pairs: Sequence[Pair], progress: Callable[[str], None], table: dict[str, Any]
) -> None:
    """Fill ``table`` contender by contender, so that it holds whole rows whenever this is interrupted.

    A PSNR of equal images, which is infinite, is None, and left out of the means.
    """
    table.update({"border": {}, "images": [pair.name for pair in pairs], "contenders": []})
    for contender in contenders:
        scale = contender.model.file.description.scale
        rows = []
        for pair in pairs:
            progress(f"{contender.name}: {pair.name}")
            figures = asdict(quality(contender.runner.infer(pair.low[None])[0], pair.high, scale))
            rows.append({key: value if math.isfinite(value) else None for key, value in figures.items()})
        table["border"][contender.model.name] = scale
        table["contenders"].append(
            {
                "contender": contender.name,
                "mean": {key: _mean([row[key] for row in rows]) for key in FIGURES},
                "images": [{"image": pair.name, **row} for pair, row in zip(pairs, rows, strict=True)],
            }
        )
        _add_differences(contenders, table)


def _add_differences(contenders: Sequence[Contender], table: dict[str, Any]) -> None:
    by_name = {contender.name: contender for contender in contenders}
    references: dict[str, dict[str, float | None]] = {}
    for entry in table["contenders"]:
        contender = by_name[entry["contender"]]
        if contender.precision == "fp32":
            references.setdefault(contender.model.name, entry["mean"])
    for entry in table["contenders"]:
        reference = references.get(by_name[entry["contender"]].model.name, {})
        entry["difference_to_fp32"] = {key: _difference(entry["mean"][key], reference.get(key)) for key in FIGURES}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _difference(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else value - reference
