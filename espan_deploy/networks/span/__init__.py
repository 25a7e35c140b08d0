"""SPAN and what grew from it: a chain of blocks with parameter-free attention, joined once by a 1x1 at the end.

Wan et al., "Swift Parameter-free Attention Network for Efficient Super-Resolution", CVPR workshops 2024.
"""

from __future__ import annotations

from espan_deploy.networks.entry import NetworkEntry, Published, Shapes, conv_shape, every, has_keys, lacks_keys

_SPAN = every(
    has_keys("conv_1.", "block_1.c1_r.", "block_2.c3_r.", "conv_cat.weight", "conv_2.", "upsampler.0.weight"),
    lacks_keys("conv_1.weight", "block_1.esa.", "block_1.gct1.", "block_1.mamba_gate.", "freblock_1."),
)
_SPANF = has_keys("conv_near.weight", "block_1.c1_r.", "block_2.c3_r.", "conv_cat.weight", "conv_2.")


def _span_pruned(shapes: Shapes) -> bool:
    fused, joined = shapes["conv_cat.weight"][:2]
    return 4 * fused < joined


def _spanf_pruned(shapes: Shapes) -> bool:
    return shapes["conv_cat.weight"][0] < conv_shape(shapes, "block_1.c1_r")[0]


def _dscf_width_or_lora(shapes: Shapes) -> bool:
    return conv_shape(shapes, "conv_1")[0] == 26 or "conv_2.eval_conv.lora_A" in shapes


