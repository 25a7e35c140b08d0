"""Checkpoint file -> state dict, never running code from the file."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espan_deploy.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")

WRAPPERS = (
    *("params_ema", "params", "model_ema", "ema", "state_dict", "model_state_dict"),
    *("model", "net_g", "generator", "net", "network", "weights"),
)
"""Keys that training frameworks nest a state dict under, best first: averaged weights before raw ones."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net_g.", "generator.", "net.", "network.")
"""Prefixes that wrappers (DataParallel, torch.compile, Lightning) put before every key."""

REFUSED_OBJECT = re.compile(r"GLOBAL (\S+)")
"""How torch's restricted unpickler names the object it would not create."""

DAMAGE = (
    *(RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError),
    *(OSError, AttributeError, AssertionError, OverflowError, MemoryError, struct.error),
)
"""What torch and safetensors raise on a file whose bytes are wrong; a bug of ours cannot raise inside them."""


@dataclass(frozen=True)
class Checkpoint:
    """A state dict, and where it came from.

    tensors: by key, prefixes stripped; floating-point tensors are float32, on the CPU.
    nested_under: the keys the state dict was found under, outermost first.
    prefixes: what was stripped from every key, outermost first.
    others: state dicts that the file holds beside this one, by the key they are under, as they are in it.
    sha256: of the file's bytes, hexadecimal.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, Tensor]
    nested_under: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def under(self, key: str) -> Checkpoint:
        """The file's other state dict of this key. Raises CheckpointError as :func:`load_checkpoint` does."""
        tensors, deeper, others = _find_state_dict(self.others[key], self.path)
        return _cleaned(self.path, self.sha256, tensors, (*self.nested_under[:-1], key, *deeper), others)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor: all that detection looks at."""
        return {key: tuple(tensor.shape) for key, tensor in self.tensors.items()}


def load_checkpoint(path: Path, *, weights: str | None = None) -> Checkpoint:
    """Read a PyTorch or safetensors checkpoint.

    weights: the key of the state dict to read, where a file holds several; the result then knows of no others.
    Raises CheckpointError where the file is missing, damaged, not a checkpoint, holds objects other than
    tensors (they are never unpickled), holds weights that are not finite, or none under the key asked for.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, expected a checkpoint file ({' '.join(SUFFIXES)})")
    try:
        content = path.read_bytes()
    except FileNotFoundError as exc:
        raise CheckpointError(f"no such checkpoint: {path}", hint="check the path for a typing error") from exc
    except OSError as exc:
        raise CheckpointError(f"cannot read {path}: {exc.strerror}") from exc
    if not content:
        raise CheckpointError(f"{path} is empty", hint="download or copy it again")
    raw = _load_safetensors(content, path) if path.suffix == ".safetensors" else _load_torch(content, path)
    tensors, nested_under, others = _find_state_dict(raw, path)
    checkpoint = _cleaned(path, hashlib.sha256(content).hexdigest(), tensors, nested_under, others)
    if weights is None:
        return checkpoint
    if weights not in (*nested_under, *others):
        found = ", ".join((*nested_under[-1:], *others)) or "one state dict, not nested"
        raise CheckpointError(f"{path} has no weights under {weights}; it has {found}")
    return replace(checkpoint if weights in nested_under else checkpoint.under(weights), others={})


def _cleaned(
    path: Path,
    sha256: str,
    tensors: dict[str, Tensor],
    nested_under: tuple[str, ...],
    others: Mapping[str, Mapping[str, Any]],
) -> Checkpoint:
    tensors, prefixes = _strip_prefixes(tensors)
    _check_finite(tensors, path)
    floats = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    return Checkpoint(path, sha256, floats, nested_under, prefixes, others)


def _load_torch(content: bytes, path: Path) -> Any:
    import torch

    damaged = f"{path} is not a PyTorch checkpoint, or is damaged"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of odd pickle protocols before it fails on them
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        reason = str(exc)
        if named := REFUSED_OBJECT.search(reason):
            raise CheckpointError(
                f"{path} holds more than tensors ({named[1]}); loading it could run code, so it was refused",
                hint="save the bare state dict: torch.save(model.state_dict(), 'weights.pth')",
            ) from exc
        raise CheckpointError(f"{damaged}: expected a file that torch.save wrote", hint="download it again") from exc
    except DAMAGE as exc:
        first_line = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise CheckpointError(f"{damaged}: {first_line}", hint="download it again") from exc


def _load_safetensors(content: bytes, path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, *DAMAGE) as exc:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged: {exc}", hint="download it again"
        ) from exc


def _find_state_dict(raw: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...], dict[str, Mapping[str, Any]]]:
    """The best state dict, the keys it is nested under, and the mappings beside it under other such keys."""
    import torch

    nested_under: list[str] = []
    others: dict[str, Mapping[str, Any]] = {}
    while isinstance(raw, Mapping):
        wrappers = [key for key in WRAPPERS if isinstance(raw.get(key), Mapping)]
        if not wrappers:
            tensors = {str(key): value for key, value in raw.items() if isinstance(value, torch.Tensor)}
            if tensors:
                return tensors, tuple(nested_under), others
            break
        wrapper, *beside = wrappers
        nested_under.append(wrapper)
        others = {key: raw[key] for key in beside}
        raw = raw[wrapper]
    found = f"keys {', '.join(map(str, list(raw)[:5]))}" if isinstance(raw, Mapping) and raw else type(raw).__name__
    raise CheckpointError(
        f"{path} holds no state dict: expected tensors by name, bare or under params_ema, state_dict..., got {found}",
        hint="save it with torch.save(model.state_dict(), 'weights.pth')",
    )


def _strip_prefixes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    stripped: list[str] = []
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key[len(prefix) :]: tensor for key, tensor in tensors.items()}
        stripped.append(prefix)
    return tensors, tuple(stripped)


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    broken = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path} has weights that are not finite in {len(broken)} of {len(tensors)} tensors, first {broken[0]}",
            hint="the training diverged or the file is damaged; use an earlier checkpoint",
        )
