"""A file -> what there is to deploy: a network with its weights, or an ONNX graph from elsewhere."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
from onnx.inliner import inline_local_functions

from espan_deploy.apart import without_warnings
from espan_deploy.checkpoints import load_checkpoint
from espan_deploy.errors import BackendUnavailableError, CheckpointError, ExportError
from espan_deploy.graph import lowered
from espan_deploy.networks import Network, fill_module, load_network

if TYPE_CHECKING:
    from torch import nn

ONNX_SUFFIX = ".onnx"


@dataclass(frozen=True)
class Source:
    """Where a model comes from, for its description. form: "training", "deploy", or "graph"."""

    path: Path
    sha256: str
    network: str
    title: str
    form: str


def network_source(
    path: Path,
    *,
    network_class: str | None = None,
    network_args: Mapping[str, Any] | None = None,
    value_range: float | None = None,
    weights: str | None = None,
) -> tuple[Network, Source]:
    """The network of a checkpoint: one of the catalogue, or of a user's class ``file.py:ClassName``.

    network_args: the class's keyword arguments; for a network of the catalogue, what shapes cannot tell.
    value_range: overrides what the catalogue says; a user's class is taken to work in [0, 1].
    weights: which state dict of a file that holds several; by default the one that the network's authors use.
    Raises CheckpointError, and BackendUnavailableError where PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise BackendUnavailableError(
            "PyTorch is needed to read checkpoints, and is not installed", hint="pip install 'espan-deploy[export]'"
        )
    checkpoint = load_checkpoint(path, weights=weights)
    if network_class is None:
        network = load_network(checkpoint, **(network_args or {}))
    else:
        module = _instantiate(network_class, dict(network_args or {}))
        fill_module(module, checkpoint, network_class)
        network = Network(module, None, "training", 1.0, None, network_class, network_class)
    if value_range is not None:
        network = replace(network, value_range=value_range)
    return network, Source(path, checkpoint.sha256, network.name, network.title, network.form)


def graph_source(path: Path) -> tuple[ir.Model, Source]:
    """A float32 ONNX graph, (N, 3, H, W) -> (N, 3, scale*H, scale*W), checked and lowered.

    Raises ExportError where it is not one, or not valid ONNX.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ExportError(f"cannot read {path}: {exc.strerror or exc}") from exc
    try:
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
        graph = ir.from_proto(inline_local_functions(proto) if proto.functions else proto)
    except Exception as exc:  # protobuf, onnx and onnx_ir each raise their own
        lines = str(exc).strip().splitlines()
        raise ExportError(
            f"{path} is not a valid ONNX model: {lines[0] if lines else type(exc).__name__}", hint="export it again"
        ) from exc
    inputs = [v for v in graph.graph.inputs if v.name not in graph.graph.initializers]
    graph.graph.inputs[:] = inputs  # old files list their weights too
    if len(inputs) != 1 or len(graph.graph.outputs) != 1:
        raise ExportError(
            f"{path} has {len(inputs)} inputs and {len(graph.graph.outputs)} outputs, expected an image in and one out"
        )
    shape, dtype = inputs[0].shape, inputs[0].dtype
    if dtype != ir.DataType.FLOAT or shape is None or len(shape) != 4 or shape[1] != 3:
        raise ExportError(
            f"{path} takes {inputs[0].type} of shape {shape}, expected float32 (N, 3, H, W)",
            hint="fold the float32 graph; precision and pixel types come afterwards",
        )
    return lowered(graph), Source(path, hashlib.sha256(content).hexdigest(), "onnx", path.name, "graph")


def _instantiate(network_class: str, arguments: dict[str, Any]) -> nn.Module:
    """An object of the class ``path/to/file.py:ClassName``."""
    from torch import nn

    file, _, name = network_class.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier() or not path.is_file():
        raise CheckpointError(
            f"--network takes an existing file and a class, such as model.py:MyNet, not {network_class}"
        )
    spec = importlib.util.spec_from_file_location(f"espan_deploy_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up by name
    sys.path.insert(0, str(path.resolve().parent))  # the file's own imports lie beside it
    try:
        with without_warnings():
            spec.loader.exec_module(module)
    except Exception as exc:  # whatever the user's file raises
        raise CheckpointError(f"{path} cannot be imported: {type(exc).__name__}: {exc}") from exc
    finally:
        sys.path.remove(str(path.resolve().parent))
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        classes = [
            key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)
        ]
        raise CheckpointError(f"{path} has no network class {name}; it has {', '.join(classes) or 'none'}")
    try:
        with without_warnings():
            network = found(**arguments)
    except TypeError as exc:
        raise CheckpointError(
            f"{name} does not take these arguments: {exc}", hint="--network-args '{\"upscale\": 4}' sets them"
        ) from exc
    except Exception as exc:  # whatever the user's constructor raises
        if "cuda" in str(exc).lower() or "nvidia" in str(exc).lower():
            raise CheckpointError(
                f"the constructor of {name} needs CUDA, which is not here: {exc}",
                hint="take .cuda() calls out of the constructor; the caller moves a network to its device",
            ) from exc
        raise CheckpointError(f"the constructor of {name} failed: {type(exc).__name__}: {exc}") from exc
    return network
