"""A whole training, every step of the recipe, in seconds: few iterations on small crops of made-up pictures."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from made_up import picture
from PIL import Image
from safetensors.torch import load_file

from espan_deploy.networks.span.espan import ESPAN
from training.cli import main
from training.config import Config, Stage
from training.data import Photographs, build_cache, open_cache, photographs_in
from training.losses import LossWeights
from training.trainer import CHECKPOINT, Trainer, save_espan

L1 = LossWeights(l1=1.0, distillation=0.1)
FREQUENCY = LossWeights(mse=16.0, dct=0.1, edge=0.1, distillation=0.1)
RATES = (1e-3, 1e-3)
CONFIG = Config(
    stages=(
        Stage("1 x2", 2, 2, 2, 8, RATES, L1, extra_blocks=2, student=True, warm_up=1),
        Stage("1 x4", 2, 4, 2, 8, RATES, L1, extra_blocks=2, student=True),
        Stage("2", 1, 4, 2, 8, RATES, FREQUENCY, extra_blocks=2, student=True),
        Stage("3", 1, 4, 2, 8, RATES, FREQUENCY, extra_blocks=2),
        Stage("4", 2, 4, 2, 8, RATES, L1, extra_blocks=1),
        Stage("4", 2, 4, 2, 8, RATES, L1),
        Stage("5", 2, 4, 2, 8, (1e-3, 1e-5), FREQUENCY),
    ),
    precision="float32",
    branch_rate=0.1,
    hold_out_every=3,
    validation_side=16,
    report_every=4,
    checkpoint_every=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(3):
        Image.fromarray(picture(96, 128, seed=i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def photographs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    cache = tmp_path_factory.mktemp("cache")
    build_cache(photographs_in([folder]), cache, long_side=1000)
    return open_cache(cache)


@pytest.fixture(scope="module")
def uninterrupted(photographs: Photographs, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    torch.set_num_threads(1)
    trainer = Trainer(CONFIG, photographs, tmp_path_factory.mktemp("run"))
    trainer.run()
    return trainer


def same(a: Trainer, b: Trainer) -> bool:
    pairs = [(a.average, b.average), (a.network.state_dict(), b.network.state_dict())]
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in pairs)


def test_reports_along_the_way_and_learns_something(photographs: Photographs, tmp_path: Path) -> None:
    reports: list[tuple[int, float]] = []
    losses: list[float] = []
    Trainer(CONFIG, photographs, tmp_path).run(
        report=lambda trainer, psnr: reports.append((trainer.iteration, psnr)),
        progress=lambda trainer, loss: losses.append(loss),
    )
    assert [iteration for iteration, _ in reports] == [4, 8, 12]
    assert all(10 < psnr < 60 for _, psnr in reports)
    assert len(losses) == CONFIG.iterations


def test_the_same_seed_gives_the_same_weights(photographs: Photographs, uninterrupted: Trainer, tmp_path: Path) -> None:
    again = Trainer(CONFIG, photographs, tmp_path / "again")
    again.run()
    assert same(again, uninterrupted)
    other = Trainer(dataclasses.replace(CONFIG, seed=1), photographs, tmp_path / "other")
    other.run()
    assert not same(other, uninterrupted)


@pytest.mark.parametrize("interruptions", [[2], list(range(1, 12))])
def test_an_interrupted_run_ends_with_the_same_weights(
    photographs: Photographs, uninterrupted: Trainer, tmp_path: Path, interruptions: list[int]
) -> None:
    for until in interruptions:
        Trainer(CONFIG, photographs, tmp_path).run(until=until)
    trainer = Trainer(CONFIG, photographs, tmp_path)
    assert trainer.iteration == interruptions[-1]
    trainer.run()
    assert same(trainer, uninterrupted)


def test_stopping_leaves_a_checkpoint(photographs: Photographs, tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, photographs, tmp_path)
    trainer.run(stop=lambda: trainer.iteration == 3)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    assert Trainer(CONFIG, photographs, tmp_path).iteration == 3


def test_other_settings_or_photographs_do_not_continue_a_run(photographs: Photographs, tmp_path: Path) -> None:
    Trainer(CONFIG, photographs, tmp_path).run(until=1)
    with pytest.raises(ValueError, match="other settings"):
        Trainer(dataclasses.replace(CONFIG, ema=0.5), photographs, tmp_path)
    with pytest.raises(ValueError, match="other photographs"):
        Trainer(CONFIG, photographs.subset([2, 1, 0]), tmp_path)


def test_branches_without_a_rate_stay_as_they_are(photographs: Photographs, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, branch_rate=0.0, stages=CONFIG.stages[-2:])
    straight = Trainer(config, photographs, tmp_path / "straight")
    before = {name: value.clone() for name, value in straight.average.items()}
    straight.run()
    moved = {name for name, value in straight.average.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if ".rep." not in name or ".rep.kxk." in name}
    Trainer(config, photographs, tmp_path / "halted").run(until=1)
    halted = Trainer(config, photographs, tmp_path / "halted")
    halted.run()
    assert same(halted, straight)


def test_muon_moves_kernels_and_goes_on_where_it_was(photographs: Photographs, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, optimizer="muon")
    straight = Trainer(config, photographs, tmp_path / "straight")
    before = {name: value.detach().clone() for name, value in straight.network.named_parameters()}
    straight.run(until=1)
    after = dict(straight.network.named_parameters())
    assert all(not torch.equal(before[name], after[name]) for name in before if ".kxk." in name)
    straight.run()
    Trainer(config, photographs, tmp_path / "halted").run(until=5)
    halted = Trainer(config, photographs, tmp_path / "halted")
    halted.run()
    assert same(straight, halted)
    adam = Trainer(CONFIG, photographs, tmp_path / "adam")
    adam.run()
    assert not same(straight, adam)


def test_stages_may_differ_where_no_branch_learns(photographs: Photographs, tmp_path: Path) -> None:
    trainer = Trainer(dataclasses.replace(CONFIG, branch_rate=0.0), photographs, tmp_path)
    trainer.run()
    assert trainer.finished


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_learns_the_same(photographs: Photographs, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, branch_rate=0.0, stages=CONFIG.stages[-1:])
    trainers = [
        Trainer(dataclasses.replace(config, compiled=compiled), photographs, tmp_path / str(compiled))
        for compiled in (False, True)
    ]
    for trainer in trainers:
        trainer.run()
    plain, compiled = (trainer.average for trainer in trainers)
    # Steps are of 1e-3. Adam divides by a gradient's size: where that is near nothing, rounding moves a weight by 1e-5.
    assert all(torch.allclose(plain[name], compiled[name], atol=1e-4) for name in plain)


def test_a_stage_at_constant_rate_may_be_cut_short_on_the_way(photographs: Photographs, tmp_path: Path) -> None:
    level = Stage("level", 9, 4, 2, 8, (1e-3, 1e-3), LossWeights(l1=1.0))
    fall = Stage("fall", 3, 4, 2, 8, (1e-3, 1e-5), LossWeights(l1=1.0))
    long = dataclasses.replace(CONFIG, stages=(level, fall))
    short = dataclasses.replace(CONFIG, stages=(dataclasses.replace(level, iterations=4), fall))
    straight = Trainer(short, photographs, tmp_path / "straight")
    straight.run()
    Trainer(long, photographs, tmp_path / "cut").run(until=3)
    cut = Trainer(short, photographs, tmp_path / "cut")
    cut.run()
    assert cut.iteration == 7
    assert same(cut, straight)


def test_a_stage_whose_rate_falls_keeps_its_length(photographs: Photographs, tmp_path: Path) -> None:
    fall = Stage("fall", 6, 4, 2, 8, (1e-3, 1e-5), LossWeights(l1=1.0))
    config = dataclasses.replace(CONFIG, stages=(fall,))
    Trainer(config, photographs, tmp_path).run(until=2)
    for length in (1, 4, 8):
        other = dataclasses.replace(CONFIG, stages=(dataclasses.replace(fall, iterations=length),))
        with pytest.raises(ValueError, match="other settings"):
            Trainer(other, photographs, tmp_path)


def test_extra_blocks_and_student_come_and_go(photographs: Photographs, tmp_path: Path) -> None:
    seen = []
    for until in (1, 3, 6, 8, 10):
        trainer = Trainer(CONFIG, photographs, tmp_path)
        trainer.run(until=until)
        seen.append((trainer.network.scale, len(trainer.network.extra), trainer.network.student is not None))
    assert seen == [(2, 2, True), (4, 2, True), (4, 2, False), (4, 1, False), (4, 0, False)]


def test_export_loads_strictly_and_is_the_average(uninterrupted: Trainer, tmp_path: Path) -> None:
    uninterrupted.export(tmp_path / "espan.safetensors")
    espan = ESPAN(training_form=True)
    state = load_file(tmp_path / "espan.safetensors")
    espan.load_state_dict(state)
    assert all(torch.equal(value, uninterrupted.average[f"espan.{name}"]) for name, value in state.items())


def test_a_run_may_start_with_a_checkpoint(photographs: Photographs, uninterrupted: Trainer, tmp_path: Path) -> None:
    start = tmp_path / "espan.safetensors"
    uninterrupted.export(start)
    again = dataclasses.replace(CONFIG, stages=CONFIG.stages[-1:])
    trainer = Trainer(again, photographs, tmp_path / "again", start=start)
    assert all(torch.equal(value, trainer.average[f"espan.{name}"]) for name, value in load_file(start).items())
    with pytest.raises(ValueError, match="needs more"):
        Trainer(CONFIG, photographs, tmp_path / "other", start=start)


def test_a_blend_lies_between_its_ends(uninterrupted: Trainer, tmp_path: Path) -> None:
    ends = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    uninterrupted.export(ends[0])
    save_espan(ESPAN(training_form=True).state_dict(), ends[1])
    arguments = ["blend", *map(str, ends), "--share", "0.75", "-o", str(tmp_path / "c.safetensors")]
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    a, b, c = (load_file(path) for path in (*ends, tmp_path / "c.safetensors"))
    assert all(torch.allclose(c[name], 0.75 * a[name] + 0.25 * b[name], atol=1e-6) for name in a)


def test_command_trains_resumes_and_evaluates(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "tiny.toml"
    stage = '[[stage]]\nname = "only"\niterations = 3\nscale = 4\nbatch = 2\npatch = 8\nlearning_rate = [1e-3, 1e-5]\n'
    config.write_text(f"report_every = 2\nhold_out_every = 3\nvalidation_side = 16\n{stage}loss = {{ l1 = 1.0 }}\n")
    command = ["train", str(folder), "--run", str(tmp_path / "run"), "--config", str(config)]
    first = CliRunner().invoke(main, command, catch_exceptions=False)
    assert first.exit_code == 0
    checkpoint = tmp_path / "run" / "espan_x4.safetensors"
    assert first.stdout.strip() == str(checkpoint)
    assert "Y-PSNR" in first.stderr
    second = CliRunner().invoke(main, command, catch_exceptions=False)
    assert "from iteration 3 of 3" in second.stderr

    for name, divisor in (("LR", 4), ("HR", 1)):
        (tmp_path / name).mkdir()
        Image.fromarray(picture(96, 96, seed=5)[::divisor, ::divisor]).save(tmp_path / name / f"a_{name}.png")
    pairs = ["--pairs", str(tmp_path / "LR"), str(tmp_path / "HR")]
    evaluated = CliRunner().invoke(main, ["evaluate", str(checkpoint), *pairs], catch_exceptions=False)
    assert evaluated.exit_code == 0
    assert "mean of 1" in evaluated.stdout
