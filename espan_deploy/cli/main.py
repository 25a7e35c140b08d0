"""``espan-deploy``: its commands, and the one place where errors become exit codes."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import click

from espan_deploy import __version__
from espan_deploy.errors import EspanDeployError

INTERRUPTED = 130

COMMANDS = {
    "export": "Checkpoint or ONNX file -> folded, verified ONNX model.",
    "upscale": "Upscale every image of a folder.",
    "serve": "Upscale pictures over HTTP.",
    "bench": "Measure a model's latency.",
    "models": "List the models that come with the package.",
    "inspect": "Say what a checkpoint, model or engine is.",
    "doctor": "Check, build, verify and time everything on this machine.",
}
"""Command -> its one line in --help. Each lives in the module of its name, imported when it is called."""


class LazyGroup(click.Group):
    """Commands imported when called, so that --help loads no runtime; expected errors become exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of a user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"espan_deploy.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an expected failure prints its message and hint, and exits with its code."""
        try:
            return super().invoke(ctx)
        except EspanDeployError as exc:
            if ctx.meta.get(JSON_META):
                click.echo(
                    json.dumps({"error": {"type": type(exc).__name__, "message": exc.message, "hint": exc.hint}})
                )
            click.echo(f"error: {exc.message}", err=True)
            if exc.hint:
                click.echo(f"hint: {exc.hint}", err=True)
            ctx.exit(exc.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


JSON_META = "espan_deploy.json"


def _remember_json(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
    ctx.meta[JSON_META] = value
    return value


json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_remember_json, help="Print one JSON document on stdout."
)
"""Errors then print as JSON too."""


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="espan-deploy")
def main() -> None:
    """Take a trained super-resolution checkpoint to the fastest verified upscaler this machine can run.

    \b
    espan-deploy export espan.pth -o espan.onnx
    espan-deploy upscale photos/ upscaled/ --model espan.onnx
    espan-deploy bench --model espan.onnx
    """
