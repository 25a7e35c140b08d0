"""What is found out about a model on this machine: on what image, and where the figure is kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.errors import InputError
from espan_deploy.files import cache_folder, write_atomically
from espan_deploy.machine import processor_name

CACHE_FILE = "measured.json"


def made_up_photograph(side: int, multiple: int) -> NDArray[np.uint8]:
    """(H, W, 3): gradients, edges, and texture with a photograph's spectrum."""
    side += -side % multiple
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side] / side
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij"))
    frequency[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, side, side))) / frequency, axes=(1, 2)).real
    noise /= noise.std()
    planes = 0.5 + 0.15 * noise + 0.3 * np.stack([x - 0.5, y - 0.5, x - y])
    planes[:, (x - 0.3) ** 2 + (y - 0.4) ** 2 < 0.02] += 0.4
    planes[:, (np.abs(x + y - 1.3) < 0.03)] = 0.05
    return np.ascontiguousarray((planes.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))


def remembered(what: Sequence[str], kinds: tuple[type, ...], measure: Callable[[], Any]) -> Any:
    """A finding from the user's cache, or measured now and kept there: anything that JSON holds.

    what: everything it depends on, the machine's processor apart. kinds: its types; what else stands there is not used.
    """
    key = "/".join((*what, processor_name()))
    kept = _read_cache()
    if key in kept and isinstance(kept[key], kinds):
        return kept[key]
    finding = measure()
    # Without a place to keep it, it is measured again next time.
    with contextlib.suppress(OSError, InputError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomically(cache_folder() / CACHE_FILE, json.dumps({**_read_cache(), key: finding}).encode())
    return finding


def _read_cache() -> dict[str, object]:
    try:
        document = json.loads((cache_folder() / CACHE_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
