"""The export is a chain, each link made once: source, facts, graph, fold, description, proof.

=============  ==================================  =======================================================
step           where                               gives
=============  ==================================  =======================================================
source         ``sources.py``                      the network with its weights, or a graph from elsewhere
facts          ``facts.py``                        scale, and the sizes it takes, by trying
graph          ``onnx_export.py``, ``graph/``      ONNX as trained, and its sizes as functions of the input's
fold           ``fold/``                           the same in fewer operations
description    ``description.py``                  what the file says of itself
proof          ``proof.py``                        how far the model is from the network, and at which sizes
=============  ==================================  =======================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.backends.model import INT8
from espan_deploy.description import ModelDescription
from espan_deploy.errors import EspanDeployError, ExportError, NotTraceableError, VerificationError
from espan_deploy.facts import Forward, Takes, at_multiples, at_taken_sizes, find_max_batch, find_takes
from espan_deploy.fold import Borders, FoldReport, fold
from espan_deploy.graph import Complexity, SizedGraph, complexity, reach
from espan_deploy.graph.batch import with_free_batch
from espan_deploy.graph.quantised import is_quantised, without_quantisation
from espan_deploy.proof import GLANCE_SIZE, Proof, agree_at, disproved, model_function, prove
from espan_deploy.proof_nodes import first_difference
from espan_deploy.proof_tiles import with_proven_tiles
from espan_deploy.sources import ONNX_SUFFIX, Source, graph_source, network_source

if TYPE_CHECKING:
    from espan_deploy.networks import Network


MULTIPLES = (8, 16, 32, 64)
"""Tried where a graph is wrong: networks pad images to such."""


@dataclass(frozen=True)
class Deployment:
    """What an export made.

    model: the folded graph with its description in the metadata. before, after: its cost before and after folding.
    proof: how far it is from the network.
    """

    model: onnx.ModelProto
    description: ModelDescription
    report: FoldReport
    before: Complexity
    after: Complexity
    proof: Proof

    @property
    def largest_difference(self) -> float:
        """From the network itself, relative to its largest output; without the ring of approximately folded borders."""
        return self.proof.inside

    @property
    def border_difference(self) -> float:
        """The same in that ring; 0 where every border is exact."""
        return self.proof.border


@dataclass(frozen=True)
class Original:
    """What is to be deployed, as it was given.

    forward: calls it. fixed: the only height and width wanted or taken, None for any. graphs: given the sizes it takes,
    what exports it, one after another until one is right; lowered float32 graphs (N, 3, H, W) ->
    (N, 3, scale*H, scale*W), every branch still there. stated: what is said of the scale and the sizes it takes, if
    anything is. of_one_size: exports it for one height and width, to tell what went wrong in the others.
    """

    source: Source
    forward: Forward
    value_range: float
    fixed: tuple[int, int] | None
    graphs: Callable[[Takes], tuple[Callable[[], ir.Model], ...]]
    stated: Takes | None = None
    of_one_size: Callable[[tuple[int, int]], ir.Model] | None = None


def deploy_file(
    path: Path,
    *,
    network_class: str | None = None,
    network_args: Mapping[str, Any] | None = None,
    weights: str | None = None,
    value_range: float | None = None,
    borders: Borders = "exact",
    folding: bool = True,
    static_size: tuple[int, int] | None = None,
) -> Deployment:
    """Export a checkpoint, or an ONNX graph from elsewhere; see :func:`deploy_network` and :func:`deploy_graph`.

    weights: which state dict of a checkpoint that holds several; by default the one that the network's authors use.
    """
    if path.suffix == ONNX_SUFFIX:
        graph, source = graph_source(path)
        return deploy_graph(graph, source, value_range=value_range or 1.0, borders=borders, folding=folding)
    network, source = network_source(
        path, network_class=network_class, network_args=network_args, value_range=value_range, weights=weights
    )
    return deploy_network(network, source, borders=borders, folding=folding, static_size=static_size)


def folded_checkpoint(
    path: Path, *, network_args: Mapping[str, Any] | None = None, weights: str | None = None
) -> bytes:
    """The deploy form of a training-form checkpoint of a known network, as a safetensors file.

    network_args, weights: what the shapes do not tell, and which state dict, as in :func:`deploy_file`.
    Raises CheckpointError where it is none, FoldError where its deploy form is not known.
    """
    from safetensors.torch import save

    from espan_deploy.networks.folded import deploy_state

    network, source = network_source(path, network_args=network_args, weights=weights)
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
    return _deploy(_original_network(network, source, static_size), borders=borders, folding=folding)


def deploy_graph(
    graph: ir.Model, source: Source, *, value_range: float = 1.0, borders: Borders = "exact", folding: bool = True
) -> Deployment:
    """Fold and verify a float32 graph from elsewhere, (N, 3, H, W) -> (N, 3, scale*H, scale*W).

    Raises ExportError where the graph is not such a one, VerificationError where folding changed its results.
    """
    return _deploy(_original_graph(graph, source, value_range), borders=borders, folding=folding)


def describe_file(path: Path) -> ModelDescription:
    """What a checkpoint or a graph from elsewhere would say of itself, unfolded; nothing is proven.

    Raises CheckpointError or ExportError where it is neither.
    """
    if path.suffix == ONNX_SUFFIX:
        original = _original_graph(*graph_source(path), value_range=1.0)
    else:
        original = _original_network(*network_source(path), static_size=None)
    takes = find_takes(original.forward, original.source.title, fixed=original.fixed, stated=original.stated)
    graph = original.graphs(takes)[0]()
    sized = SizedGraph(_in_floats(graph))
    return _describe(sized, complexity(sized), takes, original, quantised=is_quantised(graph.graph))


def _original_network(network: Network, source: Source, static_size: tuple[int, int] | None) -> Original:
    from espan_deploy.onnx_export import LARGE_TRACED_SIZE, TRACED_SIZE, module_function, onnx_from_module_apart

    def graph(takes: Takes, size: tuple[int, int], any_batch: bool) -> ir.Model:
        static, multiple = takes.fixed is not None, takes.multiple
        traced = takes.fit(*size)
        return onnx_from_module_apart(
            network.module, traced=traced, static=static, any_batch=any_batch, multiple=multiple
        )

    def graphs(takes: Takes) -> tuple[Callable[[], ir.Model], ...]:
        sizes = (TRACED_SIZE, LARGE_TRACED_SIZE) if takes.fixed is None else (TRACED_SIZE,)
        # Windows are often put together again by int(windows / windows of an image), the batch of the example.
        batches = (True, False) if takes.max_batch is None else (False,)
        return tuple(partial(graph, takes, size, any_batch) for size in sizes for any_batch in batches)

    stated = None if network.scale is None else Takes(network.scale, network.multiple, network.least)

    def of_one_size(size: tuple[int, int]) -> ir.Model:
        return onnx_from_module_apart(network.module, traced=size, static=True, any_batch=False)

    forward = module_function(network.module)
    return Original(source, forward, network.value_range, static_size, graphs, stated, of_one_size)


def _original_graph(graph: ir.Model, source: Source, value_range: float) -> Original:
    batch, _, height, width = graph.graph.inputs[0].shape or (None,) * 4
    if isinstance(batch, int) and batch > 1:
        graph = with_free_batch(graph)
    forward = _function(graph)
    fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return Original(
        source, forward, value_range, fixed, lambda takes: (lambda: _with_any_batch(graph, forward, takes),)
    )


def _with_any_batch(graph: ir.Model, forward: Forward, takes: Takes) -> ir.Model:
    """The graph with any batch, where it gives the same then; else the graph itself."""
    if takes.max_batch is None:
        return graph
    try:
        free = with_free_batch(graph)
        return free if find_max_batch(_function(free), takes, alone=forward) is None else graph
    except ExportError:
        return graph


def _function(graph: ir.Model) -> Forward:
    """A graph as ONNX Runtime runs it. Raises ExportError where it is not valid."""
    evaluator = GraphEvaluator(_valid(ir.to_proto(graph)))
    return lambda x: evaluator.run(x)[0]


def _deploy(original: Original, *, borders: Borders, folding: bool) -> Deployment:
    """The chain, with one graph after another until one is right."""
    takes = find_takes(original.forward, original.source.title, fixed=original.fixed, stated=original.stated)
    original = replace(original, forward=at_taken_sizes(original.forward, original.source.title))
    refused: EspanDeployError | None = None
    doubtful: ir.Model | None = None
    wrong: ir.Model | None = None
    exports = original.graphs(takes)
    for export in exports:
        try:
            graph = export()
            if len(exports) == 1 or _right_at_a_glance(graph, original, takes):
                wrong = wrong or graph
                return _proven(graph, original, takes, borders=borders, folding=folding)
            doubtful = doubtful or graph
        except NotTraceableError:
            raise
        except (ExportError, VerificationError) as exc:
            refused = refused or exc
    if doubtful is not None:  # which says at which sizes it is right
        wrong = doubtful
        try:
            return _proven(doubtful, original, takes, borders=borders, folding=folding)
        except VerificationError as exc:
            refused = exc
    assert refused is not None
    if wrong is None or original.of_one_size is None or not isinstance(refused, VerificationError):
        raise refused
    deployment = _deploy_multiples(original, takes, borders=borders, folding=folding) if takes.fixed is None else None
    if deployment is not None:
        return deployment
    found = first_difference(wrong, original.forward, original.of_one_size, takes, value_range=original.value_range)
    raise VerificationError(refused.message + found, hint=refused.hint)


def _deploy_multiples(original: Original, takes: Takes, *, borders: Borders, folding: bool) -> Deployment | None:
    """For a network that pads images by numbers of Python's, which its graph keeps: where there is nothing to pad."""
    for export in original.graphs(replace(takes, multiple=math.lcm(takes.multiple, MULTIPLES[-1]))):
        with suppress(ExportError):
            graph = export()
            for multiple in MULTIPLES:
                fewer = at_multiples(original.forward, takes, multiple)
                if _right_at_a_glance(graph, original, fewer):
                    with suppress(VerificationError):
                        return _proven(graph, original, fewer, borders=borders, folding=folding)
            return None
    return None


