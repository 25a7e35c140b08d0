"""The export, from a network or a foreign graph to a folded, verified model that describes itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from espan_deploy import backends
from espan_deploy.backends.model import ModelFile
from espan_deploy.description import ModelDescription
from espan_deploy.errors import ExportError, VerificationError
from espan_deploy.fold import Borders, FoldReport, fold
from espan_deploy.graph import Complexity, complexity, lowered, reach
from espan_deploy.sources import ONNX_SUFFIX, Source, graph_source, network_source

if TYPE_CHECKING:
    from espan_deploy.networks import Network

PARITY_TOLERANCE = 1e-4
"""Largest difference from the network itself, relative to its largest output: float32 through thirty layers of other
kernels, with room for networks that work in [0, 255] inside. ESPAN measures 1e-6."""

PARITY_SHAPES = ((1, 37, 52), (1, 64, 33), (2, 24, 41))
"""Batch, height and width compared: two sizes other than the one exported at, and a batch of two. A second size is what
shows a graph that was frozen at the first."""

PARITY_SEED = 36

SOFTENING = 6
"""How often neighbours are averaged: a blur of about three pixels."""

Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""(N, 3, H, W) in [0, value_range] -> (N, 3, scale*H, scale*W)."""


@dataclass(frozen=True)
class Facts:
    """What a graph does not say of itself: the value of white, and the smallest height and width it is defined for."""

    value_range: float = 1.0
    min_size: int = 1


@dataclass(frozen=True)
class Deployment:
    """What an export made.

    model: the folded graph with its description in the metadata. before, after: its cost before and after folding.
    largest_difference: from the network itself, relative to its largest output, over PARITY_SHAPES.
    border_difference: the same in the ring that approximately folded borders reach, which largest_difference then
    leaves out; 0 where every border is exact.
    """

    model: onnx.ModelProto
    description: ModelDescription
    report: FoldReport
    before: Complexity
    after: Complexity
    largest_difference: float
    border_difference: float


def deploy_file(
    path: Path,
    *,
    network_class: str | None = None,
    network_args: Mapping[str, Any] | None = None,
    value_range: float | None = None,
    borders: Borders = "exact",
    folding: bool = True,
    static_size: tuple[int, int] | None = None,
) -> Deployment:
    """Export a checkpoint, or an ONNX graph from elsewhere; see :func:`deploy_network` and :func:`deploy_graph`."""
    if path.suffix == ONNX_SUFFIX:
        graph, source = graph_source(path)
        return deploy_graph(graph, source, value_range=value_range or 1.0, borders=borders, folding=folding)
    network, source = network_source(
        path, network_class=network_class, network_args=network_args, value_range=value_range
    )
    return deploy_network(network, source, borders=borders, folding=folding, static_size=static_size)


def folded_checkpoint(path: Path) -> bytes:
    """The deploy form of a training-form checkpoint of a known network, as a safetensors file.

    Raises CheckpointError where it is none, FoldError where its deploy form is not known.
    """
    from safetensors.torch import save

    from espan_deploy.networks.folded import deploy_state

    network, source = network_source(path)
    metadata = {"network": source.network, "form": "deploy", "made_from_sha256": source.sha256}
    return save(deploy_state(network), metadata)


def deploy_network(
    network: Network,
    source: Source,
    *,
    borders: Borders = "exact",
    folding: bool = True,
    static_size: tuple[int, int] | None = None,
) -> Deployment:
    """Export, fold and verify a PyTorch network.

    Raises ExportError where it cannot be exported, VerificationError where the result differs from the network.
    """
    import torch

    from espan_deploy.onnx_export import onnx_from_module

    unfolded = onnx_from_module(network.module, static_size=static_size)

    def forward(x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            result: NDArray[np.float32] = network.module(torch.from_numpy(x)).numpy()
        return result

    facts = Facts(network.value_range, network.min_size)
    return _deploy(unfolded, source, facts, forward, borders=borders, folding=folding)


def deploy_graph(
    graph: ir.Model, source: Source, *, value_range: float = 1.0, borders: Borders = "exact", folding: bool = True
) -> Deployment:
    """Fold and verify a float32 graph from elsewhere, (N, 3, H, W) -> (N, 3, scale*H, scale*W).

    Raises ExportError where the graph is not such a one, VerificationError where folding changed its results.
    """
    reference: list[Forward] = []

    def forward(x: NDArray[np.float32]) -> NDArray[np.float32]:
        if not reference:
            plain = ModelDescription("", "", _scale(graph), None, value_range=value_range)
            reference.append(_runner(_described(graph, plain), plain, source.path))
        return reference[0](x)

    return _deploy(graph, source, Facts(value_range), forward, borders=borders, folding=folding)


def _deploy(
    unfolded: ir.Model, source: Source, facts: Facts, forward: Forward, *, borders: Borders, folding: bool
) -> Deployment:
    unfolded = lowered(unfolded)
    before = complexity(unfolded)
    if folding:
        result = fold(unfolded, borders=borders)
        folded, report = result.model, result.report
    else:
        folded, report = unfolded.clone(), FoldReport((), ())
    folded = _tidied(folded)
    after = complexity(folded)
    description = replace(
        describe_graph(folded, source, value_range=facts.value_range),
        min_size=facts.min_size,
        unfolded={
            "parameters": before.parameters,
            "multiply_adds": before.multiply_adds,
            "convolutions": before.convolutions,
        },
        fold_report={"sites": len(report.sites), "refusals": len(report.refusals)},
    )
    model = _described(folded, description)
    margin = 0 if all(site.exact for site in report.sites) else description.halo or 0
    difference, at_border = _largest_differences(
        _runner(model, description, source.path), forward, folded, facts.value_range, margin
    )
    if not difference <= PARITY_TOLERANCE:
        raise VerificationError(
            f"the exported model differs from {source.title} by {difference:.1e} of its largest value, "
            f"allowed is {PARITY_TOLERANCE:.0e}",
            hint="a network that is right at one size only was frozen at it: --static HEIGHTxWIDTH exports that size"
            if report.sites == () or borders == "exact"
            else "--fold-borders exact keeps the image's border as it was",
        )
    return Deployment(model, description, report, before, after, difference, at_border)


def describe_graph(graph: ir.Model, source: Source, *, value_range: float = 1.0) -> ModelDescription:
    """What a float32 graph (N, 3, H, W) -> (N, 3, scale*H, scale*W) says of itself. Raises ExportError for another."""
    graph = lowered(graph)
    cost, seen = complexity(graph), reach(graph)
    return ModelDescription(
        network=source.network,
        title=source.title,
        scale=_scale(graph),
        halo=seen.halo,
        value_range=value_range,
        size_multiple=seen.size_multiple,
        form=source.form,
        parameters=cost.parameters,
        multiply_adds=cost.multiply_adds,
        convolutions=cost.convolutions,
        source=source.path.name,
        source_sha256=source.sha256,
    )


def _tidied(model: ir.Model) -> ir.Model:
    """Without what only the exporter's developers need: stack traces with paths of the exporting machine."""
    for p in (
        passes.RemoveUnusedNodesPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.ClearMetadataAndDocStringPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.NameFixPass(),
    ):
        p(model)
    model.graph.name = "upscaler"
    model.producer_name = "espan-deploy"
    return model


def _described(model: ir.Model, description: ModelDescription) -> onnx.ModelProto:
    proto = ir.to_proto(model)
    del proto.metadata_props[:]
    for key, value in description.to_metadata().items():
        proto.metadata_props.add(key=key, value=value)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"the graph is not valid ONNX: {str(exc).strip().splitlines()[0]}") from exc
    return proto


