from pathlib import Path

import pytest

from training.cli import CONFIGS
from training.config import Stage, read_config
from training.losses import LossWeights

SHIPPED = [CONFIGS / f"{name}.toml" for name in ("cpu", "gpu", "full")]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_hold_every_step_of_the_factsheet(path: Path) -> None:
    stages = read_config(path).stages
    assert {stage.name[0] for stage in stages} == set("12345")
    assert [stage.scale for stage in stages] == sorted(stage.scale for stage in stages)
    assert [stage.extra_blocks for stage in stages] == sorted((s.extra_blocks for s in stages), reverse=True)
    assert stages[0].scale == 2
    assert stages[0].loss.l1
    assert stages[0].loss.distillation
    assert stages[0].student
    assert stages[-1].scale == 4
    assert stages[-1].extra_blocks == 0
    assert not stages[-1].student
    assert stages[-1].loss.mse
    assert stages[-1].loss.dct
    assert stages[-1].loss.edge


@pytest.mark.parametrize("name", ["again", "calm", "camera", "clean", "photo"])
def test_later_runs_go_on_with_the_final_network(name: str) -> None:
    stages = read_config(CONFIGS / f"{name}.toml").stages
    assert all(stage.scale == 4 and not stage.extra_blocks and not stage.student for stage in stages)
    assert stages[-1].loss.mse


def test_clean_sees_pictures_as_they_are_and_photo_spoiled_ones() -> None:
    clean, photo = (read_config(CONFIGS / f"{name}.toml") for name in ("clean", "photo"))
    assert clean.degradations is None
    assert photo.degradations is not None
    assert photo.degradations.quality == (25, 95)


def test_camera_sees_what_cameras_write() -> None:
    camera, photo = (read_config(CONFIGS / f"{name}.toml") for name in ("camera", "photo"))
    assert camera.degradations is not None
    assert photo.degradations is not None
    assert camera.degradations.quality == (75, 98)
    assert camera.degradations.blur < photo.degradations.blur
    assert camera.degradations.noise < photo.degradations.noise


def test_the_rate_warms_up_and_falls_to_its_end() -> None:
    stage = Stage("a", 100, 4, 8, 32, (1e-3, 1e-5), LossWeights(l1=1), warm_up=10)
    rates = [stage.rate(i) for i in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[10] == max(rates) == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5, rel=0.1)


def test_stages_follow_each_other() -> None:
    config = read_config(CONFIGS / "cpu.toml")
    first = config.stages[0].iterations
    assert config.stage_at(first - 1) == (0, first - 1)
    assert config.stage_at(first) == (1, 0)
    with pytest.raises(IndexError):
        config.stage_at(config.iterations)


def test_a_misspelt_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("sead = 3\nstage = []\n")
    with pytest.raises(ValueError, match="unknown keys sead"):
        read_config(path)
    path.write_text("stage = []\n[degradations]\njpg = 1\n")
    with pytest.raises(ValueError, match="degradations: unknown keys jpg"):
        read_config(path)


def test_an_optimizer_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text((CONFIGS / "clean.toml").read_text().replace('"muon"', '"sgd"'))
    with pytest.raises(ValueError, match="adamw or muon, not 'sgd'"):
        read_config(path)
