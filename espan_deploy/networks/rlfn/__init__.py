"""Feature distillation and what became of it: IMDN, RFDN, RLFN; convolutions with ESA or another pooled attention.

Liu et al., "Residual Feature Distillation Network for Lightweight Image Super-Resolution", ECCV workshops 2020; Kong et
al., "Residual Local Feature Network for Efficient Super-Resolution", CVPR workshops 2022.
"""

from __future__ import annotations

from espan_deploy.networks.entry import NetworkEntry, Published, Shapes, every, has_keys, lacks_keys

_RLFN = ("block_1.c1_r.", "block_1.c5.weight", "block_1.esa.conv1.weight", "conv_2.", "upsampler.0.")
_DIPNET = every(
    has_keys("conv_1.", *_RLFN),
    lacks_keys("conv_1.weight"),  # RepRLFN's, and that of RLFN itself, where nothing is re-parameterised
)
_EDGE_CELLS = has_keys("head.weight", "cells.0.conv2.rep_conv.weight", "local_fuse.0.weight", "tail.0.")


def _rep_rlfn_blocks(shapes: Shapes) -> bool:
    return any(key.startswith("block_1.c1_r.rbr_") for key in shapes)


ENTRIES: tuple[NetworkEntry, ...] = (
    NetworkEntry(
        name="dipnet-slim",
        title="DIPNet-slim",
        source="NTIRE 2025 efficient SR report, section 4.12, team ASR",
        module="espan_deploy.networks.rlfn.rlfn",
        detect=every(_DIPNET, has_keys("block_1.esa.conv_f.weight")),
        published=(Published("NTIRE 2025", "ASR", 26.90, 27.00, 12.924, 0.154, 9.06),),
    ),
    NetworkEntry(
        name="iesrnet",
        title="IESRNet",
        source="NTIRE 2025 efficient SR report, section 4.11, team IESR",
        module="espan_deploy.networks.rlfn.rlfn",
        reference="iesrnet",
        detect=every(_DIPNET, lacks_keys("block_1.esa.conv_f.weight")),
        published=(Published("NTIRE 2025", "IESR", 26.90, 26.99, 13.171, 0.143, 8.32),),
    ),
    NetworkEntry(
        name="errn2",
        title="ERRN2",
        source="NTIRE 2026 efficient SR report, section 4.14, team Just Try",
        module="espan_deploy.networks.rlfn.errn",
        detect=has_keys("conv_1.weight", "block_1.rep1.rep_conv.weight", "conv_2.weight", "upsampler.0.weight"),
        published=(Published("NTIRE 2026", "Just Try", 26.90, 27.01, 9.388, 0.246, 16.06),),
    ),
    NetworkEntry(
        name="rfdn-span",
        title="RFDN-SPAN",
        source="NTIRE 2026 efficient SR report, section 4.7, team IN2GM",
        module="espan_deploy.networks.rlfn.rfdn",
        detect=every(
            has_keys("fea_conv.weight", "B1.c1_d.weight", "B1.c5.weight", "LR_conv.weight", "upsampler.0.weight"),
            lacks_keys("B1.esa."),  # RFDN itself
        ),
        published=(Published("NTIRE 2026", "IN2GM", 26.91, 26.98, 16.640, 0.346, 22.60),),
    ),
    NetworkEntry(
        name="efdn",
        title="EFDN",
        source='Wang, "Edge-enhanced Feature Distillation Network for Efficient Super-Resolution", CVPRW 2022',
        module="espan_deploy.networks.rlfn.efdn",
        detect=every(_EDGE_CELLS, has_keys("cells.0.att.conv1.weight", "tail.0.weight")),
        published=(Published("NTIRE 2025", "Baseline", 26.93, 27.01, 22.183, 0.276, 16.7),),
    ),
    NetworkEntry(
        name="rep-rlfn",
        title="RepRLFN",
        source="NTIRE 2025 efficient SR report, section 4.21, team JNU620",
        module="espan_deploy.networks.rlfn.rlfn",
        reference="rep_rlfn",
        detect=every(has_keys("conv_1.weight", *_RLFN), _rep_rlfn_blocks),
        published=(Published("NTIRE 2025", "JNU620", 26.90, 27.01, 19.485, 0.325, 20.31),),
    ),
    NetworkEntry(
        name="arrlfn",
        title="AR-RLFN",
        source="NTIRE 2025 efficient SR report, section 4.34, team SylabSR",
        module="espan_deploy.networks.rlfn.arrlfn",
        detect=has_keys("conv1.weight", "blocks.0.RRRBs.0.", "blocks.0.esa.conv3.", "conv2.weight", "conv_up.weight"),
        published=(Published("NTIRE 2025", "SylabSR", 24.36, 24.46, 26.703, 0.072, 7.90),),
    ),
    NetworkEntry(
        name="rcunet",
        title="RCUNet",
        source="NTIRE 2025 efficient SR report, section 4.16, team Pixel Alchemists",
        module="espan_deploy.networks.rlfn.rcunet",
        detect=has_keys("conv_first.weight", "b1.conv4.weight", "b1.esa.conv1.weight", "conv_tail.weight"),
        published=(Published("NTIRE 2025", "Pixel Alchemists", 26.90, 27.01, 15.965, 0.213, 12.93),),
    ),
    NetworkEntry(
        name="eecnet",
        title="EECNet",
        source="NTIRE 2025 efficient SR report, section 4.15, team ChanSR",
        module="espan_deploy.networks.rlfn.eecnet",
        detect=has_keys("head.weight", "blocks.0.eec1.", "blocks.0.esa.conv1.weight", "conv1x1.weight", "tail.weight"),
        published=(Published("NTIRE 2025", "ChanSR", 26.92, 27.03, 16.165, 0.210, 11.59),),
    ),
    NetworkEntry(
        name="paedn",
        title="PAEDN",
        source="NTIRE 2025 efficient SR report, section 4.38, team IVL",
        module="espan_deploy.networks.rlfn.efdn",
        reference="paedn",
        detect=every(_EDGE_CELLS, has_keys("tail.0.rep_conv.weight"), lacks_keys("cells.0.att.")),
        published=(Published("NTIRE 2025", "IVL", 26.66, 26.76, 17.845, 0.240, 15.64),),
    ),
    NetworkEntry(
        name="eaglesr",
        title="EagleSR (BSRN)",
        source='NTIRE 2025 efficient SR, team EagleSR; Li et al., "Blueprint Separable Residual Network", CVPRW 2022',
        module="espan_deploy.networks.rlfn.bsrn",
        detect=has_keys("fea_conv.pw.weight", "B1.c1_r.pw.weight", "B1.esa.conv2.pw.weight", "B1.cca.", "c2.pw.weight"),
        published=(Published("NTIRE 2025", "EagleSR", 27.04, 27.16, 46.461, 0.352, 21.89),),
    ),
    NetworkEntry(
        name="depth-ibn",
        title="DepthIBN",
        source="NTIRE 2025 efficient SR report, section 4.36, team DepthIBN",
        module="espan_deploy.networks.rlfn.bsrn",
        reference="depth_ibn",
        detect=has_keys("fea_conv.pw.weight", "B1.c4.pw1.weight", "B1.cca.", "LR_conv.pw.weight"),
        published=(Published("NTIRE 2025", "DepthIBN", 26.56, 26.66, 38.015, 0.121, 7.71),),
    ),
    NetworkEntry(
        name="sepsrnet",
        title="SepSRNet",
        source="NTIRE 2025 efficient SR, team SVM",
        module="espan_deploy.networks.rlfn.sepsr",
        detect=has_keys("cnn.0.weight", "cnn.2.c1_r.0.weight", "cnn.2.conv_merge.weight", "anchor.net.weight"),
        published=(Published("NTIRE 2025", "SVM", 26.92, 27.04, 29.372, 0.251, 13.39),),
    ),
    NetworkEntry(
        name="fean",
        title="FEAN",
        source="NTIRE 2025 efficient SR report, section 4.37, team Cidaut AI",
        module="espan_deploy.networks.rlfn.fean",
        detect=has_keys("conv_init.weight", "eswrb.swt.kernel_x", "block_1.IRB1.DWConv1.weight", "upsampler.0.weight"),
        published=(Published("NTIRE 2025", "Cidaut AI", 26.86, 26.95, 26.097, 0.210, 12.83),),
    ),
)
