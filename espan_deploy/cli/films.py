"""What ``upscale`` does with films: options, and lines about them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from espan_deploy.pipeline.report import Report

F = TypeVar("F", bound=Callable[..., Any])

PIPE = "-"
"""As OUTPUT: standard output."""


class Moment(click.ParamType[float]):
    """A time in a film: seconds, or minutes:seconds, or hours:minutes:seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        seconds = 0.0
        try:
            for part in str(value).split(":"):
                seconds = 60 * seconds + float(part)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            self.fail(f"{value!r} is no time like 90, 1:30 or 1:02:03.5", param, ctx)
        return seconds


def film_options(command: F) -> F:
    """Add the options to a command, which takes them as one ``films``: the arguments of FilmSettings."""
    names = {
        "video_codec": "codec",
        "crf": "crf",
        "preset": "preset",
        "start": "start",
        "end": "end",
        "preview": "preview",
    }

    @wraps(command)
    def gathered(**options: Any) -> Any:
        films = {setting: options.pop(name) for name, setting in names.items()}
        return command(films=films, **options)

    result: Any = gathered
    for option in reversed(
        (
            click.option(
                "--video-codec",
                default="auto",
                show_default=True,
                metavar="CODEC",
                help="Of films: h264, h265, av1, ffv1 (lossless), prores, h264_nvenc, hevc_nvenc or av1_nvenc; auto: "
                "h264, and h265 beyond 8 bits.",
            ),
            click.option("--crf", type=click.IntRange(0, 63), help="Of films: constant quality, lower is better."),
            click.option("--preset", metavar="NAME", help="Of films: the encoder's own word for speed against size."),
            click.option("--start", type=Moment(), help="Of films: begin there, like 90 or 1:30."),
            click.option("--end", type=Moment(), help="Of films: end there."),
            click.option("--preview", is_flag=True, help="Of films: one frame only, before and after, as PNG."),
        )
    ):
        result = option(result)
    return result  # type: ignore[no-any-return]


def emit_films(report: Report) -> None:
    """On stderr what there is to know of each film; on stdout a line for each that was written."""
    from espan_deploy.video.report import FilmReport

    for file in report.files:
        if not isinstance(file, FilmReport):
            continue
        for note in file.notes:
            click.echo(f"{file.input}: {note}", err=True)
        if file.status == "damaged":
            click.echo(f"damaged: {file.input}: {file.error}", err=True)
        if file.frames:
            click.echo(file.line(), err=file.output == PIPE)
