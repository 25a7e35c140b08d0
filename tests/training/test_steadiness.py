from torch import Tensor
from torch.nn import functional as F

from training.steadiness import steadiness


def enlarged_fourfold(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=4)


def test_what_stays_in_the_range_is_steady() -> None:
    found = steadiness(enlarged_fourfold, count=30, side=16, seed=1)
    assert (found.beyond, found.lowest, found.highest) == (0, 0.0, 1.0)
    assert 10 < found.pages < 40


def test_drawings_that_leave_the_range_and_those_without_a_number_count() -> None:
    def first_of_four(value: float) -> int:
        def network(x: Tensor) -> Tensor:
            y = enlarged_fourfold(x)
            y[::4, 1, 5, 5] = value
            return y

        return steadiness(network, count=40, side=16, seed=1).beyond

    assert first_of_four(1.9) == 0
    assert first_of_four(-1.5) == first_of_four(2.1) == first_of_four(float("nan")) == 10
