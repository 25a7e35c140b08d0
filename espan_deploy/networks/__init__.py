"""Checkpoint -> network: which architecture it is, from the keys and shapes alone, and its weights loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

from espan_deploy.errors import CheckpointError, UnknownNetworkError
from espan_deploy.networks.catalogue import NETWORKS
from espan_deploy.networks.diffusion import refuse_diffusion
from espan_deploy.networks.entry import Architecture, Form, NetworkEntry, Published, Shapes

if TYPE_CHECKING:
    from torch import nn

    from espan_deploy.checkpoints import Checkpoint

__all__ = [
    "NETWORKS",
    "Architecture",
    "Form",
    "Network",
    "NetworkEntry",
    "Published",
    "detect_network",
    "load_network",
    "reference_network",
]

SHOWN_KEYS = 4
"""How many differing keys a message lists: enough to recognise the difference, short enough to read."""


@dataclass(frozen=True)
class Network:
    """A network with its weights, in evaluation mode.

    module: takes (N, 3, H, W) and gives (N, 3, scale*H, scale*W), both float32 in [0, value_range], RGB.
    scale: None for a user's own class: it is found by trying. entry: the catalogue's, or None where it is not of it.
    multiple, least: of H and W, as far as they were said beforehand; with the scale, tried and not believed.
    settings: what it was built with besides the shapes.
    """

    module: nn.Module
    scale: int | None
    form: Form
    value_range: float
    entry: NetworkEntry | None
    name: str
    title: str
    multiple: int = 1
    least: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


def detect_network(shapes: Shapes) -> NetworkEntry:
    """The network a state dict of these shapes belongs to.

    Raises UnknownNetworkError, naming the nearest known network and the keys that differ.
    """
    for entry in NETWORKS:
        if entry.detect(shapes):
            return entry
    nearest, missing, unexpected = _nearest(shapes)
    raise UnknownNetworkError(
        f"no known network has these {len(shapes)} keys; the nearest is {nearest.title}, "
        f"which also has {_listing(missing)} and does not have {_listing(unexpected)}",
        hint="'espan-deploy inspect --networks' lists what is known; "
        "for a class of your own pass --network path/to/file.py:ClassName",
    )


def load_network(checkpoint: Checkpoint, **settings: Any) -> Network:
    """Detect, build and fill the network of a checkpoint, of several state dicts in it the one its authors use.

    What the catalogue does not know, spandrel may, where it is installed.
    settings: what shapes cannot tell, by the names that the network's ``build`` gives it (SPAN's ``img_range``).
    Raises UnknownNetworkError, or CheckpointError where keys, shapes or settings do not fit the network detected.
    """
    try:
        entry = detect_network(checkpoint.shapes)
    except UnknownNetworkError as exc:
        return _network_of_spandrel(checkpoint, settings, exc)
    if entry.weights is not None and entry.weights in checkpoint.others:
        checkpoint = checkpoint.under(entry.weights)
    build = import_module(entry.module).build
    known = set(signature(build).parameters) - {"shapes"}
    if unknown := sorted(settings.keys() - known):
        raise CheckpointError(
            f"{entry.title} has no setting {_listing(unknown)}", hint=f"it has {_listing(sorted(known))}"
        )
    try:
        architecture: Architecture = build(checkpoint.shapes, **settings)
    except (KeyError, IndexError, ValueError) as exc:
        raise CheckpointError(
            f"{checkpoint.path} looks like {entry.title}, but its shapes do not hold together ({exc!s})"
        ) from exc
    fill_module(architecture.module, checkpoint, entry.title, redundant=architecture.redundant)
    return Network(
        module=architecture.module,
        scale=architecture.scale,
        form=architecture.form,
        value_range=architecture.value_range,
        entry=entry,
        name=entry.name,
        title=entry.title,
        settings=settings,
    )


def _network_of_spandrel(checkpoint: Checkpoint, settings: Mapping[str, Any], unknown: UnknownNetworkError) -> Network:
    """The network of a checkpoint that the catalogue does not know, if spandrel does; else raises ``unknown``."""
    from espan_deploy.networks import spandrel

    found = spandrel.recognise(checkpoint) if spandrel.installed() else None
    if found is None:
        refuse_diffusion(checkpoint.shapes, str(checkpoint.path))
        if not spandrel.installed():
            unknown.hint += f"; forty more are known to spandrel: {spandrel.EXTRA}"
        raise unknown
    if settings:
        raise CheckpointError(f"{found.title} has no settings, and {_listing(sorted(settings))} was given")
    return Network(
        module=found.module,
        scale=found.scale,
        form="training",
        value_range=1.0,
        entry=None,
        name=found.name,
        title=found.title,
        multiple=found.multiple,
        least=found.least,
    )


def reference_network(entry: NetworkEntry) -> nn.Module:
    """The network as published, in deploy form, its weights random."""
    module: nn.Module = getattr(import_module(entry.module), entry.reference)()
    return module


def fill_module(
    module: nn.Module, checkpoint: Checkpoint, title: str, *, redundant: frozenset[str] = frozenset()
) -> None:
    """Load the checkpoint's tensors into a module, every key and shape matching, and set evaluation mode.

    redundant: keys of the checkpoint to leave out.
    Raises CheckpointError listing the first keys that are missing, unexpected or of another shape.
    """
    own: dict[str, Any] = module.state_dict()
    given = {key: tensor for key, tensor in checkpoint.tensors.items() if key not in redundant}
    given = _with_own_prefix(given, own, checkpoint.prefixes)
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint.path} does not fit {title}: it lacks {_listing(missing)}, "
            f"and {_listing(unexpected)} should not be there"
        )
    wrong = [key for key in own if own[key].shape != given[key].shape]
    if wrong:
        expected, got = (tuple(tensors[wrong[0]].shape) for tensors in (own, given))
        raise CheckpointError(
            f"{checkpoint.path} does not fit {title}: {len(wrong)} tensors have another shape, "
            f"first {wrong[0]}: expected {expected}, got {got}"
        )
    module.load_state_dict(given)
    module.eval()


def _with_own_prefix(given: dict[str, Any], own: Iterable[str], prefixes: tuple[str, ...]) -> dict[str, Any]:
    """The tensors under the module's own keys, where only a prefix that was stripped as a wrapper's keeps them apart.

    A user's class may well hold everything under ``self.model``.
    """
    names = set(own)
    for start in reversed(range(len(prefixes))):
        prefix = "".join(prefixes[start:])
        if names == {prefix + key for key in given}:
            return {prefix + key: tensor for key, tensor in given.items()}
    return given


def _nearest(shapes: Shapes) -> tuple[NetworkEntry, list[str], list[str]]:
    """The entry whose published form shares most keys with these, the keys it has besides, and those it lacks."""
    best: tuple[float, NetworkEntry, list[str], list[str]] | None = None
    given = set(shapes)
    for entry in NETWORKS:
        own = set(reference_network(entry).state_dict())
        overlap = len(given & own) / len(given | own)
        if best is None or overlap > best[0]:
            best = (overlap, entry, sorted(own - given), sorted(given - own))
    assert best is not None, "the catalogue is never empty"
    return best[1:]


def _listing(keys: list[str]) -> str:
    if not keys:
        return "nothing"
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return ", ".join(keys[:SHOWN_KEYS]) + more
