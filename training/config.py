"""A training run's settings, read from TOML (``training/configs``)."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from training.degrade import Degradations
from training.losses import LossWeights

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """One step of the recipe. The learning rate goes from the first to the last in half a cosine, or stays."""

    name: str
    iterations: int
    scale: int
    batch: int
    patch: int  # low-resolution pixels a side
    learning_rate: tuple[float, float]
    loss: LossWeights
    extra_blocks: int = 0
    student: bool = False
    warm_up: int = 0

    def rate(self, iteration: int) -> float:
        """The learning rate of iteration 0 .. iterations - 1."""
        first, last = self.learning_rate
        if iteration < self.warm_up:
            return first * (iteration + 1) / self.warm_up
        done = (iteration - self.warm_up) / max(1, self.iterations - self.warm_up)
        return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Config:
    """Everything that decides what weights come out, photographs aside."""

    stages: tuple[Stage, ...]
    seed: int = 0
    precision: str = "bfloat16"
    optimizer: str = "adamw"  # or muon, for the kernels; biases stay with AdamW
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    branch_rate: float = 1.0  # learning rate of the 1x1s and chains, as a part of the kxk's; 0 keeps them as they are
    compiled: bool = False  # torch.compile the network: a C++ compiler is needed
    gradient_clip: float = 1.0
    ema: float = 0.999
    excess: float = 0.0  # weight of what activations of single crops grow beyond the others' (training/network.py)
    long_side: int = 1500
    detail_power: float = 0.5
    drawn_share: float = 0.0  # of the crops, those drawn by training/drawings.py
    degradations: Degradations | None = None  # of the low-resolution side; None: bicubic and no more
    hold_out_every: int = 20
    validation_side: int = 64
    report_every: int = 500
    checkpoint_every: int = 1000

    @property
    def iterations(self) -> int:
        """Of all stages together."""
        return sum(stage.iterations for stage in self.stages)

    def stage_at(self, iteration: int) -> tuple[int, int]:
        """Index of the stage which global iteration belongs to, and the iteration within it."""
        for index, stage in enumerate(self.stages):
            if iteration < stage.iterations:
                return index, iteration
            iteration -= stage.iterations
        raise IndexError("past the last stage")


def read_config(path: Path) -> Config:
    """Raises ValueError for a key that does not exist, and for an optimizer that is none."""
    document = tomllib.loads(path.read_text())
    stages = []
    for entry in document.pop("stage"):
        entry["loss"] = _from_table(LossWeights, entry["loss"], f"{path.name}: loss of stage {entry.get('name')}")
        entry["learning_rate"] = tuple(entry["learning_rate"])
        stages.append(_from_table(Stage, entry, f"{path.name}: stage {entry.get('name')}"))
    if "betas" in document:
        document["betas"] = tuple(document["betas"])
    if "degradations" in document:
        table = {key: tuple(v) if isinstance(v, list) else v for key, v in document["degradations"].items()}
        document["degradations"] = _from_table(Degradations, table, f"{path.name}: degradations")
    config = _from_table(Config, {**document, "stages": tuple(stages)}, path.name)
    if config.optimizer not in ("adamw", "muon"):
        raise ValueError(f"{path.name}: optimizer is adamw or muon, not {config.optimizer!r}")
    return config


def _from_table(kind: type[T], table: dict[str, Any], where: str) -> T:
    unknown = set(table) - {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"{where}: unknown keys {', '.join(sorted(unknown))}")
    return kind(**table)
