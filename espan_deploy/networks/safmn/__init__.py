"""Modulation: a pixel's features are multiplied by what a coarse grid, the variance or large kernels say of its place.

Sun et al., "Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution", ICCV 2023, and what the
challenges made of it.
"""

from __future__ import annotations

from espan_deploy.networks.entry import NetworkEntry, Published, every, has_keys, lacks_keys

_DAN = has_keys(
    "to_feat.weight",
    "B1.local_handle.dwconv1.0.weight",
    "B1.channel_attn.global_channel.temperature",
    "to_img.0.weight",
)

ENTRIES: tuple[NetworkEntry, ...] = (
    NetworkEntry(
        name="safmnv3",
        title="SAFMNv3",
        source="NTIRE 2025 efficient SR report, section 4.13, team VPEG_O",
        module="espan_deploy.networks.safmn.safmnv3",
        detect=has_keys(
            "to_feat.weight", "feats.0.conv1.conv3.weight", "feats.0.conv1.dwconv.weight", "to_img.0.weight"
        ),
        published=(Published("NTIRE 2025", "VPEG_O", 26.90, 26.99, 15.141, 0.145, 9.42),),
    ),
    NetworkEntry(
        name="frnet",
        title="FRNet",
        source="NTIRE 2025 efficient SR report, section 4.14, team mmSR (FAnet there)",
        module="espan_deploy.networks.safmn.safmnv3",
        reference="frnet",
        detect=every(
            has_keys("to_feat.weight", "feats.0.conv1.dwconv.weight", "feats.0.conv2.conv1.weight", "to_img.0.weight"),
            lambda shapes: "feats.0.conv1.conv5_proj.weight" in shapes or "feats.0.conv1.conv_fuse2.weight" in shapes,
        ),
        published=(Published("NTIRE 2025", "mmSR", 26.95, 27.05, 13.243, 0.212, 13.85),),
    ),
    NetworkEntry(
        name="expand-rep-net",
        title="ExpandRepNet",
        source="NTIRE 2025 efficient SR challenge, team MiSR (its code; the report has no section on it)",
        module="espan_deploy.networks.safmn.safmnv3",
        reference="expand_rep_net",
        detect=has_keys("to_feat.eval_conv.weight", "feats.0.conv1.proj.eval_conv.weight", "to_img.0.eval_conv.weight"),
        published=(Published("NTIRE 2025", "MiSR", 26.90, 27.02, 16.022, 0.213, 13.86),),
    ),
    NetworkEntry(
        name="safmn",
        title="SAFMN",
        source="NTIRE 2026 efficient SR report, section 4.15, team MDAP",
        module="espan_deploy.networks.safmn.safmn",
        detect=has_keys(
            "to_feat.weight", "blocks.0.norm1.norm.weight", "blocks.0.safm.mfr.0.weight", "upsampler.0.weight"
        ),
        published=(Published("NTIRE 2026", "MDAP", 26.80, 26.91, 129.702, 0.149, 9.62),),
    ),
    NetworkEntry(
        name="dan",
        title="DAN",
        source="NTIRE 2025 efficient SR report, section 4.6, team VPEG_C",
        module="espan_deploy.networks.safmn.dan",
        detect=every(_DAN, lacks_keys("alpha_5")),
        published=(Published("NTIRE 2025", "VPEG_C", 26.90, 27.00, 50.498, 0.044, 3.13),),
    ),
    NetworkEntry(
        name="zenosr",
        title="ZenoSR",
        source="NTIRE 2026 efficient SR report, section 4.4, team ZenoSR",
        module="espan_deploy.networks.safmn.dan",
        reference="zeno_sr",
        detect=every(_DAN, has_keys("alpha_5")),
        published=(Published("NTIRE 2026", "ZenoSR", 26.90, 27.01, 48.144, 0.038, 2.68),),
    ),
    NetworkEntry(
        name="vscinet",
        title="VSCINet",
        source="NTIRE 2026 efficient SR report, section 4.9, team XuptSR",
        module="espan_deploy.networks.safmn.vscinet",
        detect=has_keys(
            "to_feat.weight", "B1.c1_r.dwc.conv2_1.weight", "B1.spatial_attn.alpha", "fuse.2.dwc.conv2_1.weight"
        ),
        published=(Published("NTIRE 2026", "XuptSR", 26.90, 27.03, 51.492, 0.051, 3.30),),
    ),
    NetworkEntry(
        name="mvfmnet",
        title="MVFMNet",
        source="NTIRE 2025 efficient SR report, section 4.26, team MILA",
        module="espan_deploy.networks.safmn.mvfmnet",
        detect=has_keys(
            "to_feat.weight", "feats.0.mvfmb.sa1.dw_conv.weight", "feats.0.pixel_norm.weight", "to_img.0.weight"
        ),
        published=(Published("NTIRE 2025", "MILA", 26.90, 27.02, 43.198, 0.087, 4.93),),
    ),
    NetworkEntry(
        name="moasr",
        title="MoASR",
        source="NTIRE 2025 efficient SR report, section 4.27, team AiMF_SR",
        module="espan_deploy.networks.safmn.moasr",
        detect=has_keys(
            "shallow.weight",
            "feature_extractor.0.spatial.block.moe.experts.0.linear1.weight",
            "feature_extractor.0.depth.block1.conv.0.weight",
            "upsampler.0.weight",
        ),
        published=(Published("NTIRE 2025", "AiMF_SR", 26.98, 27.10, 44.843, 0.180, 9.48),),
    ),
    NetworkEntry(
        name="maan",
        title="MAAN",
        source="NTIRE 2025 efficient SR report, section 4.25, team MegastudyEdu Vision AI",
        module="espan_deploy.networks.safmn.maan",
        detect=has_keys(
            "conv_first.weight", "layers.0.blocks.0.attn.a.2.dwconv_LSKA_11.0.weight", "conv_after_body.att.0.weight"
        ),
        published=(Published("NTIRE 2025", "MegastudyEdu Vision AI", 27.01, 27.13, 38.452, 0.169, 10.63),),
    ),
    NetworkEntry(
        name="sgsdn",
        title="SGSDN",
        source="NTIRE 2025 efficient SR report, section 4.23, team YG",
        module="espan_deploy.networks.safmn.sgsdn",
        detect=has_keys(
            "fea_conv.weight", "feats.0.VA1.LKA35.0.weight", "feats.0.VSD.conv_0.weight", "upsampler.0.weight"
        ),
        published=(Published("NTIRE 2025", "YG", 26.92, 27.04, 32.636, 0.093, 5.82),),
    ),
    NetworkEntry(
        name="amcanet",
        title="AMCANet",
        source="NTIRE 2026 efficient SR report, section 4.12, team XSR",
        module="espan_deploy.networks.safmn.amcanet",
        detect=has_keys(
            "head.weight", "blocks.0.amca.heads.0.conv3x3_v.weight", "blocks.0.fsg.conv1x1_1.weight", "tail.weight"
        ),
        published=(Published("NTIRE 2026", "XSR", 26.90, 27.02, 18.348, 0.086, 5.24),),
    ),
    NetworkEntry(
        name="hfenet",
        title="HFENet",
        source="NTIRE 2026 efficient SR report, section 4.8, team Sunflower",
        module="espan_deploy.networks.safmn.hfenet",
        detect=has_keys(
            "simple_encoder.weight", "pipeline.0.slkab.slka.conv3_7.weight", "pipeline.0.eab.attn.conv1.weight"
        ),
        published=(Published("NTIRE 2026", "Sunflower", 26.92, 27.03, 33.734, 0.144, 8.91),),
    ),
    NetworkEntry(
        name="fmdn",
        title="FMDN",
        source="NTIRE 2025 efficient SR report, section 4.7, team XUPTBoys",
        module="espan_deploy.networks.safmn.fmdn",
        detect=has_keys(
            "fea_conv.weight", "B1.c1_r.conv2_4.0.weight", "B1.esa.body.0.conv2_1.pw.weight", "c2.pw.weight"
        ),
        published=(Published("NTIRE 2025", "XUPTBoys", 26.91, 27.03, 42.788, 0.072, 3.39),),
    ),
    NetworkEntry(
        name="hannahsr",
        title="HannahSR",
        source="NTIRE 2025 efficient SR report, section 4.8, team HannahSR",
        module="espan_deploy.networks.safmn.hannahsr",
        detect=has_keys(
            "fea_conv.eval_conv.weight", "B1.esa.body.0.conv_f_3.eval_conv.weight", "B1.ea.restormer_attn.temperature"
        ),
        published=(Published("NTIRE 2025", "HannahSR", 26.90, 27.02, 49.854, 0.060, 3.75),),
    ),
)
