"""What a fold did, site by site, and what it left and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class FoldSite:
    """A region that became cheaper.

    path: the module in the network. convolutions, nodes, multiply_adds (for one position of the feature map):
    before and after. kernels: the kernel of each convolution now there, groups and dilation if any.
    error_inside, error_border: against the region itself in float64, relative to its largest value.
    exact: False only where borders were folded approximately, because that was asked for.
    """

    path: str
    convolutions_before: int
    convolutions_after: int
    nodes_before: int
    nodes_after: int
    multiply_adds_before: int
    multiply_adds_after: int
    kernels: tuple[str, ...]
    error_inside: float
    error_border: float
    exact: bool


@dataclass(frozen=True)
class Refusal:
    """A place where convolutions meet that was not folded. path: the module. reason: why not."""

    path: str
    reason: str


@dataclass(frozen=True)
class FoldReport:
    """All sites and refusals of one fold."""

    sites: tuple[FoldSite, ...]
    refusals: tuple[Refusal, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, nothing rounded."""
        return {"sites": [asdict(site) for site in self.sites], "refusals": [asdict(r) for r in self.refusals]}
