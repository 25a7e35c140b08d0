"""``espan-deploy upscale``: every image of a folder, larger."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from espan_deploy.cli.cluster import cluster_options
from espan_deploy.cli.films import PIPE, emit_films, film_options
from espan_deploy.cli.main import INTERRUPTED, json_option
from espan_deploy.errors import InputError, PartialFailureError

if TYPE_CHECKING:
    from espan_deploy.cluster.upscale import ClusterUpscaling, Staffed
    from espan_deploy.pipeline.report import Report
    from espan_deploy.pipeline.shard import Shard
    from espan_deploy.pipeline.upscale import Upscaling

    Prepared = ClusterUpscaling | Upscaling

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
MIN_MEMORY = 64 << 20


class MemorySize(click.ParamType[int]):
    """Bytes, or 1.5G or 800M."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        text = str(value).upper().removesuffix("B").removesuffix("I")
        unit = text[-1:] if text[-1:] in UNITS else ""
        try:
            size = int(float(text.removesuffix(unit)) * UNITS[unit])
        except ValueError:
            self.fail(f"{value!r} is no size like 800M or 1.5G", param, ctx)
        if size < MIN_MEMORY:
            self.fail(f"{value!r} is less than 64M", param, ctx)
        return size


class WordOrNumber(click.ParamType[int | str]):
    """One of some words, or a number of at least ``least``."""

    name = "number"

    def __init__(self, words: tuple[str, ...], least: int) -> None:
        self.words, self.least = words, least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The word or the number."""
        if value in self.words:
            return str(value)
        try:
            number = int(value)
        except ValueError:
            number = self.least - 1
        if number < self.least:
            self.fail(f"{value!r} is neither {' nor '.join(self.words)} nor {self.least} or more", param, ctx)
        return number


class ShardOf(click.ParamType["Shard"]):
    """A part of a division, like 3/16."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        """Number and count."""
        from espan_deploy.pipeline.shard import Shard

        try:
            number, count = map(int, str(value).split("/"))
            return Shard(number, count)
        except ValueError:
            self.fail(f"{value!r} is no part like 3/16, from 1/16 to 16/16", param, ctx)


@click.command(
    "upscale",
    epilog="""\b
Examples:
  espan-deploy upscale photos/ upscaled/
  espan-deploy upscale photo.jpg upscaled/ --format png --model espan.onnx
  espan-deploy upscale photos/ upscaled/ --precision fp32 --report report.json
  espan-deploy upscale film.mkv upscaled/ --video-codec h265 --crf 18
  espan-deploy upscale film.mkv - | mpv -
  espan-deploy upscale s3://photos/in s3://photos/out
  espan-deploy upscale s3://photos/in s3://photos/out --cluster ray://head:10001
  espan-deploy upscale s3://photos/in s3://photos/out --shard 3/16
