"""The house: imports follow the data backwards, runtimes stay in their rooms, --help loads none of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "espan_deploy"

LAYERS = (
    ("errors",),
    ("apart", "cgroups", "description", "files", "models", "products", "timing"),
    ("machine",),
    ("recipes",),
    ("checkpoints",),
    ("networks",),
    ("graph",),
    ("onnx_export",),
    ("fold",),
    ("pixels",),
    ("backends",),
    ("precision",),
    ("quantize",),
    ("engine",),
    ("sources",),
    ("facts",),
    ("proof",),
    ("proof_tiles",),
    ("proof_nodes",),
    ("deploy",),
    ("stores",),
    ("pipeline",),
    ("cluster", "serve", "video"),
    ("upscaler",),
    ("bench",),
    ("doctor",),
    ("cli",),
)
"""In the order data flows. A module may import from its own room and from those before it."""

RUNTIMES = {
    *("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "pycuda"),
    *("av", "obstore", "boto3", "ray", "spandrel", "torchvision"),
}

RUNTIME_ROOMS = ("networks/", "backends/", "engine/", "stores/", "video/", "cluster/")
"""Where a runtime may be imported; torch also where checkpoints are read and networks exported, inside functions."""

LOADED_IN = {"torch": "networks/", "av": "video/"}
"""Rooms that are imported late themselves, and so may load their runtime with them."""

MAX_LINES = 400


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every module imported, and whether that happens when the file is loaded."""
    top_level = {id(node) for node in ast.iter_child_nodes(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top_level) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "espan_deploy" else [node.module]
            yield from ((name, id(node) in top_level) for name in names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_backwards_only(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    rank = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    assert room in rank, f"{room} has no place in LAYERS"
    for name, _ in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "espan_deploy" and len(parts) > 1 and parts[1] in rank and parts[1] != room:
            assert rank[parts[1]] < rank[room], f"{room} imports {name}, which comes after it"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_runtimes_are_imported_late_and_in_their_rooms(path: Path) -> None:
    relative = str(path.relative_to(PACKAGE))
    for name, at_load in imports(ast.parse(path.read_text())):
        runtime = name.split(".")[0]
        if runtime not in RUNTIMES:
            continue
        if runtime != "torch":
            assert relative.startswith(RUNTIME_ROOMS), f"{relative} imports {runtime}"
        at_home = relative.startswith(LOADED_IN.get(runtime, "nowhere/"))
        assert not at_load or at_home, f"{relative} imports {runtime} when it is loaded"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_about_one_thing(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    if room_of(path) == "cli":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "exit"), f"{path.name}:{node.lineno}"
        for name, _ in imports(node) if isinstance(node, ast.Import | ast.ImportFrom) else ():
            assert name != "click", f"{path.name} imports click"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([c, "--help"] for c in ("export", "upscale", "bench", "models", "inspect"))],
)
def test_help_loads_no_runtime(arguments: list[str]) -> None:
    """Also not onnx: help must answer at once."""
    script = (
        "import sys\n"
        "from espan_deploy.cli.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as exc: assert not exc.code, exc.code\n"
        f"loaded = sorted(m for m in {sorted(RUNTIMES | {'onnx', 'onnx_ir'})!r} if m in sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if arguments[0] not in ("--help", "--version"):
        assert "Example" in done.stdout
