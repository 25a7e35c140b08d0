"""The checkpoints that are shipped."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import ROOT, picture
from safetensors.torch import load_file

from espan_deploy.networks.span.espan import ESPAN
from training.degrade import jpeg
from training.evaluate import deploy_form, folder_pairs, mean_psnr_y, psnr_y, upscale
from training.merge import rep_convs
from training.table import bicubic

EXACT = 1e-12
"""float64, relative to the largest activation on the way (about 1e2)."""
LEAST_DB = {
    "clean": {"Set5": {None: 31.45}, "Set14": {None: 28.12}},
    "camera": {"Set5": {90: 30.11}, "Set14": {None: 27.74, 90: 27.36, 70: 26.16}},
    "photo": {"Set5": {None: 30.64, 50: 27.67}, "Set14": {None: 27.62, 50: 25.57, 30: 25.04}},
}
"""By JPEG quality of the input: what each was measured at less its last digit, to guard against shipping another."""
OVERSHOOT = {"noise": 0.5, "checkerboard": 0.5, "stripes": 0.5}
"""How far outside [0, 1] black and white pixels may ring before clipping."""
FLAT = 0.02
"""How far off a flat image's middle may be: five grey levels."""


@pytest.fixture(scope="module", params=["clean", "camera", "photo"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def espan(name: str) -> ESPAN:
    espan = ESPAN(training_form=True)
    espan.load_state_dict(load_file(ROOT / "training" / "checkpoints" / f"{name}.safetensors"))
    return espan.double().eval()


@torch.no_grad()
def test_folds_exactly_border_included(espan: ESPAN) -> None:
    image = torch.from_numpy(picture(24, 31, seed=2)).permute(2, 0, 1)[None].double() / 255
    difference = (deploy_form(espan)(image) - espan(image)).abs()
    assert difference.max() < EXACT
    ring = torch.ones_like(difference, dtype=torch.bool)
    ring[..., 4:-4, 4:-4] = False
    assert difference[ring].max() < EXACT


def test_every_branch_was_trained(espan: ESPAN) -> None:
    for module in rep_convs(espan).values():
        assert all(parameter.any() for parameter in module.parameters())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["noise", "checkerboard", "stripes"])
def test_hostile_images_stay_finite(espan: ESPAN, kind: str) -> None:
    rows, columns = np.indices((48, 48))
    image = {
        "noise": np.random.default_rng(0).integers(0, 2, (48, 48)),
        "checkerboard": (rows + columns) % 2,
        "stripes": columns % 2,
    }[kind]
    y = deploy_form(espan)(torch.from_numpy(image).double().expand(1, 3, -1, -1))
    assert torch.isfinite(y).all()
    assert (y - y.clamp(0, 1)).abs().max() < OVERSHOOT[kind]


@torch.no_grad()
@pytest.mark.parametrize("colour", [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0.1, 0.6, 0.9)])
def test_flat_colour_stays_flat(espan: ESPAN, colour: tuple[float, float, float]) -> None:
    flat = torch.tensor(colour, dtype=torch.float64).view(1, 3, 1, 1)
    y = deploy_form(espan)(flat.expand(-1, -1, 56, 56))
    assert (y - flat)[..., 96:-96, 96:-96].abs().max() < FLAT


@pytest.mark.shared
@pytest.mark.parametrize("group", ["Set5", "Set14"])
def test_reaches_its_figures(espan: ESPAN, shared: Path, name: str, group: str) -> None:
    pairs = list(folder_pairs(shared / f"images/{group}/LR", shared / f"images/{group}/HR"))
    network = deploy_form(espan).float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for quality, least in LEAST_DB[name][group].items():
        spoiled = pairs if quality is None else [(title, jpeg(low, quality), high) for title, low, high in pairs]
        assert mean_psnr_y(network, spoiled) >= least, quality


@pytest.mark.shared
def test_photo_is_better_than_bicubic_on_every_jpeg(shared: Path) -> None:
    """No picture of a set may come out worse than interpolation makes it, not only their mean."""
    espan = ESPAN(training_form=True)
    espan.load_state_dict(load_file(ROOT / "training" / "checkpoints" / "photo.safetensors"))
    network = deploy_form(espan)
    for title, low, high in folder_pairs(shared / "images/Set5/LR", shared / "images/Set5/HR"):
        for quality in (90, 50, 30):
            image = jpeg(low, quality)
            assert psnr_y(upscale(network, image), high) > psnr_y(bicubic(image), high), (title, quality)
