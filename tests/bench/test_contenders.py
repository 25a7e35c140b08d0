"""Which engines and precisions take part in a benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
from quantising import save_quantised
from synthetic import save_synthetic

from espan_deploy.backends.model import read_model
from espan_deploy.bench.contenders import Model, engine_choices, open_contenders
from espan_deploy.errors import BackendUnavailableError


def opened(path: Path, *engines: str) -> list[str]:
    model = Model("Tiny", read_model(path))
    contenders = open_contenders([model], engine_choices(engines), threads=1, against_torch=False)
    for contender in contenders:
        contender.runner.close()
    return [f"{contender.engine} {contender.precision}" for contender in contenders]


def test_int8_takes_part_where_there_is_a_file_of_it(tmp_path: Path) -> None:
    plain = save_synthetic(tmp_path / "tiny.onnx")
    before = opened(plain, "all")
    assert not any(name.endswith("int8") for name in before)
    alone = save_quantised(tmp_path / "tiny_int8.onnx", of=plain)
    both = opened(plain, "all")
    assert set(both) - set(before) == {name for name in both if name.endswith("int8")} != set()
    assert set(opened(alone, "all")) == set(both) - set(before)


def test_int8_that_is_named_must_be_there(tmp_path: Path) -> None:
    plain = save_synthetic(tmp_path / "tiny.onnx")
    for engines in (["onnxruntime:int8"], ["all", "onnxruntime:int8"]):
        with pytest.raises(BackendUnavailableError, match="has no INT8 form beside it"):
            opened(plain, *engines)
    save_quantised(tmp_path / "tiny_int8.onnx", of=plain)
    assert opened(plain, "onnxruntime:int8") == ["onnxruntime int8"]
