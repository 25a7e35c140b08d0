"""``espan-deploy bench``: latency, quality and cost, side by side."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from espan_deploy.cli.export import SizeType
from espan_deploy.cli.main import INTERRUPTED, json_option
from espan_deploy.errors import InputError

if TYPE_CHECKING:
    from espan_deploy.bench.images import Case, Image, Pair
    from espan_deploy.bench.suite import Suite

DEFAULT_SIZE = (256, 256)

SHOWN = 3
"""Pictures on the page."""


@click.command(
    "bench",
    epilog="""\b
Examples:
  espan-deploy bench --model espan.onnx
  espan-deploy bench --model espan.onnx --engine all --size 256x256 --size 510x339 --batch 1 --batch 4
  espan-deploy bench --model espan.onnx --model other.onnx --pairs Set5/LR Set5/HR --html report.html
  espan-deploy bench --model espan.pth --against torch --ntire 2025 --json-file report.json
  espan-deploy bench --model espan.onnx --choose
""",
)
@click.option(
    "--model", "models", multiple=True, type=click.Path(path_type=Path),
    help="clean, camera, photo, an ONNX file or a checkpoint; may be repeated.  [default: clean]",
)  # fmt: skip
@click.option(
    "--engine", "engines", multiple=True, metavar="NAME[:PRECISION]",
    help="auto, all, or a backend's name, such as openvino:bf16; may be repeated.  [default: auto]",
)  # fmt: skip
@click.option(
    "--size", "sizes", multiple=True, type=SizeType(),
    help="Of the input, HEIGHTxWIDTH; may be repeated.  [default: 256x256]",
)  # fmt: skip
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help="May be repeated.  [default: 1]")
@click.option("--images", type=click.Path(path_type=Path), metavar="DIR", help="Time a folder's own images and sizes.")
@click.option(
    "--pairs", nargs=2, type=click.Path(path_type=Path), metavar="LR_DIR HR_DIR",
    help="Also measure PSNR and SSIM against the truth.",
)  # fmt: skip
@click.option("--against", type=click.Choice(["torch"]), help="Also run PyTorch, as trained and folded.")
@click.option(
    "--checkpoint", "checkpoints", multiple=True, type=click.Path(path_type=Path),
    help="An ONNX model's checkpoint, for --against torch; may be repeated.",
)  # fmt: skip
@click.option("--ntire", type=click.Choice(["2025", "2026"]), help="Show the challenge's table with this run in it.")
@click.option(
    "--choose", is_flag=True,
    help="Time every engine, precision and split of the cores that upscale may choose from on this CPU, and keep it.",
)  # fmt: skip
@click.option("--layers", is_flag=True, help="Show every layer's limit, and its time where the engine tells.")
@click.option("--runs", type=click.IntRange(1), default=200, show_default=True, help="Rounds per size and batch.")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True,
    help="Time per contender, size and batch, after which fewer runs must do.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all]")
@click.option("--json-file", type=click.Path(path_type=Path), metavar="FILE", help="Write the whole report as JSON.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the whole report as a page.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    json_file: Path | None,
    html: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure models: latency in every engine, side by side, and how far it is from what the machine could do.

    Contenders take turns, so that whatever slows the machine slows all alike; trust their ratios most. Sizes are
    height x width, as everywhere in this tool. Ctrl-C stops, and prints what was measured until then.
    """
    from espan_deploy.bench import report_html
    from espan_deploy.bench.report_table import render
    from espan_deploy.files import write_atomically

    for target in (json_file, html):
        if target is not None and not target.absolute().parent.is_dir():
            raise InputError(f"there is no folder {target.absolute().parent} to write {target.name} to")
    if options["choose"]:
        _choose(ctx, options, as_json=as_json)
        return
    with _talk(quiet=as_json) as progress:
        suite = _run(options, progress, show=SHOWN if html else 0)
    document = suite.document
    if json_file is not None:
        write_atomically(json_file, (json.dumps(document, separators=(",", ":")) + "\n").encode())
    if html is not None:
        write_atomically(html, report_html.render(document, suite.pictures).encode())
    if as_json:
        click.echo(json.dumps(document))
    else:
        click.echo(render(document, layers=options["layers"]))
    if document["interrupted"]:
        ctx.exit(INTERRUPTED)


