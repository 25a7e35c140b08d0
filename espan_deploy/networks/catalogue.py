"""Every network we know, in the order they are tried. Imports no torch: listing is instant.

Figures are the challenge reports' own: Ren et al., "The Tenth NTIRE 2025 Efficient Super-Resolution Challenge
Report" (table 1), and its successor of 2026.
"""

from __future__ import annotations

from espan_deploy.networks.entry import NetworkEntry, Published, has_keys

NETWORKS: tuple[NetworkEntry, ...] = (
    NetworkEntry(
        name="espan",
        title="ESPAN",
        source="NTIRE 2025 efficient SR, team mbga, factsheet",
        module="espan_deploy.networks.espan",
        detect=has_keys("conv_1.", "block_1.c1_r.", "teacher_block_seq.", "tea_conv_cat.weight"),
        published=(Published("NTIRE 2025", "mbga", 26.90, 27.00, 9.515, 0.192, 12.56),),
    ),
)
