"""Networks that filter the image's spectrum between their convolutions.

Every output pixel depends on every input pixel, so they cannot be tiled exactly, and the spectrum's resolution is the
image's: what they were trained on at one size is another filter at the next.
"""

from __future__ import annotations

from espan_deploy.networks.entry import NetworkEntry, Published, has_keys

ENTRIES: tuple[NetworkEntry, ...] = (
    NetworkEntry(
        name="fsanet",
        title="FSANet",
        source="NTIRE 2025 efficient SR report, section 4.29, team CUIT_HTTP",
        module="espan_deploy.networks.fourier.fsanet",
        detect=has_keys("first_conv.pw.weight", "body.0.c1r.", "body.0.dfab.conv2.biasw", "upsampler.0.weight"),
        weights="params",
        published=(Published("NTIRE 2025", "CUIT_HTTP", 27.09, 27.20, 60.572, 0.309, 19.75),),
    ),
    NetworkEntry(
        name="sfnet",
        title="SFNet",
        source="NTIRE 2025 efficient SR report, section 4.35, team NJUPCA",
        module="espan_deploy.networks.fourier.sfnet",
        detect=has_keys("conv_1.", "block_1.c1_r.", "freblock_1.fdc.weight", "conv_cat.weight", "upsampler.0.weight"),
        published=(Published("NTIRE 2025", "NJUPCA", 26.70, 26.80, 61.567, 2.308, 30.11),),
    ),
)
