"""OpenVINO from several threads at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import save_synthetic

pytest.importorskip("openvino")

SECONDS = 100
"""For what takes one: a thread that waits for ever would wait longer."""

FIRST_ARRAYS = """
import sys, threading
from espan_deploy.backends.openvino_runtime import openvino_module
model = openvino_module().Core().read_model(sys.argv[1])
constant = next(node for node in model.get_ops() if node.get_type_name() == "Constant")
sys.setswitchinterval(1e-6)
together = threading.Barrier(4)

def take() -> None:
    together.wait()
    for _ in range(50):
        pass
    constant.data

threads = [threading.Thread(target=take, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("_attempt", range(3))
def test_first_arrays_in_several_threads_do_not_wait_for_each_other(tmp_path: Path, _attempt: int) -> None:
    """Six of ten such processes hung before OpenVINO was made to find numpy in one thread."""
    model = save_synthetic(tmp_path / "tiny.onnx")
    subprocess.run([sys.executable, "-c", FIRST_ARRAYS, str(model)], check=True, timeout=SECONDS)
