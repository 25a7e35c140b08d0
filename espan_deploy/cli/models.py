"""``espan-deploy models``: what comes with the package."""

from __future__ import annotations

import json
from typing import Any

import click

from espan_deploy.cli.main import json_option

SCHEMA_VERSION = 1


@click.command(
    "models",
    epilog="""\b
Examples:
  espan-deploy models
  espan-deploy models --json
""",
)
@json_option
def command(*, as_json: bool) -> None:
    """List the models that come with the package, with their figures.

    `upscale` and `serve` take the one that fits each picture; --model NAME forces one.
    """
    from espan_deploy.models import MODELS, figures

    described = [_described(model) for model in MODELS.values()]
    if as_json:
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "models": described, "figures": figures()}))
        return
    for entry in described:
        click.echo(f"{entry['name']:<8}{entry['made_for']}")
        click.echo(f"        {entry['network']} x{entry['scale']}, {entry['bytes'] / 1e6:.2f} MB")
        click.echo(f"        trained on: {entry['photographs']}")
    click.echo()
    click.echo(_table(figures()))


def _described(model: Any) -> dict[str, Any]:
    from espan_deploy.backends.model import read_model

    file = read_model(model.path)
    return {
        "name": model.name,
        "path": str(model.path),
        "sha256": file.sha256,
        "bytes": len(file.data),
        "network": file.description.network,
        "scale": file.description.scale,
        "made_for": model.made_for,
        "photographs": model.photographs,
        "y_psnr_db": model.y_psnr_db(),
    }


def _table(document: dict[str, Any]) -> str:
    columns = ["none" if quality is None else str(quality) for quality in document["jpeg_quality"]]
    lines = ["Y-PSNR in dB, by the JPEG quality of the input", f"{'':<24}" + "".join(f"{c:>8}" for c in columns)]
    for group, rows in document["y_psnr_db"].items():
        for enlarger, values in rows.items():
            lines.append(f"{group + ', ' + enlarger:<24}" + "".join(f"{value:>8.2f}" for value in values))
    return "\n".join(lines)