def _scale(model: ir.Model) -> int:
    """Output size over input size. Raises ExportError where it is not one whole number."""
    from espan_deploy.graph.complexity import infer_shapes

    height, width = 48, 56
    out = infer_shapes(model, height, width).get(model.graph.outputs[0].name or "")
    known = reach(model).scale if out is None else None
    scale = known if out is None else Fraction(out[2], height) if len(out) == 4 else None
    if scale is None or scale.denominator != 1 or (out is not None and out[3] != scale * width):
        raise ExportError(
            f"the graph makes {out or 'an unknown size'} of (1, 3, {height}, {width}), expected a whole scale",
            hint="the network must give (N, 3, scale*H, scale*W)",
        )
    return int(scale)


def _runner(model: onnx.ModelProto, description: ModelDescription, path: Path) -> Forward:
    """The model in ONNX Runtime, as (N, 3, H, W) in the network's own range."""
    runner = backends.get("onnxruntime").open(ModelFile(path, model.SerializeToString(), description))
    value_range = np.float32(description.value_range)

    def forward(x: NDArray[np.float32]) -> NDArray[np.float32]:
        images = runner.infer(np.ascontiguousarray(x.transpose(0, 2, 3, 1)) / value_range)
        result: NDArray[np.float32] = images.transpose(0, 3, 1, 2) * value_range
        return result

    return forward


def _largest_differences(
    runner: Forward, forward: Forward, model: ir.Model, value_range: float, margin: int
) -> tuple[float, float]:
    """Relative to the largest output: inside, and in the ring of ``margin`` input pixels."""
    random = np.random.default_rng(PARITY_SEED)
    fixed = [d for d in (model.graph.inputs[0].shape or ())[2:] if isinstance(d, int)]
    inside, ring = 0.0, 0.0
    for batch, height, width in PARITY_SHAPES:
        size = tuple(fixed) if len(fixed) == 2 else (height + 2 * margin, width + 2 * margin)
        x = _soft_noise(random, (batch, 3, *size)) * np.float32(value_range)
        expected, got = forward(x), runner(x)
        if expected.shape != got.shape:
            raise VerificationError(f"the exported model makes {got.shape} of {x.shape}, the network {expected.shape}")
        difference = np.abs(got - expected) / np.abs(expected).max()
        # A fixed size may be too small to have an inside: then the whole image counts.
        band = margin * (expected.shape[2] // size[0]) if min(size) > 2 * margin else 0
        core = difference[:, :, band : expected.shape[2] - band, band : expected.shape[3] - band]
        inside = max(inside, float(core.max()))
        if band:
            ring = max(ring, float(difference.max()))
    return inside, ring


def _soft_noise(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Noise in [0, 1] as soft as a photograph; on white noise networks leave the range they were trained for, and
    amplify what float32 rounds."""
    noise = random.random(shape)
    for axis in (2, 3):
        for _ in range(SOFTENING):
            noise = (noise + np.roll(noise, 1, axis)) / 2
    low, high = noise.min(axis=(1, 2, 3), keepdims=True), noise.max(axis=(1, 2, 3), keepdims=True)
    soft: NDArray[np.float32] = ((noise - low) / (high - low)).astype(np.float32)
    return soft


def deployment_json(deployment: Deployment) -> dict[str, Any]:
    """Plain data for --json: everything printed, nothing rounded."""
    description = asdict(deployment.description)
    return {
        **description,
        "largest_difference": deployment.largest_difference,
        "border_difference": deployment.border_difference,
        "fold": deployment.report.to_json(),
    }
