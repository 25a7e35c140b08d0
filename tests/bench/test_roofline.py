"""Limits worked out by hand, and the costs they stand on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from clocks import FakeClock
from quantising import save_quantised
from synthetic import save_synthetic

from espan_deploy import backends
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.bench.contenders import Model
from espan_deploy.bench.costs import Costs, Layer, graph_costs, starved_layer
from espan_deploy.bench.roofline import (
    GPUS,
    Peaks,
    best_seconds,
    known_gpu,
    layer_bytes,
    layer_limit,
    model_limit,
    probe_cpu,
)

HEAVY = Layer("heavy", "Conv", "3x3, 64→64", macs=1_000_000_000, read=1_000_000, written=1_000_000, weights=0)
LIGHT = Layer("light", "Conv", "1x1, 64→64", macs=1_000_000, read=1_000_000, written=1_000_000, weights=500)
PEAKS = Peaks("device", "test", {"fp32": 100.0, "bf16": 200.0}, ((0.0, 80e9), (1e6, 40e9), (1e7, 10e9)))


def costs(*layers: Layer) -> Costs:
    return Costs(256, 256, 0, sum(layer.macs for layer in layers), 0, len(layers), 0, 3, layers)


def test_a_heavy_layer_is_bound_by_compute() -> None:
    limit = layer_limit(HEAVY, PEAKS, "fp32")
    assert limit is not None
    assert limit.bound == "compute"
    assert limit.ms == pytest.approx(20.0)  # 2e9 operations at 1e11 a second
    assert limit.memory_ms == pytest.approx(0.2)  # 8e6 bytes at 40e9 a second


def test_a_light_layer_is_bound_by_memory() -> None:
    limit = layer_limit(LIGHT, PEAKS, "fp32")
    assert limit is not None
    assert limit.bound == "memory"
    assert limit.ms == pytest.approx((8e6 + 2000) / 40e9 * 1e3)


def test_reduced_precision_moves_half_the_bytes() -> None:
    assert layer_bytes(LIGHT, "bf16") * 2 == layer_bytes(LIGHT, "fp32")
    limit = layer_limit(HEAVY, PEAKS, "bf16")
    assert limit is not None
    assert limit.ms == pytest.approx(10.0)


def test_weights_are_read_once_a_batch() -> None:
    assert layer_bytes(LIGHT, "fp32", 4) == 4 * (4 * 2_000_000 + 500)


def test_bandwidth_is_that_of_the_memory_it_fits_in() -> None:
    assert PEAKS.bandwidth(1000) == 80e9
    assert PEAKS.bandwidth(1e6) == 40e9
    assert PEAKS.bandwidth(5e8) == 10e9
    assert Peaks("d", "t", {}, ((1e6, 7.0),)).bandwidth(10) == 7.0


def test_a_model_is_the_sum_of_its_layers() -> None:
    limit, one, other = (
        f(x, PEAKS, "fp32") for f, x in ((model_limit, costs(HEAVY, LIGHT)), (layer_limit, HEAVY), (layer_limit, LIGHT))
    )  # type: ignore[operator]
    assert limit is not None
    assert limit.ms == pytest.approx(one.ms + other.ms)
    assert limit.bound == "compute"
    assert model_limit(costs(HEAVY), PEAKS, "int8") is None


def test_the_better_of_two_probes_counts() -> None:
    worse = Peaks("device", "test", {"fp32": 90.0, "bf16": 250.0}, ((0.0, 90e9), (1e6, 30e9), (1e7, 10e9)))
    best = PEAKS.best_of(worse)
    assert best.gflops == {"fp32": 100.0, "bf16": 250.0}
    assert best.bandwidths == ((0.0, 90e9), (1e6, 40e9), (1e7, 10e9))


def test_gpus_are_found_by_their_driver_names() -> None:
    a6000 = known_gpu("NVIDIA RTX A6000 (8.6)")
    assert a6000 is not None
    assert a6000.gflops["fp32"] == 38_700.0
    assert a6000.bandwidth(1e9) == 768e9
    assert "GA102" in a6000.basis
    assert known_gpu("NVIDIA A100-SXM4-80GB (8.0)") is not None
    assert known_gpu("NVIDIA RTX 6000 Ada Generation") is None
    assert known_gpu("AMD EPYC") is None
    assert all(gpu.source for gpu in GPUS)


def test_best_run_counts() -> None:
    clock = FakeClock()
    durations = iter([5.0, 2.0, 1.0, 3.0, 4.0])
    assert best_seconds(lambda: clock.sleep(next(durations)), clock, 6.0) == pytest.approx(1.0)


def test_probe_of_this_machine() -> None:
    peaks = probe_cpu("this", [], threads=2, seconds=0.01)
    assert peaks.gflops["fp32"] > 0
    sizes, speeds = zip(*peaks.bandwidths, strict=True)
    assert list(sizes) == sorted(sizes)
    assert min(speeds) > 0


def test_costs_of_a_small_graph(tmp_path: Path) -> None:
    counted = graph_costs(read_model(save_synthetic(tmp_path / "tiny.onnx")), 10, 20)
    first, second = counted.layers
    assert (first.kernel, second.kernel) == ("3x3, 3→8", "3x3, 8→48")
    assert first.macs == 10 * 20 * 8 * 27
    assert second.macs == 10 * 20 * 48 * 72
    assert counted.multiply_adds == first.macs + second.macs
    assert (first.read, first.written) == (600, 1600)
    assert (first.weights, second.weights) == (8 * 27, 48 * 72 + 48)
    assert counted.receptive_field == 5
    # What the second convolution writes and what the pixel shuffle makes of it are alive together.
    assert counted.peak_activation_bytes == 4 * 2 * 48 * 200


def test_costs_of_codes_are_those_of_the_network_they_stand_for(tmp_path: Path) -> None:
    plain = graph_costs(read_model(save_synthetic(tmp_path / "tiny.onnx")), 10, 20)
    codes = graph_costs(read_model(save_quantised(tmp_path / "tiny_int8.onnx")), 10, 20)
    assert [replace(layer, name="", names=()) for layer in codes.layers] == [
        replace(layer, name="", names=()) for layer in plain.layers
    ]
    assert codes.peak_activation_bytes == plain.peak_activation_bytes


def test_the_peak_in_int8_is_probed_in_int8() -> None:
    pytest.importorskip("openvino")
    peaks = probe_cpu("this", [(backends.get("openvino"), "int8")], threads=1, seconds=0.01)
    assert peaks.gflops["int8"] > 0


def test_a_window_larger_than_the_image_is_found(tmp_path: Path) -> None:
    import onnx

    file = read_model(save_synthetic(tmp_path / "tiny.onnx"))
    assert starved_layer(file, 1, 1) is None  # padded, any size will do
    proto = onnx.load_from_string(file.data)
    proto.graph.node[0].attribute[0].ints[:] = [0, 0, 0, 0]
    bare = ModelFile(file.path, proto.SerializeToString(), file.description)
    assert starved_layer(bare, 3, 3) is None
    assert starved_layer(bare, 8, 2) == "w1 has a window of 3 pixels, and 2 to look at"


@pytest.mark.shared
def test_espan_has_its_factsheets_complexity(espan_model: Model) -> None:
    unfolded = espan_model.file.description.unfolded
    assert unfolded["parameters"] == 192_272
    assert unfolded["multiply_adds"] == 12_555_649_024
    assert graph_costs(espan_model.file, 256, 256).receptive_field == 47
