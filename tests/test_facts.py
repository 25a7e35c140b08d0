"""What a network takes, found by trying functions that take only certain images."""

from __future__ import annotations

import numpy as np
import pytest

from espan_deploy.errors import ExportError
from espan_deploy.facts import Forward, Planes, Takes, find_max_batch, find_takes


def enlarged(x: Planes, scale: int = 2) -> Planes:
    return x.repeat(scale, 2).repeat(scale, 3)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_a_network_that_takes_everything(scale: int) -> None:
    assert find_takes(lambda x: enlarged(x, scale), "n") == Takes(scale)


@pytest.mark.parametrize(("multiple", "least"), [(1, 5), (2, 2), (3, 3), (4, 12), (8, 16), (16, 16), (7, 7), (1, 47)])
def test_the_multiple_and_the_least_are_found(multiple: int, least: int) -> None:
    def forward(x: Planes) -> Planes:
        if min(x.shape[2:]) < least or x.shape[2] % multiple or x.shape[3] % multiple:
            raise ValueError("no")
        return enlarged(x)

    takes = find_takes(forward, "n")

    assert (takes.scale, takes.multiple, takes.least, takes.fixed) == (2, multiple, least, None)
    assert takes.fit(1, least + 1) == (least, -(-(least + 1) // multiple) * multiple)


def test_a_network_that_makes_another_size_of_what_it_does_not_take() -> None:
    takes = find_takes(lambda x: enlarged(x[:, :, : x.shape[2] // 4 * 4, : x.shape[3] // 4 * 4]), "n")

    assert (takes.multiple, takes.least) == (4, 4)


def test_a_network_of_one_size() -> None:
    def forward(x: Planes) -> Planes:
        return enlarged(x + np.zeros((1, 1, 96, 96), np.float32))

    takes = find_takes(forward, "n")

    assert takes.fixed == (96, 96)
    assert takes.fit(10, 200) == (96, 96)


def of_multiples(multiple: int) -> Forward:
    def forward(x: Planes) -> Planes:
        if x.shape[2] % multiple or x.shape[3] % multiple:
            raise ValueError("no")
        return enlarged(x)

    return forward


def test_what_is_said_of_sizes_is_tried_first_and_not_believed() -> None:
    assert find_takes(of_multiples(96), "n", stated=Takes(2, 96, 96)).multiple == 96
    assert find_takes(of_multiples(4), "n", stated=Takes(2, 16, 64)) == find_takes(of_multiples(4), "n")
    assert find_takes(of_multiples(4), "n", stated=Takes(2)).multiple == 4


def test_a_small_multiple_alone_is_not_the_least() -> None:
    def forward(x: Planes) -> Planes:
        for side in x.shape[2:]:
            if 14 + -side % 4 >= side:
                raise ValueError("more to mirror than there is")
        return enlarged(x)

    assert find_takes(forward, "n").least == 18  # 16 alone is taken, 17 is not


@pytest.mark.parametrize(("padded_to", "multiple"), [(2, 4), (2, 8), (4, 8), (4, 16)])
def test_sizes_next_to_those_of_a_multiple_are_none(padded_to: int, multiple: int) -> None:
    """Padded to even sizes and halved twice, 51 and 52 are taken beside 48, and then 55 and 56."""

    def forward(x: Planes) -> Planes:
        if any(-(-side // padded_to) * padded_to % multiple for side in x.shape[2:]):
            raise ValueError("no")
        return enlarged(x)

    takes = find_takes(forward, "n")

    assert (takes.multiple, takes.least) == (multiple, multiple)


def test_a_size_that_is_refused_against_all_that_was_tried_is_one_message() -> None:
    def forward(x: Planes) -> Planes:
        if x.shape[2:] == (20, 24):
            raise ValueError("of all sizes")
        return enlarged(x)

    with pytest.raises(ExportError, match="n takes images of other sizes and none of 20x24: ValueError: of all sizes"):
        find_takes(forward, "n")


def test_another_scale_than_is_said_is_an_error() -> None:
    with pytest.raises(ExportError, match="n should enlarge 4 times by what its weights say, and does 2"):
        find_takes(enlarged, "n", stated=Takes(4))


def test_a_network_of_squares_takes_one_size() -> None:
    def forward(x: Planes) -> Planes:
        if x.shape[2] != x.shape[3] or x.shape[2] % 16:
            raise ValueError("no")
        return enlarged(x)

    assert find_takes(forward, "n").fixed == (48, 48)


def test_images_that_change_each_other_go_one_by_one() -> None:
    def mixed(x: Planes) -> Planes:
        return enlarged(x - x.mean())

    def single(x: Planes) -> Planes:
        return enlarged(x.reshape(1, *x.shape[1:]))

    assert find_takes(mixed, "n").max_batch == find_takes(single, "n").max_batch == 1
    assert find_max_batch(enlarged, Takes(2)) is None


def in_blocks(x: Planes, side: int) -> Planes:
    """Each pixel the mean of its block."""
    if x.shape[2] % side or x.shape[3] % side:
        raise ValueError("no")
    count, channels, height, width = x.shape
    means = x.reshape(count, channels, height // side, side, width // side, side).mean((3, 5))
    return enlarged(means, 2 * side)


def test_the_padding_is_the_one_that_disturbs_least() -> None:
    """What follows a pixel is most like the pixel itself; but how much pixels differ, only a mirrored image keeps."""

    def texture(x: Planes) -> Planes:
        return in_blocks(np.abs(x - np.roll(x, 1, -1)), 8)

    assert find_takes(lambda x: in_blocks(x, 2), "n").padding == "edge"
    assert find_takes(texture, "n").padding == "reflect"


REFUSED = {
    "grey": (lambda x: enlarged(x.reshape(len(x), 1, *x.shape[2:])), "takes grey images"),
    "four channels": (lambda x: enlarged(x.reshape(len(x), 4, *x.shape[2:])), "takes images of four channels"),
    "no whole scale": (lambda x: enlarged(x)[:, :, 1:], r"makes \(1, 3, 95, 96\) of an image"),
    "chance": (lambda x: enlarged(x + np.random.default_rng().random()), "another result each time"),
    "nothing": (lambda x: x.no_such, "cannot upscale .* AttributeError"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_upscaler_of_rgb_is_named(what: str) -> None:
    forward, message = REFUSED[what]

    with pytest.raises(ExportError, match=message):
        find_takes(forward, "n")