""",
)
@click.argument("source", metavar="INPUT", type=click.Path())
@click.argument("output", metavar="OUTPUT", type=click.Path())
@click.option(
    "--model",
    metavar="NAME|FILE",
    help="clean, camera, photo, or an ONNX file.  [default: the one of these three that fits each file]",
)
@click.option("--engine", default="auto", show_default=True, help="auto: the fastest as measured; or a backend's.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
    default="auto",
    show_default=True,
    help="auto: the fastest on this machine, as measured, whose results are close to fp32's.",
)
@click.option(
    "--tile",
    type=WordOrNumber(("auto", "none"), 8),
    default="auto",
    show_default=True,
    help="Side of the tiles, in pixels of the input; the result is the same.",
)
@click.option("--memory", type=MemorySize(), help="For images in flight and the engine, like 800M or 4G.")
@click.option(
    "--batch", type=WordOrNumber(("auto",), 1), default="auto", show_default=True, help="Images per engine call."
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["same", "png", "jpeg", "webp", "avif", "jxl", "tiff"]),
    default="same",
    show_default=True,
    help="Of the output files.",
)
@click.option("--quality", type=click.IntRange(1, 100), help="Of JPEG, WebP and AVIF.  [default: 95, 95, 85]")
@click.option(
    "--png-compression", type=click.Choice(["fast", "small"]), default="fast", show_default=True, help="Of PNG."
)
@film_options
@click.option("--overwrite", is_flag=True, help="Do everything again, and replace files not made by this tool.")
@click.option(
    "--shard", type=ShardOf(), metavar="N/OF", help="Only this part of the files, like 3/16: for arrays of jobs."
)
@cluster_options
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--report", "report_path", type=click.Path(path_type=Path), help="Write the whole report to a JSON file.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads for everything.  [default: all]")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    source: str,
    output: str,
    model: str | None,
    report_path: Path | None,
    format_name: str,
    dry_run: bool,
    as_json: bool,
    films: dict[str, Any],
    staffed: Staffed | None,
    **options: Any,
) -> None:
    """Upscale every image and film of a folder, or one of them, into the folder OUTPUT.

    Folders keep their structure; what is there already, made from the same input, model and settings, is skipped.
    A file that cannot be read is reported and the rest goes on (exit code 4). Ctrl-C finishes the images in
    flight; the same command then finishes the job. Films need the extra `video`; with - as OUTPUT, one film's
    frames go to standard output, uncompressed. Either end may be a bucket (s3://, gs://, az://; extra `cloud`), and a
    Ray cluster may do the work (extra `cluster`).

    \b
    espan-deploy upscale photos/ upscaled/
    espan-deploy upscale scans/ large/ --model espan.onnx --format png --precision fp32 --report report.json
    """
    # What Pillow finds odd about a file is either in the report, as its failure, or of no consequence.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    from espan_deploy.models import model_file
    from espan_deploy.pipeline.opened import UpscaleSettings

    batch = options.pop("batch")
    settings = UpscaleSettings(format=format_name, batch=None if batch == "auto" else batch, **options)
    pipe = sys.stdout.buffer if output == PIPE else None
    if pipe is not None and as_json:
        raise click.UsageError("standard output cannot hold a film and --json; use --report FILE")
    chosen = None if model is None else model_file(model)
    upscaling: Prepared
    if staffed is not None:
        from espan_deploy.cluster.upscale import ClusterUpscaling

        if pipe is not None:
            raise click.UsageError("a pipe takes one film, from this process: leave out --cluster")
        upscaling = ClusterUpscaling(source, output, chosen, settings, staffed)
    else:
        from espan_deploy.video.upscale import FilmSettings, FilmUpscaling

        upscaling = FilmUpscaling(source, output, chosen, settings, FilmSettings(**films), pipe=pipe)
    if dry_run:
        report = upscaling.plan()
        emit(report, as_json=as_json, listed=True)
    else:
        if upscaling.total is not None:
            _talk(upscaling)
        with stopping(upscaling), progress(upscaling) as show:
            report = upscaling.run(show)
        if upscaling.total is None:  # only now all is listed
            _talk(upscaling)
        emit(report, as_json=as_json, talk=pipe is not None)
    if report_path is not None:
        write_report(report_path, report)
    ctx.exit(exit_code(report))


def exit_code(report: Report) -> int:
    """0, 4 where files failed or it had to stop, 130 where the user stopped it."""
    if report.interrupted:
        return INTERRUPTED
    bad = report.count("failed") or report.count("damaged") or report.stopped_because
    return PartialFailureError.exit_code if bad else 0


def _talk(upscaling: Prepared) -> None:
    ignored = upscaling.source.left_out.ignored
    if ignored:
        kinds = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in ignored.most_common(5))
        click.echo(f"not images by their names, left alone: {kinds}", err=True)


def emit(report: Report, *, as_json: bool, listed: bool = False, talk: bool = False) -> None:
    """The report on stdout, or on stderr where it is only talk; on stderr every file that failed, and why."""
    engine = report.engine
    for file in report.files:
        if file.status == "failed":
            click.echo(f"failed: {file.input}: {file.error}", err=True)
            if file.hint:
                click.echo(f"  hint: {file.hint}", err=True)
    cache_problem = engine.get("choice", {}).get("cache_problem")
    if cache_problem:
        click.echo(f"without what earlier runs found out: {cache_problem}", err=True)
    if report.remark:
        click.echo(report.remark, err=True)
    if report.stopped_because:
        click.echo(f"stopped: {report.stopped_because}; the same command goes on from here", err=True)
    elif report.interrupted:
        click.echo("interrupted; the same command goes on from here", err=True)
    if as_json:
        click.echo(json.dumps(report.to_dict()))
        return
    if listed:
        for file in report.files:
            if file.status == "planned":
                click.echo(file.plan())
        return
    click.echo(f"{engine['backend']} {engine['precision']}: {engine.get('chosen_because', 'not opened')}", err=talk)
    emit_films(report)
    click.echo(report.summary(), err=talk)


def write_report(path: Path, report: Report) -> None:
    """The report as a JSON file. Raises InputError where it cannot be written."""
    try:
        path.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    except OSError as exc:
        raise InputError(f"cannot write the report to {path}: {exc.strerror or exc}") from exc


@contextmanager
def stopping(upscaling: Prepared) -> Iterator[None]:
    """Ctrl-C, or a polite kill, lets what is in flight finish; the second one ends the process at once."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if stops:
            os._exit(INTERRUPTED)
        stops.append(True)
        upscaling.stop()
        click.echo("\nstopping after the images in flight; once more stops at once", err=True)

    stops: list[bool] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        old = {number: signal.signal(number, handle) for number in signals}
    except ValueError:  # not the main thread: the caller handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def progress(upscaling: Prepared) -> Iterator[Callable[[], None]]:
    """A line on a terminal: how many of how many, time left, rate, megapixels, failures; nothing where it is piped.

    What the run has to say meanwhile is said in any case.
    """
    said: list[str] = []
    # Without an end, click wants something to go through instead of a length.
    endless = None if upscaling.expected is not None else repeat(None)
    bar: Any = click.progressbar(
        endless,
        length=upscaling.expected,
        show_pos=True,
        show_percent=False,
        item_show_func=lambda text: text,
        width=24,
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
    )

    def show() -> None:
        report, finished = upscaling.report, upscaling.finished
        if upscaling.notice and not said:
            said.append(upscaling.notice)
            click.echo(said[0], err=True)
        if report is not None and finished > bar.pos:
            seconds = time.perf_counter() - upscaling.started - report.startup_seconds
            bar.update(
                finished - bar.pos, progress_text(finished, seconds, upscaling.progress(), report.count("failed"))
            )

    with bar:
        yield show


def progress_text(finished: int, seconds: float, done: str, failed: int) -> str:
    """What stands behind the bar: frames of films are images too."""
    parts = [f"{finished / seconds:.1f} images/s" if seconds > 0 else "", done, f"{failed} failed" if failed else ""]
    return ", ".join(filter(None, parts))
