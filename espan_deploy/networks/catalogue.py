"""Every network we know, by lineage, in the order they are tried. Imports no torch: listing is instant.

Figures are the challenge reports' own: Ren et al., "The Tenth NTIRE 2025 Efficient Super-Resolution Challenge
Report" (table 1), and its successor of 2026. Where one network's keys are a special case of another's, the special
case comes first, and says by which shapes it is told apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from espan_deploy.networks import fourier, rlfn, safmn, scans, span, windows
from espan_deploy.networks.entry import NetworkEntry


@dataclass(frozen=True)
class Lineage:
    """Networks that share an ancestor and blocks: a folder of ``networks/``, which lists its own entries."""

    title: str
    entries: tuple[NetworkEntry, ...]

    @property
    def folder(self) -> str:
        """Its name in ``networks/``."""
        return self.entries[0].module.split(".")[-2]


LINEAGES: tuple[Lineage, ...] = (
    Lineage("SPAN: parameter-free attention", span.ENTRIES),
    Lineage("IMDN, RFDN, RLFN: feature distillation", rlfn.ENTRIES),
    Lineage("SAFMN: modulation", safmn.ENTRIES),
    Lineage("Fourier: filters of the spectrum", fourier.ENTRIES),
    Lineage("SwinIR and others: windows", windows.ENTRIES),
    Lineage("Mamba: selective scans", scans.ENTRIES),
)

NETWORKS: tuple[NetworkEntry, ...] = tuple(entry for lineage in LINEAGES for entry in lineage.entries)
