import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from made_up import ROOT, picture
from PIL import Image
from safetensors.torch import save_file

from espan_deploy.models import FIGURES, figures
from espan_deploy.networks.span.espan import ESPAN
from training.cli import main
from training.degrade import jpeg
from training.evaluate import psnr_y
from training.resize import shrink
from training.table import QUALITIES, bicubic, markdown, measured


def test_figures_are_means_over_the_set_at_each_quality() -> None:
    pairs = [(str(seed), shrink(high, 4), high) for seed in (1, 2) for high in [picture(96, 96, seed)]]
    found = measured({"two": pairs}, {"bicubic": bicubic, "nearest": lambda x: x.repeat(4, 0).repeat(4, 1)})
    wanted = np.mean([psnr_y(bicubic(jpeg(low, 50)), high) for _, low, high in pairs])
    assert found["two"]["bicubic"][QUALITIES.index(50)] == pytest.approx(wanted)
    assert found["two"]["bicubic"][0] == pytest.approx(np.mean([psnr_y(bicubic(low), high) for _, low, high in pairs]))
    assert set(found["two"]) == {"bicubic", "nearest"}
    assert f"| two, bicubic | {found['two']['bicubic'][0]:.2f} |" in markdown(found)


def test_command_prints_and_writes_the_table(tmp_path: Path) -> None:
    save_file(ESPAN(training_form=True).state_dict(), tmp_path / "a.safetensors")
    for name, size in (("LR", 24), ("HR", 96)):
        (tmp_path / name).mkdir()
        Image.fromarray(picture(size, size, seed=1)).save(tmp_path / name / "x.png")
    (tmp_path / "mine").mkdir()
    Image.fromarray(picture(96, 80, seed=2)).save(tmp_path / "mine" / "y.png")
    arguments = ["table", f"ours={tmp_path / 'a.safetensors'}", "--pairs", "Set1", str(tmp_path / "LR")]
    arguments += [str(tmp_path / "HR"), "--photographs", str(tmp_path / "mine"), "--json", str(tmp_path / FIGURES)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    document = json.loads((tmp_path / FIGURES).read_text())
    assert set(document["y_psnr_db"]) == {"Set1", "held out"}
    assert set(document["y_psnr_db"]["held out"]) == {"bicubic", "ours"}
    assert "| held out, ours |" in result.stdout


def test_the_readme_shows_the_figures_that_the_package_holds() -> None:
    assert markdown(figures()["y_psnr_db"]) in (ROOT / "README.md").read_text()
