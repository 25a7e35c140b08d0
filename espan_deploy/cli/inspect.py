"""``espan-deploy inspect``: what a checkpoint, an ONNX file or an engine is; and which networks are known."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from espan_deploy.cli.engines import ENGINE_SUFFIX, describe_engine_file, manifest_lines
from espan_deploy.cli.main import json_option
from espan_deploy.description import ModelDescription
from espan_deploy.errors import InputError

GIGA, MILLION = 1e9, 1e6


@click.command(
    "inspect",
    epilog="""\b
Examples:
  espan-deploy inspect espan.pth
  espan-deploy inspect espan.onnx --json
  espan-deploy inspect espan.engine
  espan-deploy inspect --networks
""",
)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--networks", is_flag=True, help="List the networks that are recognised, with their published figures.")
@json_option
def command(file: Path | None, networks: bool, as_json: bool) -> None:
    """Say what FILE is: network, form, scale, value range, halo, size, cost, hash."""
    if networks == (file is not None):
        raise click.UsageError("name a file, or --networks")
    if networks:
        rows = _networks()
        click.echo(json.dumps({"schema_version": 1, "networks": rows}) if as_json else _networks_table(rows))
        return
    assert file is not None
    facts = inspect_file(file)
    click.echo(json.dumps({"schema_version": 1, **facts}) if as_json else _facts_table(facts))


def inspect_file(path: Path) -> dict[str, Any]:
    """Everything known of a file, plain data. Raises InputError, CheckpointError or ExportError where it is nothing."""
    if not path.is_file():
        raise InputError(f"no such file: {path}" if not path.exists() else f"{path} is not a file")
    if path.suffix == ENGINE_SUFFIX:
        manifest, _ = describe_engine_file(path)
        kind, description, sha256 = "engine", manifest.model_description(), manifest.engine_sha256
        engine = {"manifest": asdict(manifest)}
    else:
        kind, description, sha256 = _describe(path)
        engine = {}
    size = path.stat().st_size
    return {"file": str(path), "bytes": size, "sha256": sha256, "kind": kind, **asdict(description), **engine}


def _describe(path: Path) -> tuple[str, ModelDescription, str]:
    from espan_deploy.deploy import describe_file
    from espan_deploy.sources import ONNX_SUFFIX

    kind = "checkpoint"
    if path.suffix == ONNX_SUFFIX:
        from espan_deploy.backends.model import model_description

        data = path.read_bytes()
        known = model_description(data, path)
        if known is not None:
            return "ONNX model of espan-deploy", known, hashlib.sha256(data).hexdigest()
        kind = "ONNX graph from elsewhere"
    description = describe_file(path)
    return kind, description, description.source_sha256


def _facts_table(facts: dict[str, Any]) -> str:
    halo = facts["halo"]
    lines = [
        ("file", f"{facts['file']} ({facts['bytes'] / MILLION:.2f} MB), {facts['kind']}"),
        ("sha256", facts["sha256"]),
        ("network", f"{facts['title']}, {facts['form']} form, x{facts['scale']}"),
        ("parameters", f"{facts['parameters'] / MILLION:.4f} M"),
        ("multiply-adds", f"{_giga(facts['multiply_adds'])} at 256x256"),
        ("convolutions", str(facts["convolutions"])),
        ("pixels", f"{facts['pixels']} {facts['color_order']} in [0, {facts['value_range']:g}], {facts['precision']}"),
        (
            "halo",
            f"tiles cannot be exact: {facts['halo_reason'] or 'an operator sees the whole image'}"
            if halo is None
            else f"{halo} low-resolution pixels around a tile",
        ),
    ]
    if facts["min_size"] > 1:
        lines.append(("smallest image", f"{facts['min_size']}x{facts['min_size']}"))
    if halo is not None and facts["tile_multiple"] > 1:
        lines.append(("tiles start at", f"multiples of {facts['tile_multiple']}"))
    if facts["max_batch"] is not None:
        lines.append(("images a call", str(facts["max_batch"])))
    if facts["verified_at"]:
        lines.append(
            ("verified at", ", ".join(dict.fromkeys(f"{height}x{width}" for _, height, width in facts["verified_at"])))
        )
    if facts["size_multiple"] > 1:
        lines.append(("sizes", f"multiples of {facts['size_multiple']}"))
    if before := facts["unfolded"]:
        lines.append(
            (
                "before folding",
                f"{before['parameters'] / MILLION:.4f} M parameters, {_giga(before['multiply_adds'])} "
                f"multiply-adds, {before['convolutions']} convolutions",
            )
        )
    if facts["source"] and facts["source"] != Path(facts["file"]).name:
        lines.append(("made from", f"{facts['source']} (sha256 {facts['source_sha256'][:16]}...)"))
    if "manifest" in facts:
        lines += manifest_lines(facts["manifest"])
    return "\n".join(f"{name:<15} {text}" for name, text in lines)


def _giga(multiply_adds: int | None) -> str:
    return "unknown" if multiply_adds is None else f"{multiply_adds / GIGA:.4f} G"


def _networks() -> list[dict[str, Any]]:
    from espan_deploy.networks.catalogue import LINEAGES

    return [
        {
            "name": entry.name,
            "title": entry.title,
            "lineage": lineage.title,
            "folder": lineage.folder,
            "source": entry.source,
            "published": [asdict(row) for row in entry.published],
        }
        for lineage in LINEAGES
        for entry in lineage.entries
    ]


def _networks_table(rows: list[dict[str, Any]]) -> str:
    columns = f"{'challenge':<10} {'team':<22} {'params M':>8} {'MAC G':>6} {'valid dB':>8} {'test dB':>7}"
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'name':<{width}} {columns}  source"]
    lineage = None
    for row in rows:
        if row["lineage"] != lineage:
            lineage = row["lineage"]
            lines += ["", f"{lineage} (networks/{row['folder']})"]
        for published in row["published"] or [None]:
            figures = f"{'':<10} {'':<22} {'':>8} {'':>6} {'':>8} {'':>7}"
            if published is not None:
                figures = (
                    f"{published['challenge']:<10} {published['team']:<22} {published['params_m']:>8.3f} "
                    f"{published['flops_g']:>6.2f} {published['psnr_valid_db']:>8.2f} {published['psnr_test_db']:>7.2f}"
                )
            lines.append(f"{row['name']:<{width}} {figures}  {row['source']}")
    lines.append("\nFigures as published; MAC G: multiply-adds at 256x256, which the reports call FLOPs.")
    return "\n".join(lines)
