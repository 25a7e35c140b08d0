"""The tests that wait for a GPU, here on the stand-in: what it can show is that they would run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

WAITING = Path(__file__).parent.parent / "engines" / "test_gpu.py"

# By its path: in a run of all tests, other folders may have a module named like this one's.
spec = importlib.util.spec_from_file_location("waiting_for_a_gpu", WAITING)
assert spec is not None
assert spec.loader is not None
waiting = importlib.util.module_from_spec(spec)
spec.loader.exec_module(waiting)

device, name = waiting.device, waiting.name
globals().update(
    {
        key: value
        for key, value in vars(waiting).items()
        if key.startswith("test_") and any(mark.name == "gpu" for mark in getattr(value, "pytestmark", ()))
    }
)