def _right_at_a_glance(graph: ir.Model, original: Original, takes: Takes) -> bool:
    size = takes.fit(*GLANCE_SIZE)
    return agree_at(_function(graph), original.forward, size, value_range=original.value_range)


def _proven(graph: ir.Model, original: Original, takes: Takes, *, borders: Borders, folding: bool) -> Deployment:
    """From the graph on. Raises VerificationError where it is not the network."""
    source = original.source
    quantised = is_quantised(graph.graph)
    before = complexity(SizedGraph(_in_floats(graph)))
    # What a quantised graph computes is what was calibrated: another convolution would want other codes.
    if folding and not quantised:
        result = fold(graph, borders=borders)
        folded, report = result.model, result.report
    else:
        folded, report = graph.clone(), FoldReport((), ())
    sized = SizedGraph(_in_floats(_tidied(folded)))
    after = complexity(sized)
    described = _describe(sized, after, takes, original, quantised=quantised)
    model = _valid(ir.to_proto(folded))
    function = model_function(model, described, source.path)
    proof = prove(
        function,
        original.forward,
        takes,
        value_range=original.value_range,
        margin=0 if all(site.exact for site in report.sites) else described.halo or 0,
    )
    if not proof.holds:
        raise disproved(proof, source.title, exact=not report.sites or borders == "exact")
    description = replace(
        with_proven_tiles(described, function, original.forward, takes),
        min_size=proof.least,
        max_batch=described.max_batch or proof.max_batch,
        verified_at=proof.sizes,
        unfolded={
            "parameters": before.parameters,
            "multiply_adds": before.multiply_adds,
            "convolutions": before.convolutions,
        },
        fold_report={"sites": len(report.sites), "refusals": len(report.refusals)},
    )
    onnx.helper.set_model_props(model, description.to_metadata())
    return Deployment(model, description, report, before, after, proof)


