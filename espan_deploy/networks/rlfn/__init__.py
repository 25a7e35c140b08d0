"""Feature distillation and what became of it: IMDN, RFDN, RLFN; convolutions with ESA or another pooled attention.

Liu et al., "Residual Feature Distillation Network for Lightweight Image Super-Resolution", ECCV workshops 2020; Kong et
al., "Residual Local Feature Network for Efficient Super-Resolution", CVPR workshops 2022.
"""

from __future__ import annotations

from espan_deploy.networks.entry import NetworkEntry, Published, every, has_keys, lacks_keys

_DIPNET = every(
    has_keys("conv_1.", "block_1.c1_r.", "block_1.c5.weight", "block_1.esa.conv1.weight", "conv_2.", "upsampler.0."),
    lacks_keys("conv_1.weight", "block_1.c1_r.weight"),  # those are RLFN's, where nothing is re-parameterised
)

ENTRIES: tuple[NetworkEntry, ...] = (
    NetworkEntry(
        name="dipnet-slim",
        title="DIPNet-slim",
        source="NTIRE 2025 efficient SR report, section 4.12, team ASR",
        module="espan_deploy.networks.rlfn.dipnet",
        detect=every(_DIPNET, has_keys("block_1.esa.conv_f.weight")),
        published=(Published("NTIRE 2025", "ASR", 26.90, 27.00, 12.924, 0.154, 9.06),),
    ),
    NetworkEntry(
        name="iesrnet",
        title="IESRNet",
        source="NTIRE 2025 efficient SR report, section 4.11, team IESR",
        module="espan_deploy.networks.rlfn.dipnet",
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
        detect=has_keys("head.weight", "cells.0.conv2.rep_conv.weight", "local_fuse.0.weight", "tail.0.weight"),
        published=(Published("NTIRE 2025", "Baseline", 26.93, 27.01, 22.183, 0.276, 16.7),),
    ),
)
