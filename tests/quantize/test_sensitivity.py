"""Which layer stays in float next: by error and cost, whatever else the machine was doing when costs were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from espan_deploy.precision.gate import Comparison
from espan_deploy.quantize.sensitivity import (
    TIMED_LAYERS,
    Decision,
    Sensitivity,
    free_layers,
    next_decisions,
    share_to_go,
    worth_timing,
)
from espan_deploy.recipes import Budget

LAYERS = (
    Sensitivity("head", 3e-6, 0.04, float_ms=2.0, network_ms=40.0),
    Sensitivity("body", 2e-7, 0.05, float_ms=3.0, network_ms=40.0),
    Sensitivity("tail", 5e-6, 0.07, float_ms=4.0, network_ms=40.0),
)

SAME = Comparison(
    images=1,
    values=1,
    psnr_db=50.0,
    worst_psnr_db=50.0,
    worst_image="a",
    largest_error=1,
    off_by_one=0.0,
    off_by_more=0.0,
    nonfinite=0,
)

BUDGET = Budget(min_psnr_db=40.0, max_truth_drop_db=0.03, max_share_off_by_more=1.0)


def next_to_keep(layers: Sequence[Sensitivity], kept: tuple[str, ...], share: float) -> tuple[str, ...]:
    """Of layers that cannot read twice."""
    found = next_decisions(layers, dict.fromkeys(kept, "float"), share)
    assert set(found.values()) == {"float"}
    return tuple(found)


def test_one_layer_is_enough_for_a_small_excess() -> None:
    assert next_to_keep(LAYERS, (), 0.1) == ("head",)
    assert next_to_keep(LAYERS, ("head",), 0.1) == ("tail",)


def test_a_large_excess_takes_as_many_as_hold_it_and_no_more() -> None:
    assert next_to_keep(LAYERS, (), 0.9) == ("head", "tail")


@pytest.mark.parametrize("unlucky_ms", [-30.0, 0.0, 200.0])
def test_a_time_that_something_else_disturbed_does_not_decide(unlucky_ms: float) -> None:
    """The layer with thirty times less error is neither taken for free nor is the worst passed over."""
    disturbed = [replace(LAYERS[1], float_ms=unlucky_ms), *(LAYERS[0], replace(LAYERS[2], float_ms=unlucky_ms))]
    assert next_to_keep(disturbed, (), 0.9)[:2] in (("head", "tail"), ("tail", "head"))


def test_without_times_multiply_adds_are_the_cost() -> None:
    untimed = [replace(layer, float_ms=None, network_ms=None) for layer in LAYERS]
    assert next_to_keep(untimed, (), 0.0) == ("head",)
    assert [layer.cost for layer in untimed] == [0.04, 0.05, 0.07]


@pytest.mark.parametrize(("share", "expected"), [(0.1, {"tail": "twice"}), (0.99, {"tail": "float", "head": "float"})])
def test_reading_twice_comes_before_float_where_it_is_cheaper(share: float, expected: dict[str, Decision]) -> None:
    layers = [
        replace(LAYERS[0], can_twice=True, twice_ms=1.5),
        LAYERS[1],
        replace(LAYERS[2], can_twice=True, twice_ms=1.0),
    ]
    found = next_decisions(layers, {}, share)
    assert found.items() >= expected.items()
    assert next_decisions(layers, {"tail": "twice"}, 0.0) == {"head": "float"}


def test_reading_twice_must_cost_less_than_float() -> None:
    dear = [replace(layer, can_twice=True, twice_ms=9.0) for layer in LAYERS]
    assert [layer.twice_cost for layer in dear] == [
        pytest.approx(0.6 * 0.04 * 40 * 2),
        pytest.approx(2.4),
        pytest.approx(3.36),
    ]
    dear = [replace(layer, float_ms=0.1) for layer in dear]
    assert set(next_decisions(dear, {}, 0.9).values()) == {"float"}


def test_nothing_is_left_to_decide() -> None:
    assert next_decisions(LAYERS, dict.fromkeys(("head", "body", "tail"), "float"), 0.5) == {}


def test_only_the_worst_are_timed_and_others_cost_what_is_guessed() -> None:
    many = [Sensitivity(f"layer {index}", 1e-9 * index, 0.02) for index in range(40)]
    timed = worth_timing([*many, *LAYERS])
    assert len(timed) + len(LAYERS) == TIMED_LAYERS
    assert {each.layer for each in timed} == {f"layer {index}" for index in range(31, 40)}
    guessed = replace(LAYERS[1], float_ms=None)
    assert guessed.cost == pytest.approx(1.5 * 0.05 * 40)
    assert not replace(guessed, multiply_adds=0.001).free


def test_only_small_layers_are_free() -> None:
    assert replace(LAYERS[0], multiply_adds=0.005, float_ms=0.1).free
    assert not replace(LAYERS[0], float_ms=-1.0).free
    assert not replace(LAYERS[0], multiply_adds=0.02, float_ms=1.0).free


def test_what_holds_no_error_gains_nothing_by_being_free() -> None:
    small = replace(LAYERS[0], multiply_adds=0.005, float_ms=0.1)
    layers = [small, replace(small, layer="idle", error=1e-9), *LAYERS[1:]]
    assert free_layers(layers) == ("head",)


def test_the_share_that_must_go_is_what_is_beyond_the_budget() -> None:
    assert share_to_go(SAME, BUDGET) == 0
    assert share_to_go(replace(SAME, reference_truth_db=30.0, truth_db=29.94), BUDGET) == pytest.approx(0.5)
    assert share_to_go(replace(SAME, psnr_db=30.0), BUDGET) == pytest.approx(0.9)
