"""Attention and correlation in windows: SwinIR's descendants and others that look at a window at a time."""

from __future__ import annotations

from espan_deploy.networks.entry import NetworkEntry, Published, every, has_keys, lacks_keys

_BLOCK = "layers.0.residual_group.blocks.0"
_HIT = has_keys(
    "conv_first.weight", f"{_BLOCK}.correlation.qv.conv.0.weight", "conv_after_body.weight", "upsample.0.weight"
)

ENTRIES: tuple[NetworkEntry, ...] = (
    NetworkEntry(
        name="hit-srf",
        title="HiT-SRF",
        source="NTIRE 2025 efficient SR report, section 4.31, team IPCV",
        module="espan_deploy.networks.windows.hitsr",
        reference="hit_srf",
        detect=every(_HIT, has_keys(f"{_BLOCK}.correlation.spatial_linear.weight")),
        published=(Published("NTIRE 2025", "IPCV", 27.27, 27.40, 362.096, 0.866, 65.66),),
    ),
    NetworkEntry(
        name="bvi-srf",
        title="BVI-SRF",
        source="NTIRE 2025 efficient SR report, section 4.28, team BVIVSR",
        module="espan_deploy.networks.windows.hitsr",
        reference="bvi_srf",
        detect=every(_HIT, has_keys("layers.0.residual_group.convs.weight"), lacks_keys(f"{_BLOCK}.correlation.pos.")),
        published=(Published("NTIRE 2025", "BVIVSR", 26.97, 26.99, 48.143, 0.155, 10.79),),
    ),
    NetworkEntry(
        name="partial-srformer",
        title="ParticalSRFormer3",
        source="NTIRE 2025 efficient SR report, section 4.32, team X-L",
        module="espan_deploy.networks.windows.srformer",
        detect=has_keys(
            "conv_first.weight",
            "layers1.residual_group.blocks.0.attn.kv.weight",
            "layers1.residual_group.blocks.0.attn.relative_position_bias_table",
            "upsample.0.weight",
        ),
        published=(Published("NTIRE 2025", "X-L", 27.07, 27.21, 502.656, 0.966, 70.83),),
    ),
    NetworkEntry(
        name="scmsr",
        title="SCMSR",
        source="NTIRE 2025 efficient SR report, table 1, team SCMSR",
        module="espan_deploy.networks.windows.scmsr",
        detect=has_keys(
            "head.weight", "global_predictor.0.weight", "body.0.body.0.mixer.route.out_mask.0.weight", "tail.0.weight"
        ),
        published=(Published("NTIRE 2025", "SCMSR", 26.92, 27.00, 123.977, 0.393, 17.62),),
    ),
    NetworkEntry(
        name="haesr",
        title="HAESR",
        source="NTIRE 2026 efficient SR report, section 4.6, team HAESR",
        module="espan_deploy.networks.windows.haesr",
        detect=has_keys(
            "input.weight",
            "block0.residual_layer.0.SLA1.attn.rel_pos_bias",
            "block0.residual_layer.0.SGA1.attn.extra_pos_bias",
            "block0.esa.conv1.weight",
            "up.0.weight",
        ),
        published=(Published("NTIRE 2026", "HAESR", 27.08, 27.22, 86.132, 0.353, 26.61),),
    ),
)
