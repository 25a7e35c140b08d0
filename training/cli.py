"""``python -m training``: the only module here which prints."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click
import torch
from safetensors.torch import load_file

from espan_deploy.networks.span.espan import ESPAN
from training.config import read_config
from training.data import build_cache, open_cache, photographs_in
from training.evaluate import deploy_form, folder_pairs, psnr_y, upscale
from training.steadiness import NEAR, steadiness
from training.table import QUALITIES, bicubic, enlarger_of, held_out_pairs, markdown, measured
from training.trainer import Trainer, save_espan

CONFIGS = Path(__file__).parent / "configs"


@click.group()
def main() -> None:
    """Train ESPAN in its multi-branch form, from photographs to a checkpoint."""


@main.command()
@click.argument("photographs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--run", "folder", required=True, type=click.Path(path_type=Path), help="The run's folder: new, or resumed."
)
@click.option("--config", default="cpu", show_default=True, help="Name in training/configs, or a TOML file.")
@click.option(
    "--start",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Checkpoint to begin with.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to train: cpu, cuda.")
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
def train(
    photographs: tuple[Path, ...], *, folder: Path, config: str, start: Path | None, device: str, threads: int
) -> None:
    """Train on the PHOTOGRAPHS (folders, searched to any depth).

    Interrupt it at will: the same command goes on from where it stopped. The result is RUN/espan_x4.safetensors.
    """
    torch.set_num_threads(threads)
    named = CONFIGS / f"{config}.toml"
    settings = read_config(named if named.is_file() else Path(config))
    cache = folder / "cache"
    files = photographs_in(photographs)
    if not files:
        raise click.ClickException("no photographs there")
    click.echo(f"{len(files)} photographs", err=True)
    build_cache(files, cache, long_side=settings.long_side)
    trainer = Trainer(settings, open_cache(cache), folder, start=start, device=device)
    click.echo(f"from iteration {trainer.iteration} of {settings.iterations}", err=True)
    stopped = _stop_on_signals()
    progress = Progress(trainer)
    trainer.run(report=progress.report, progress=progress.update, stop=lambda: bool(stopped))
    trainer.export(folder / "espan_x4.safetensors")
    click.echo(f"{folder / 'espan_x4.safetensors'}")
    if stopped:
        click.echo("stopped; the same command goes on from here", err=True)
        sys.exit(130)


@main.command()
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--pairs", nargs=2, required=True, type=click.Path(exists=True, path_type=Path), help="Folders LR, HR.")
def evaluate(checkpoint: Path, pairs: tuple[Path, Path]) -> None:
    """Y-PSNR of a training-form CHECKPOINT on image pairs."""
    network = _deployed(checkpoint)
    figures = []
    for name, low, high in folder_pairs(*pairs):
        figures.append(psnr_y(upscale(network, low), high))
        click.echo(f"{figures[-1]:8.3f} dB  {name}")
    click.echo(f"{sum(figures) / len(figures):8.3f} dB  mean of {len(figures)}")


@main.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--count", default=2500, show_default=True, help="Drawings.")
@click.option("--side", default=48, show_default=True, help="Of each, in pixels.")
@click.option("--seed", default=4711, show_default=True, help="Of the drawings; others than the training's.")
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
def steady(checkpoints: tuple[Path, ...], *, count: int, side: int, seed: int, threads: int) -> None:
    """How many drawings the training-form CHECKPOINTS enlarge into rubble."""
    torch.set_num_threads(threads)
    for path in checkpoints:
        found = steadiness(_deployed(path), count=count, side=side, seed=seed)
        click.echo(
            f"{path}: {found.beyond} of {count} drawings beyond {NEAR}, raw values from {found.lowest:.2f} "
            f"to {found.highest:.2f}; pages {found.pages:.2f} dB"
        )


@main.command()
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("start", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--share", type=click.FloatRange(0, 1), required=True, help="Of the first one's weights.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where the blend goes.")
def blend(checkpoint: Path, start: Path, *, share: float, output: Path) -> None:
    """Weights between a CHECKPOINT and the START that its run went on from: some of what it had is kept."""
    ends = [load_file(path) for path in (checkpoint, start)]
    save_espan({name: share * value + (1 - share) * ends[1][name] for name, value in ends[0].items()}, output)
    click.echo(f"{output}")


@main.command()
@click.argument("checkpoints", nargs=-1, metavar="NAME=CHECKPOINT...", required=True)
@click.option(
    "--pairs",
    "pair_sets",
    nargs=3,
    multiple=True,
    metavar="NAME LR HR",
    help="A set's name, and its folders; may be given again.",
)
@click.option(
    "--photographs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of photographs held out from training.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures there too.")
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
def table(
    checkpoints: tuple[str, ...],
    *,
    pair_sets: tuple[tuple[str, str, str], ...],
    photographs: Path | None,
    json_path: Path | None,
    threads: int,
) -> None:
    """Y-PSNR of bicubic and the CHECKPOINTS with the low-resolution side as it is, and as JPEG at 90, 70, 50, 30."""
    torch.set_num_threads(threads)
    enlargers = {"bicubic": bicubic}
    for named in checkpoints:
        name, equals, path = named.partition("=")
        if not equals:
            raise click.BadParameter(f"{named!r} is not like photo=photo.safetensors")
        enlargers[name] = enlarger_of(Path(path))
    sets = {name: folder_pairs(Path(low), Path(high)) for name, low, high in pair_sets}
    if photographs is not None:
        sets["held out"] = iter(held_out_pairs(photographs))
    figures = measured(sets, enlargers)
    click.echo(markdown(figures))
    if json_path is not None:
        json_path.write_text(json.dumps({"jpeg_quality": QUALITIES, "y_psnr_db": figures}, indent=1) + "\n")


def _deployed(checkpoint: Path) -> ESPAN:
    """A training-form checkpoint's deploy form."""
    espan = ESPAN(training_form=True)
    espan.load_state_dict(load_file(checkpoint))
    return deploy_form(espan)


def _stop_on_signals() -> list[int]:
    """A list that gets the signal's number when one asks to stop."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return received


class Progress:
    """A line on stderr that is rewritten (on a terminal), and one that stays for every validation."""

    def __init__(self, trainer: Trainer) -> None:
        self.started = time.monotonic()
        self.first = trainer.iteration
        self.live = sys.stderr.isatty()

    def _line(self, trainer: Trainer) -> str:
        done, total = trainer.iteration, trainer.config.iterations
        rate = (done - self.first) / max(1e-9, time.monotonic() - self.started)
        left = int((total - done) / max(1e-9, rate))
        bar = "#" * (24 * done // total)
        return (
            f"[{bar:<24}] {done}/{total} {trainer.stage_entered.name}  {rate:.2f} it/s"
            f"  {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left  loss {trainer.running_loss:.5f}"
        )

    def update(self, trainer: Trainer, loss: float) -> None:
        """Called after every iteration."""
        del loss
        if self.live:
            click.echo(f"\r{self._line(trainer)}", nl=False, err=True)

    def report(self, trainer: Trainer, psnr: float) -> None:
        """Called with every validation."""
        start = "\r" if self.live else ""
        click.echo(f"{start}{self._line(trainer)}  Y-PSNR {psnr:.3f} dB", err=True)
