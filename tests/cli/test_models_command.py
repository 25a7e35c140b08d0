"""What comes with the package is listed, with its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from espan_deploy.cli.main import main
from espan_deploy.models import MODELS, figures, model_file

MAX_BYTES = 1_000_000


def test_the_models_are_listed_with_their_figures() -> None:
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 0
    for name, model in MODELS.items():
        assert name in result.stdout
        assert model.made_for in result.stdout
        assert f"{model.y_psnr_db()['Set5']['none']:.2f}" in result.stdout


def test_as_json() -> None:
    document = json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)
    assert document["schema_version"] == 1
    assert [entry["name"] for entry in document["models"]] == list(MODELS)
    for entry in document["models"]:
        assert Path(entry["path"]).stat().st_size == entry["bytes"] < MAX_BYTES
        assert (entry["network"], entry["scale"]) == ("espan", 4)
        assert entry["y_psnr_db"]["Set14"].keys() == {"none", "90", "70", "50", "30"}


def test_the_figures_are_of_every_model_and_of_what_they_are_compared_with() -> None:
    for rows in figures()["y_psnr_db"].values():
        assert {"bicubic", "released", *MODELS} <= rows.keys()
        assert all(len(values) == len(figures()["jpeg_quality"]) for values in rows.values())


@pytest.mark.parametrize("name", MODELS)
def test_a_name_means_the_model_and_a_path_the_file(name: str) -> None:
    assert model_file(name) == MODELS[name].path
    assert model_file(f"./{name}") == Path(name)
    assert model_file("mine.onnx") == Path("mine.onnx")