def _choose(ctx: click.Context, options: dict[str, Any], *, as_json: bool) -> None:
    from espan_deploy.backends.model import read_model
    from espan_deploy.bench.choices import measure_choices, render_choices
    from espan_deploy.models import default_model, model_file

    given = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    others = sorted(given - {"choose", "models", "sizes", "threads", "as_json"})
    if others:
        raise click.UsageError(f"--choose times what upscale may choose from; it takes no {', '.join(others)}")
    models = [read_model(model_file(name)) for name in options["models"]] or [read_model(default_model())]
    with _talk(quiet=as_json) as progress:
        document = measure_choices(models, options["sizes"], options["threads"], progress=progress)
    click.echo(json.dumps(document) if as_json else render_choices(document))


def _run(options: dict[str, Any], progress: Callable[[str], None], *, show: int) -> Suite:
    from espan_deploy.bench.contenders import engine_choices, load_models, open_contenders
    from espan_deploy.bench.suite import Settings, Suite, challenge_of
    from espan_deploy.models import default_model, model_file

    engines = engine_choices(options["engines"])
    models = load_models([model_file(name) for name in options["models"]] or [default_model()], options["checkpoints"])
    pairs = _pairs(options["pairs"], {model.file.description.scale for model in models})
    cases = _cases(options)
    shown = _shown(options, pairs)[:show]
    contenders = open_contenders(
        models, engines, threads=options["threads"], against_torch=options["against"] == "torch"
    )
    settings = Settings(
        runs=options["runs"],
        seconds=options["seconds"],
        threads=options["threads"],
        challenge=challenge_of(int(options["ntire"]) if options["ntire"] else None),
        layers=options["layers"],
        command=_command_line(),
    )
    try:
        suite = Suite(contenders, cases, settings, pairs=pairs, shown=shown, progress=progress)
        suite.run()
        return suite
    finally:
        for contender in contenders:
            contender.runner.close()


def _cases(options: dict[str, Any]) -> list[Case]:
    from espan_deploy.bench.images import folder_case, generated_case

    sizes = options["sizes"] or ([] if options["images"] else [DEFAULT_SIZE])
    cases = [
        generated_case(height, width, batch)
        for height, width in dict.fromkeys(sizes)
        for batch in options["batches"] or (1,)
    ]
    if options["images"]:
        cases.append(folder_case(options["images"]))
    return cases


def _shown(options: dict[str, Any], pairs: list[Pair]) -> list[tuple[str, Image, Image | None]]:
    """For the page: the first pairs, or else images."""
    from espan_deploy.bench.images import image_files, read_image

    if pairs or not options["images"]:
        return [(pair.name, pair.low, pair.high) for pair in pairs[:SHOWN]]
    return [(path.name, read_image(path), None) for path in image_files(options["images"])[:SHOWN]]


def _pairs(folders: tuple[Path, Path] | None, scales: set[int]) -> list[Pair]:
    from espan_deploy.bench.images import load_pairs

    if not folders:
        return []
    if len(scales) > 1:
        raise InputError(f"the models have scales {sorted(scales)}: pairs fit one of them", hint="run them apart")
    return load_pairs(*folders, scales.pop())


def _command_line() -> str:
    """As typed, the program by its name."""
    return shlex.join(["espan-deploy", *sys.argv[1:]])


@contextmanager
def _talk(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is going on, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    width = 78
    yield lambda text: click.echo(f"\r{text[:width]:<{width}}", err=True, nl=False)
    click.echo(f"\r{'':<{width}}\r", err=True, nl=False)
