"""The cache of engines: listed, cleared, and shared by threads and processes that build at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from espan_deploy.engine import cache as caching
from espan_deploy.engine.build import engine_from_onnx
from espan_deploy.errors import EngineBuildError, InputError
from espan_deploy.recipes import Recipe

pytestmark = pytest.mark.usefixtures("cache")


def test_the_cache_is_listed_and_cleared(model: Path, cpu_recipe: Recipe, cache: Path) -> None:
    assert caching.list_cache() == []
    assert caching.clear_cache() == (0, 0)
    first = engine_from_onnx(model, cpu_recipe)
    engine_from_onnx(model, replace(cpu_recipe, precision="fp32"))
    entries = caching.list_cache(verify=True)
    assert len(entries) == 2
    assert all(entry.problem == "" and entry.manifest is not None for entry in entries)
    count, freed = caching.clear_cache()
    assert (count, freed) == (2, sum(entry.bytes for entry in entries))
    assert not first.path.exists()
    assert caching.list_cache() == []
    assert cache.is_dir()


def test_a_cache_that_cannot_be_written(model: Path, cpu_recipe: Recipe, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(InputError):
        engine_from_onnx(model, cpu_recipe)


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process, with this one's environment."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


BUILD = """
import sys
from pathlib import Path
from espan_deploy.engine.build import engine_from_onnx
from espan_deploy.recipes import load_recipe
recipe = load_recipe(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
result = engine_from_onnx(Path(sys.argv[1]), recipe)
print(result.from_cache, result.manifest.engine_sha256)
"""

HOLD = """
import sys, time
from pathlib import Path
from espan_deploy.engine.cache import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_concurrent_builds_build_once(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('title = "x"\nbackend = "onnxruntime"\nprecision = "fp16"\n')
    workers = [python(BUILD, model, recipe) for _ in range(3)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    outcomes = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        outcomes.append(worker.communicate(timeout=120)[0].split())
    assert sorted(from_cache for from_cache, _ in outcomes) == ["False", "True", "True"]
    assert len({sha for _, sha in outcomes}) == 1


def test_a_lock_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    holder = python(HOLD, path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with caching.lock(path, wait=False) as held:
        assert not held
    holder.kill()
    holder.communicate()
    with caching.lock(path, wait=False) as held:
        assert held


def test_a_lock_is_waited_for_and_not_cleared(tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    order: list[str] = []
    with caching.lock(path) as held:
        assert held
        with caching.lock(path, wait=False) as second:
            assert not second

        def wait() -> None:
            with caching.lock(path, waiting=lambda: order.append("waiting")):
                order.append("held")

        thread = threading.Thread(target=wait)
        thread.start()
        while not order:
            time.sleep(0.01)
        order.append("released")
    thread.join()
    assert order == ["waiting", "released", "held"]
    timely = caching.lock(path, timeout=0.0)
    with caching.lock(path), pytest.raises(EngineBuildError, match="another process has been building"), timely:
        pass