ENTRIES: tuple[NetworkEntry, ...] = (
    NetworkEntry(
        name="espan",
        title="ESPAN",
        source="NTIRE 2025 efficient SR, team mbga, factsheet",
        module="espan_deploy.networks.span.espan",
        detect=has_keys("conv_1.", "block_1.c1_r.", "teacher_block_seq.", "tea_conv_cat.weight"),
        published=(Published("NTIRE 2025", "mbga", 26.90, 27.00, 9.515, 0.192, 12.56),),
    ),
    NetworkEntry(
        name="esrnet",
        title="ESRNet",
        source="NTIRE 2025 efficient SR report, section 4.10, team Rochester",
        module="espan_deploy.networks.span.span",
        reference="esrnet",
        detect=every(_SPAN, has_keys("block_7.c1_r."), lacks_keys("block_7.c2_r.")),
        published=(Published("NTIRE 2025", "Rochester", 26.94, 27.01, 11.194, 0.158, 10.30),),
    ),
    NetworkEntry(
        name="span-pruned",
        title="SPAN with a pruned tail",
        source="NTIRE 2025 efficient SR report, section 4.9, teams Davinci and SRCB (one checkpoint)",
        module="espan_deploy.networks.span.span",
        reference="pruned",
        detect=every(_SPAN, _span_pruned),
        published=(
            Published("NTIRE 2025", "Davinci", 26.92, 27.00, 10.651, 0.146, 9.55),
            Published("NTIRE 2025", "SRCB", 26.92, 27.00, 10.686, 0.146, 9.55),
        ),
    ),
    NetworkEntry(
        name="dscf",
        title="DSCF",
        source="NTIRE 2025 efficient SR report, section 4.1, team EMSR",
        module="espan_deploy.networks.span.dscf",
        detect=every(_SPAN, _dscf_width_or_lora),
        published=(Published("NTIRE 2025", "EMSR", 26.92, 26.99, 9.994, 0.131, 8.54),),
    ),
    NetworkEntry(
        name="span",
        title="SPAN",
        source='Wan et al., "Swift Parameter-free Attention Network for Efficient Super-Resolution", CVPRW 2024',
        module="espan_deploy.networks.span.span",
        detect=_SPAN,
        published=(
            Published("NTIRE 2025", "LVGroup_HFUT", 26.96, 27.07, 15.635, 0.426, 27.87),
            Published("NTIRE 2026", "EfficientSR Organizers", 26.94, 27.01, 7.650, 0.151, 9.83),
        ),
    ),
    NetworkEntry(
        name="dscf-fused",
        title="DSCF_Fused",
        source="NTIRE 2026 efficient SR report, section 4.11, team VARH-AI",
        module="espan_deploy.networks.span.dscf",
        reference="fused",
        detect=has_keys("conv_1.", "conv_fused.weight", "conv_cat_other.weight", "conv2_fused.weight"),
        published=(Published("NTIRE 2026", "VARH-AI", 26.92, 26.99, 7.892, 0.126, 8.22),),
    ),
    NetworkEntry(
        name="pds",
        title="PDS",
        source="NTIRE 2026 efficient SR report, section 4.2, team BOE AIoT",
        module="espan_deploy.networks.span.spanf",
        reference="pds",
        detect=has_keys("conv_near.weight", "block_1.c1_r.", "conv_cat_1.weight", "conv_2_1."),
        published=(Published("NTIRE 2026", "BOE AIoT", 26.90, 26.99, 6.724, 0.142, 9.25),),
    ),
    NetworkEntry(
        name="pkdsr",
        title="PKDSR",
        source="NTIRE 2026 efficient SR report, section 4.3, team PKDSR",
        module="espan_deploy.networks.span.spanf",
        reference="pkdsr",
        detect=every(_SPANF, _spanf_pruned),
        published=(Published("NTIRE 2026", "PKDSR", 26.91, 27.00, 6.758, 0.144, 9.40),),
    ),
    NetworkEntry(
        name="spanf",
        title="SPANF",
        source="NTIRE 2025 efficient SR report, section 4.2, team XiaomiMM",
        module="espan_deploy.networks.span.spanf",
        detect=_SPANF,
        published=(Published("NTIRE 2025", "XiaomiMM", 26.92, 27.00, 9.545, 0.148, 9.68),),
    ),
    NetworkEntry(
        name="spanv2",
        title="SPANV2",
        source="NTIRE 2026 efficient SR report, section 4.1, team XiaomiMM",
        module="espan_deploy.networks.span.spanv2",
        detect=has_keys("conv_near.weight", "block_1.c1.conv.weight", "block_2.guidance_map_conv.weight"),
        published=(Published("NTIRE 2026", "XiaomiMM", 26.92, 27.00, 5.256, 0.139, 9.11),),
    ),
    NetworkEntry(
        name="tsr",
        title="TSR",
        source="NTIRE 2025 efficient SR report, section 4.3, team ShannonLab",
        module="espan_deploy.networks.span.tsr",
        detect=has_keys("blocks.0._extern_conv_block.0.eval_conv.weight", "conv_2.eval_conv.weight"),
        published=(Published("NTIRE 2025", "ShannonLab", 26.90, 27.00, 8.620, 0.172, 11.23),),
    ),
    NetworkEntry(
        name="tssr",
        title="TSSR / DISP",
        source="NTIRE 2025 efficient SR report, section 4.4, and 2026, section 4.13: one graph, other weights",
        module="espan_deploy.networks.span.tsr",
        reference="tssr",
        detect=has_keys("blocks.0._extern_conv_block.0.eval_conv.weight", "conv_2.weight"),
        published=(
            Published("NTIRE 2025", "TSSR", 26.90, 27.02, 9.355, 0.164, 10.69),
            Published("NTIRE 2026", "DISP", 26.90, 27.02, 6.444, 0.164, 10.69),
        ),
    ),
    NetworkEntry(
        name="nanosr",
        title="NanoSR",
        source="NTIRE 2025 efficient SR, team NanoSR, factsheet",
        module="espan_deploy.networks.span.nanosr",
        detect=has_keys("conv_1.", "block_1.feature_extractor.", "block_1.pixel_attention.", "conv_cat.weight"),
        published=(Published("NTIRE 2025", "NanoSR", 26.97, 27.08, 17.115, 0.551, 36.02),),
    ),
    NetworkEntry(
        name="tdesr",
        title="TDESR",
        source="NTIRE 2025 efficient SR report, section 4.17, team LZ",
        module="espan_deploy.networks.span.tdesr",
        detect=has_keys("head.weight", "body.0.td_1.0.weight", "body.0.td_3.1.weight", "fuse.weight", "tail.0.weight"),
        published=(Published("NTIRE 2025", "LZ", 26.90, 27.01, 16.215, 0.252, 16.42),),
    ),
    NetworkEntry(
        name="teninonesr",
        title="TenInOneSR",
        source="NTIRE 2025 efficient SR report, section 4.19, team TACO_SR",
        module="espan_deploy.networks.span.teninone",
        detect=has_keys("conv_1.", "blocks.0.c1_r.", "blocks.0.attn.body.0.weight", "conv_cat.weight", "tail."),
        published=(Published("NTIRE 2025", "TACO_SR", 26.94, 27.05, 16.740, 0.342, 20.03),),
    ),
    NetworkEntry(
        name="ecas",
        title="ECAS",
        source="NTIRE 2025 efficient SR report, section 4.20, team AIOT_AI",
        module="espan_deploy.networks.span.ecas",
        detect=has_keys("conv_1.eval_conv.weight", "block_1.gct1.alpha", "conv_cat.weight", "conv.weight"),
        published=(Published("NTIRE 2025", "AIOT_AI", 26.90, 27.00, 18.997, 0.301, 19.56),),
    ),
    NetworkEntry(
        name="glorenet",
        title="GLoReNet",
        source="NTIRE 2025 efficient SR report, section 4.18, team Z6",
        module="espan_deploy.networks.span.glorenet",
        detect=has_keys("head.conv3x3.weight", "backbone_span.0.0.c1_r.", "backbone_esa.0.2.conv1.weight"),
        published=(Published("NTIRE 2025", "Z6", 26.90, 26.99, 18.273, 0.303, 18.70),),
    ),
)
