"""``espan-deploy serve``: pictures over HTTP."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from typing import Any

import click

from espan_deploy.cli.main import INTERRUPTED
from espan_deploy.cli.upscale import MemorySize, WordOrNumber
from espan_deploy.errors import BackendUnavailableError, InputError

TOKEN_VARIABLE = "ESPAN_DEPLOY_TOKEN"  # a name, not a secret

NEEDED = ("starlette", "uvicorn", "prometheus_client")


@click.command(
    "serve",
    epilog=f"""\b
Examples:
  espan-deploy serve
  curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/upscale -o large.jpg
  espan-deploy serve --model espan.onnx --host 0.0.0.0 --port 80

If {TOKEN_VARIABLE} is set in the environment, requests to /v1 must bear that token.
""",
)
@click.option(
    "--model",
    metavar="NAME|FILE",
    help="clean, camera, photo, or an ONNX file.  [default: the one of these three that fits each picture]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--engine", default="auto", show_default=True, help="auto, or a backend's name.")
@click.option(
    "--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]), default="auto", show_default=True
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads for everything.  [default: all]")
@click.option("--memory", type=MemorySize(), help="For pictures in flight and the engine, like 800M or 4G.")
@click.option("--batch", type=WordOrNumber(("auto",), 1), default="auto", show_default=True, help="Per engine call.")
@click.option(
    "--max-wait-ms",
    type=click.FloatRange(0, 1000),
    default=2.0,
    show_default=True,
    help="How long a picture may wait for others of its size to share an engine call.",
)
@click.option("--max-megabytes", type=click.IntRange(1), default=64, show_default=True, help="Of a picture sent.")
@click.option("--max-megapixels", type=click.IntRange(1), default=40, show_default=True, help="Of a picture sent.")
@click.option("--max-waiting", type=click.IntRange(1), default=64, show_default=True, help="Requests in the queue.")
@click.option(
    "--upload-timeout",
    type=click.FloatRange(0.1),
    default=60.0,
    show_default=True,
    help="Seconds for a picture to arrive.",
)
@click.option("--deadline", type=click.FloatRange(1), default=120.0, show_default=True, help="Seconds to an answer.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    model: str | None,
    host: str,
    port: int,
    max_megabytes: int,
    max_megapixels: int,
    max_waiting: int,
    deadline: float,
    upload_timeout: float,
    batch: Any,
    **settings: Any,
) -> None:
    """Upscale pictures over HTTP: POST one to /v1/upscale, or open / in a browser.

    SIGTERM and Ctrl-C finish what was accepted. /healthz, /readyz and /metrics are for those who look after it.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise BackendUnavailableError(
            f"the service needs {', '.join(missing)}, which is not installed", hint="pip install 'espan-deploy[serve]'"
        )
    import uvicorn

    from espan_deploy.models import model_file
    from espan_deploy.serve.app import application
    from espan_deploy.serve.desk import Limits
    from espan_deploy.serve.service import ServiceSettings

    limits = Limits(max_megabytes << 20, max_megapixels * 1_000_000, max_waiting, deadline, upload_timeout)
    app = application(
        None if model is None else model_file(model),
        ServiceSettings(batch=None if batch == "auto" else batch, **settings),
        limits,
        token=os.environ.get(TOKEN_VARIABLE) or None,
    )
    config = uvicorn.Config(
        app, host=host, port=port, log_level="error", timeout_graceful_shutdown=int(deadline) + 5, server_header=False
    )
    server = uvicorn.Server(config)
    try:
        sockets = [config.bind_socket()]
    except (OSError, SystemExit) as exc:
        raise InputError(f"cannot listen on {host}:{port}", hint="choose another --port") from exc
    host, port = sockets[0].getsockname()[:2]
    click.echo(f"listening on http://{host}:{port}", err=True)
    # uvicorn stops on a signal, and when all is done sends it once more: to us.
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda caught, _: received.append(caught))
    server.run(sockets)
    if signal.SIGINT in received:
        ctx.exit(INTERRUPTED)
