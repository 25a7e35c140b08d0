"""Every architecture that spandrel knows, small and with random weights, through the command line."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from public import SMALL

from espan_deploy.apart import without_warnings
from espan_deploy.cli.main import main
from espan_deploy.networks import spandrel

pytestmark = pytest.mark.skipif(find_spec("spandrel") is None, reason="spandrel, an extra, is not installed")

ONE_SIZE = ("Uformer",)
"""What takes images of one size only."""

SAMPLE = ("Compact", "SwinIR")


def export(folder: Path, name: str) -> Result:
    package, kind, arguments = SMALL[name]
    spandrel._registry()
    torch.manual_seed(0)
    with without_warnings():
        network = getattr(import_module(f"spandrel.architectures.{package}"), kind)(**arguments)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.uniform_(-0.1, 0.1)  # what starts at nothing would hide what follows
    torch.save(network.state_dict(), folder / "w.pth")
    return CliRunner().invoke(main, ["export", str(folder / "w.pth"), "-o", str(folder / "m.onnx"), "--json"])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.every) for name in SMALL],
)
def test_it_exports_or_one_message_says_why_not(tmp_path: Path, name: str) -> None:
    result = export(tmp_path, name)

    assert "Traceback" not in result.stderr
    if name in REFUSED:
        assert result.exit_code != 0
        assert REFUSED[name] in result.stderr
        return
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    said = json.loads(result.stdout)
    assert (said["fixed_size"] is not None) == (name in ONE_SIZE)
    assert said["verified_at"]


REFUSED = {
    "AuraSR": "draws random numbers",
    "GFPGAN": "draws random numbers",
    "IPT": "still at work after 10 minutes",
    "LaMa": "takes a mask beside the image",
    "SeemoRe": "line 310: selected_experts = ",
}
"""And the words that say why."""
