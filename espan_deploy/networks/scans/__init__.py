"""Selective scans: Mamba and MambaIR's descendants, which carry a state from pixel to pixel.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023.
"""

from __future__ import annotations

from espan_deploy.networks.entry import NetworkEntry, Published, has_keys

_LAYER = "layers.0.residual_group.layers.0"
_MAMBAIRV2 = has_keys(
    "conv_first.weight",
    f"{_LAYER}.win_mhsa.relative_position_bias_table",
    f"{_LAYER}.assm.selectiveScan.A_logs",
    f"{_LAYER}.assm.embeddingB.weight",
    "upsample.0.weight",
)

ENTRIES: tuple[NetworkEntry, ...] = (
    NetworkEntry(
        name="pfvm",
        title="PFVM",
        source="NTIRE 2025 efficient SR report, section 4.30, team GXZY AI",
        module="espan_deploy.networks.scans.pfvm",
        reference="pfvm",
        weights="params",
        detect=has_keys(
            "conv_first.weight",
            "layers.0.residual_group.blocks.0.self_attention.A_logs",
            "layers.0.residual_group.blocks.0.conv_blk.conv3x3.weight",
            "upsample.0.weight",
        ),
        published=(Published("NTIRE 2025", "GXZY AI", 27.01, 27.13, 101.013, 0.428, 25.88),),
    ),
    NetworkEntry(
        name="mambairv2",
        title="MambaIRv2",
        source="NTIRE 2025 efficient SR report, section 4.33, team Quantum Res",
        module="espan_deploy.networks.scans.mambairv2",
        reference="mambairv2",
        detect=_MAMBAIRV2,
        published=(Published("NTIRE 2025", "Quantum Res", 27.29, 27.40, 566.783, 0.790, 76.09),),
    ),
    NetworkEntry(
        name="dwmamba",
        title="DWMamba",
        source="NTIRE 2026 efficient SR report, section 4.10, team WMESR",
        module="espan_deploy.networks.scans.dwmamba",
        reference="dwmamba",
        detect=has_keys(
            "conv_first.weight",
            "layers.0.layers.0.ll_branch.assm.selectiveScan.A_logs",
            "layers.0.layers.0.skff.conv_du.0.weight",
            "upsample.0.weight",
        ),
        published=(Published("NTIRE 2026", "WMESR", 26.94, 27.06, 108.744, 0.674, 19.34),),
    ),
    NetworkEntry(
        name="spanmamba",
        title="SPANMamba",
        source="NTIRE 2026 efficient SR report, section 4.5, team CUIT HTT",
        module="espan_deploy.networks.scans.spanmamba",
        detect=has_keys("conv_1.", "block_1.c1_r.", "block_1.mamba_gate.mamba.A_log", "conv_cat.weight", "conv_2."),
        published=(Published("NTIRE 2026", "CUIT HTT", 26.90, 27.00, 38.670, 1.106, 33.40),),
    ),
)
