"""What ``upscale`` does with a cluster: its options."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from espan_deploy.cluster.upscale import Staffed

F = TypeVar("F", bound=Callable[..., Any])


def cluster_options(command: F) -> F:
    """Add the options to a command, which takes them as one ``staffed``: None without a cluster."""

    @wraps(command)
    def gathered(
        *, cluster: str | None, actors: int | None, actor_cpus: int | None, actor_gpus: float | None, **options: Any
    ) -> Any:
        return command(staffed=_staffed(cluster, actors, actor_cpus, actor_gpus), **options)

    result: Any = gathered
    for option in reversed(
        (
            click.option(
                "--cluster",
                metavar="ADDRESS",
                help="Work on a Ray cluster: ray://HOST:10001, or auto: the one this machine is in, or itself alone.",
            ),
            click.option(
                "--actors", type=click.IntRange(1), help="Workers of the cluster.  [default: as many as have room]"
            ),
            click.option(
                "--actor-cpus",
                type=click.IntRange(1),
                help="Cores of each.  [default: its node's, or their share beside GPUs]",
            ),
            click.option(
                "--actor-gpus",
                type=click.FloatRange(0),
                help="GPUs of each, like 1 or 0.5.  [default: 1 where there are any]",
            ),
        )
    ):
        result = option(result)
    return result  # type: ignore[no-any-return]


def _staffed(address: str | None, actors: int | None, cpus: int | None, gpus: float | None) -> Staffed | None:
    if address is None:
        if (actors, cpus, gpus) != (None, None, None):
            raise click.UsageError("--actors, --actor-cpus and --actor-gpus are for --cluster")
        return None
    from espan_deploy.cluster.actors import Resources
    from espan_deploy.cluster.upscale import staffed_by_ray

    return staffed_by_ray(address, Resources(actors, cpus, gpus))