def _in_floats(graph: ir.Model) -> ir.Model:
    """The graph as its cost and reach are read."""
    return without_quantisation(graph) if is_quantised(graph.graph) else graph


def _describe(
    graph: SizedGraph, cost: Complexity, takes: Takes, original: Original, *, quantised: bool
) -> ModelDescription:
    seen, source = reach(graph, multiple=takes.multiple, least=takes.least), original.source
    batch = graph.input.shape[0] if graph.input.shape else None
    return ModelDescription(
        network=source.network,
        title=source.title,
        scale=takes.scale,
        halo=seen.halo,
        tile_multiple=seen.tile_multiple,
        local_halo=seen.local_halo,
        halo_reason=seen.why,
        value_range=original.value_range,
        size_multiple=takes.multiple,
        min_size=takes.least,
        fixed_size=takes.fixed,
        padding=takes.padding,
        max_batch=batch if isinstance(batch, int) else None,
        precision=INT8 if quantised else "fp32",
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


def _valid(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself. Raises ExportError where it is not valid."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"the graph is not valid ONNX: {str(exc).strip().splitlines()[0]}") from exc
    return model


def deployment_json(deployment: Deployment) -> dict[str, Any]:
    """Plain data for --json: everything printed, nothing rounded."""
    description = asdict(deployment.description)
    return {
        **description,
        "largest_difference": deployment.largest_difference,
        "border_difference": deployment.border_difference,
        "fold": deployment.report.to_json(),
    }
