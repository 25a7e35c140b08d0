"""Checkpoint files, good and bad: what is found in them, and what is said of those that hold nothing."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from espan_deploy.checkpoints import load_checkpoint
from espan_deploy.errors import CheckpointError

TENSORS = {"conv.weight": torch.arange(12.0).view(1, 3, 2, 2), "conv.bias": torch.ones(1)}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(path) in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("content", "nested_under"),
    [
        (TENSORS, ()),
        ({"params": TENSORS}, ("params",)),
        ({"params": {"conv.weight": torch.zeros(1)}, "params_ema": TENSORS}, ("params_ema",)),
        ({"epoch": 3, "state_dict": TENSORS, "optimizer": {"lr": 0.1}}, ("state_dict",)),
        ({"model": {"net_g": TENSORS}}, ("model", "net_g")),
        ({**TENSORS, "epoch": 3}, ()),
    ],
    ids=["bare", "params", "averaged first", "beside others", "twice nested", "with a number"],
)
def test_finds_the_state_dict_where_frameworks_nest_it(
    tmp_path: Path, content: dict[str, Any], nested_under: tuple[str, ...]
) -> None:
    checkpoint = load_checkpoint(saved(tmp_path / "weights.pth", content))

    assert checkpoint.nested_under == nested_under
    assert checkpoint.shapes == {"conv.weight": (1, 3, 2, 2), "conv.bias": (1,)}
    assert torch.equal(checkpoint.tensors["conv.weight"], TENSORS["conv.weight"])


@pytest.mark.parametrize("prefixes", [(), ("module.",), ("_orig_mod.",), ("module.", "_orig_mod."), ("net_g.",)])
def test_strips_the_prefixes_of_wrappers(tmp_path: Path, prefixes: tuple[str, ...]) -> None:
    wrapped = {"".join(prefixes) + key: tensor for key, tensor in TENSORS.items()}

    checkpoint = load_checkpoint(saved(tmp_path / "weights.pth", wrapped))

    assert checkpoint.tensors.keys() == TENSORS.keys()
    assert checkpoint.prefixes == prefixes


def test_keeps_a_prefix_that_only_some_keys_have(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(saved(tmp_path / "w.pth", {"model.a": torch.ones(1), "b": torch.ones(1)}))

    assert set(checkpoint.tensors) == {"model.a", "b"}


def test_reads_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(TENSORS, path)

    checkpoint = load_checkpoint(path)

    assert torch.equal(checkpoint.tensors["conv.bias"], TENSORS["conv.bias"])
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_reads_the_old_format_of_torch_save(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pth", TENSORS, _use_new_zipfile_serialization=False)

    assert load_checkpoint(path).shapes["conv.bias"] == (1,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gives_float32_whatever_was_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {"weight": torch.ones(2, dtype=dtype), "steps": torch.tensor(3)}

    tensors = load_checkpoint(saved(tmp_path / "w.pth", stored)).tensors

    assert tensors["weight"].dtype == torch.float32
    assert tensors["steps"].dtype == torch.int64


class Malicious:
    """Unpickling this would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_never_runs_code_from_the_file(tmp_path: Path) -> None:
    made = tmp_path / "made"

    error = refusal(saved(tmp_path / "weights.pth", {"params": TENSORS, "extra": Malicious(made)}))

    assert not made.exists()
    assert "mkdir" in error.message
    assert "refused" in error.message
    assert "state_dict" in error.hint


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_never_runs_code_from_a_bare_pickle(tmp_path: Path, protocol: int) -> None:
    made, path = tmp_path / "made", tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"extra": Malicious(made)}, protocol))

    refusal(path)

    assert not made.exists()


def test_refuses_a_pickled_module(tmp_path: Path) -> None:
    error = refusal(saved(tmp_path / "model.pth", torch.nn.Conv2d(3, 3, 1)))

    assert "torch.nn.modules.conv.Conv2d" in error.message


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
def test_says_when_a_file_is_truncated(tmp_path: Path, zipped: bool, kept: float) -> None:
    path = saved(tmp_path / "w.pth", TENSORS, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])

    assert "damaged" in refusal(path).message


@pytest.mark.parametrize("kept", [4, 40, -4])
def test_says_when_a_safetensors_file_is_truncated(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "w.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:kept])

    assert "safetensors" in refusal(path).message


@pytest.mark.parametrize("name", ["notes.pth", "notes.safetensors", "notes.txt"])
@pytest.mark.parametrize("text", [b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>", b"\x80\x10"])
def test_says_when_a_file_is_no_checkpoint(tmp_path: Path, name: str, text: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(text)

    error = refusal(path)

    assert "damaged" in error.message
    assert error.hint


def test_says_when_a_file_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty.pth"
    path.touch()

    assert "is empty" in refusal(path).message


def test_says_when_the_path_is_a_folder(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path).message


def test_says_when_nothing_is_there(tmp_path: Path) -> None:
    assert "no such checkpoint" in refusal(tmp_path / "weights.pth").message


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"params": {}}, 7], ids=repr)
def test_says_what_it_found_instead_of_a_state_dict(tmp_path: Path, content: Any) -> None:
    assert "holds no state dict" in refusal(saved(tmp_path / "w.pth", content)).message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    error = refusal(saved(tmp_path / "w.pth", {**TENSORS, "broken.weight": torch.tensor([1.0, value])}))

    assert "1 of 3 tensors, first broken.weight" in error.message


def test_of_several_state_dicts_the_averaged_one_is_read_and_the_others_are_at_hand(tmp_path: Path) -> None:
    raw, averaged = {"module.a": torch.ones(1)}, {"module.a": torch.zeros(1)}
    path = saved(tmp_path / "w.pth", {"params": raw, "params_ema": averaged, "iter": 7})

    checkpoint = load_checkpoint(path)

    assert (checkpoint.nested_under, checkpoint.tensors["a"].item()) == (("params_ema",), 0)
    other = checkpoint.under("params")
    assert (other.nested_under, other.tensors["a"].item(), other.sha256) == (("params",), 1, checkpoint.sha256)


def test_one_state_dict_can_be_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", {"params": {"a": torch.ones(1)}, "params_ema": {"a": torch.zeros(1)}})

    for key, value in (("params", 1), ("params_ema", 0)):
        checkpoint = load_checkpoint(path, weights=key)
        assert (checkpoint.nested_under, checkpoint.tensors["a"].item()) == ((key,), value)
        assert not checkpoint.others

    with pytest.raises(CheckpointError, match="no weights under ema; it has params_ema, params"):
        load_checkpoint(path, weights="ema")
    with pytest.raises(CheckpointError, match="one state dict, not nested"):
        load_checkpoint(saved(tmp_path / "bare.pth", {"a": torch.ones(1)}), weights="params")
