"""A worker that dies of a poisonous picture, in a module that a node's processes can load by itself."""

from __future__ import annotations

import os
import signal
from typing import Any

from espan_deploy.cluster.actors import ActorWorker
from espan_deploy.cluster.worker import Orders

POISON = b"poison"
"""In a file's bytes, what kills whoever looks at it."""


class MortalWorker(ActorWorker):
    """A worker whose process a poisonous picture kills, as one does that brings a decoder down."""

    def __init__(self, orders: Orders, name: str) -> None:
        from espan_deploy.pipeline import encoded

        real = encoded.read_size

        def deadly(data: bytes) -> Any:
            if POISON in data:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(data)

        encoded.read_size = deadly  # type: ignore[assignment]
        super().__init__(orders, name)
