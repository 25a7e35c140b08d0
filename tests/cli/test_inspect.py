"""``espan-deploy inspect``: what a file is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, save

from espan_deploy.cli.main import main
from espan_deploy.networks import NETWORKS
from espan_deploy.networks.span.espan import ESPAN


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


@pytest.mark.parametrize("training_form", [False, True])
def test_a_checkpoint(tmp_path: Path, training_form: bool) -> None:
    path = tmp_path / "espan.pth"
    torch.save(ESPAN(training_form=training_form).state_dict(), path)
    facts = json.loads(inspect(path, "--json").stdout)
    assert facts["kind"] == "checkpoint"
    assert facts["form"] == ("training" if training_form else "deploy")
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (facts["scale"], facts["halo"], facts["value_range"]) == (4, 23, 1.0)
    if not training_form:
        shown = inspect(path).stdout
        assert "0.1923 M" in shown
        assert "12.5556 G at 256x256" in shown


def test_a_model_shows_its_cost_before_and_after_folding(tmp_path: Path) -> None:
    torch.save(ESPAN().state_dict(), tmp_path / "espan.pth")
    runner = CliRunner()
    assert runner.invoke(main, ["export", str(tmp_path / "espan.pth"), "-o", str(tmp_path / "e.onnx")]).exit_code == 0
    shown = inspect(tmp_path / "e.onnx").stdout
    assert "12.4214 G at 256x256" in shown
    assert "12.5556 G multiply-adds" in shown
    assert "espan.pth" in shown


def test_a_graph_from_elsewhere(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, "h", "w"])],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "relu.onnx")
    facts = json.loads(inspect(tmp_path / "relu.onnx", "--json").stdout)
    assert facts["kind"] == "ONNX graph from elsewhere"
    assert (facts["scale"], facts["halo"], facts["convolutions"]) == (1, 0, 0)


def test_the_networks_that_are_known() -> None:
    rows = json.loads(inspect("--networks", "--json").stdout)["networks"]
    assert [row["name"] for row in rows] == [entry.name for entry in NETWORKS]
    assert "mbga" in inspect("--networks").stdout


def test_the_networks_are_grouped_as_their_files_are() -> None:
    rows = json.loads(inspect("--networks", "--json").stdout)["networks"]
    folders = {entry.name: entry.module.split(".")[-2] for entry in NETWORKS}
    assert {row["name"]: row["folder"] for row in rows} == folders
    said = [line for line in inspect("--networks").stdout.splitlines() if "(networks/" in line]
    assert [line.rsplit("/", 1)[1].rstrip(")") for line in said] == list(dict.fromkeys(folders.values()))


@pytest.mark.parametrize("arguments", [[], ["file.onnx", "--networks"]])
def test_one_question_at_a_time(arguments: list[str]) -> None:
    assert inspect(*arguments).exit_code == 2


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a" * 40])
def test_files_that_are_nothing(tmp_path: Path, content: bytes) -> None:
    for name in ("file.onnx", "file.pth", "file.safetensors"):
        (tmp_path / name).write_bytes(content)
        result = inspect(tmp_path / name)
        assert result.exit_code == 1, (name, result.output)
        assert "error:" in result.stderr
        assert "Traceback" not in result.output


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no such file" in inspect(tmp_path / "no.onnx").stderr
