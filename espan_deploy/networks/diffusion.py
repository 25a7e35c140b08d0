"""Weights of diffusion models, which are no networks that enlarge an image: recognised so that they can be refused.

SNUCV's entry (NTIRE 2025, x4 track) ends in one, TSD-SR (Dong et al., arXiv 2411.18263), made of Stable Diffusion 3.
What that would need is written down in ``docs/networks.md``. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from espan_deploy.errors import CheckpointError

DIFFUSION = re.compile(
    r"(^|\.)(joint_blocks|single_transformer_blocks|diffusion_model|time_text_embed|time_embedding)\."
    r"|(^|\.)transformer_blocks\.\d+\.(attn\.(add_[qkv]_proj|to_add_out)|ff_context|norm1_context)\."
)
"""Layers that denoise, told a time step or a text: Stable Diffusion's, by its own names and by those of diffusers."""

ADAPTERS = re.compile(r"\.lora_([AB]|up|down|embedding_[AB])\.|\.lora\.(up|down)\.")
"""Low-rank additions to the weights of another network."""

AUTOENCODER = re.compile(r"(^|\.)(first_stage_model|(encoder|decoder)\.mid_block)\.")
"""What turns an image into latents and back."""

KINDS = (
    (ADAPTERS, "holds low-rank adapters (LoRA), which are additions to another network's weights"),
    (DIFFUSION, "holds a diffusion model, which denoises latents step by step, told the time step or a text"),
    (AUTOENCODER, "holds a latent autoencoder, which a diffusion model works between"),
)


def refuse_diffusion(keys: Iterable[str], name: str) -> None:
    """Raise CheckpointError where a state dict of these keys belongs to a diffusion model. name: of the file."""
    names = list(keys)
    for pattern, what in KINDS:
        found = next((key for key in names if pattern.search(key)), None)
        if found is not None:
            raise CheckpointError(
                f"{name} {what} ({found}); what can be exported is a network that enlarges an image in one call",
                hint="docs/networks.md says what SNUCV's second stage, TSD-SR, would need; its first is MambaIRv2",
            )
