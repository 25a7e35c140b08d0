"""Plans over any size: every pixel once, context enough, batches a permutation."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from synthetic import synthetic_description

from espan_deploy.errors import InputError
from espan_deploy.pipeline.plan import BATCH_PIXELS, BatchPolicy, TilePolicy, fixed_batch, pick_batch
from espan_deploy.pipeline.tiles import plan_spans, plan_tiles, tile_limits

sides = st.integers(1, 700)


@given(side=sides, limit=st.integers(1, 300), halo=st.integers(0, 40), multiple=st.sampled_from([1, 2, 4, 8]))
def test_spans_keep_each_pixel_once_with_its_context(side: int, limit: int, halo: int, multiple: int) -> None:
    side += -side % multiple
    try:
        spans = plan_spans(side, limit, halo, multiple)
    except InputError:
        rounded = halo + -halo % multiple
        assert limit - limit % multiple - 2 * rounded < multiple
        assume(False)
    kept = [pixel for span in spans for pixel in range(span.start, span.stop)]
    assert kept == list(range(side))
    for span in spans:
        assert span.start < span.stop
        assert span.low in (0, span.low - span.low % multiple)
        assert span.low % multiple == 0
        assert span.high - span.low <= max(limit, side if len(spans) == 1 else 0)
        assert span.start - span.low >= halo or span.low == 0
        assert span.high - span.stop >= halo or span.high == side
        assert 0 <= span.low <= span.high <= side
    assert len({span.high - span.low for span in spans}) == 1


@given(height=sides, width=sides, limit=st.integers(20, 200), halo=st.integers(0, 9))
def test_tiles_cover_the_plane_once(height: int, width: int, limit: int, halo: int) -> None:
    covered = np.zeros((height, width), int)
    for row in plan_tiles(height, width, (limit, limit), halo):
        assert len({(tile.rows.start, tile.rows.stop) for tile in row}) == 1
        for tile in row:
            covered[tile.rows.start : tile.rows.stop, tile.columns.start : tile.columns.stop] += 1
    assert (covered == 1).all()


@given(height=st.integers(1, 100_000), width=st.integers(1, 100_000), limit=st.integers(4096, 1 << 21))
def test_limits_hold_the_budget(height: int, width: int, limit: int) -> None:
    rows, columns = tile_limits(height, width, limit)
    assert rows * columns <= limit
    if height * width <= limit:
        assert (rows, columns) == (height, width)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), budget=st.integers(16384, 1 << 20))
def test_automatic_tiles_fit_the_budget(height: int, width: int, budget: int) -> None:
    description = synthetic_description(halo=23)
    for row in TilePolicy("auto", budget).plan(height, width, description):
        for tile in row:
            assert tile.shape[0] * tile.shape[1] <= budget


def test_a_share_of_the_budget_makes_smaller_tiles() -> None:
    policy, description = TilePolicy("auto", 1 << 20), synthetic_description(halo=23)
    whole, half = (
        max(tile.shape[0] * tile.shape[1] for row in policy.plan(4000, 6000, description, share=share) for tile in row)
        for share in (1.0, 0.5)
    )
    assert half <= 1 << 19 < whole <= 1 << 20
    assert policy.plan(4000, 6000, description, share=0.0)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_automatic_tiles_fit_the_engines_profile(height: int, width: int) -> None:
    description = synthetic_description(halo=23)
    for row in TilePolicy("auto", 1 << 20, (256, 320)).plan(height, width, description):
        for tile in row:
            assert tile.shape[0] <= 256
            assert tile.shape[1] <= 320


shapes = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([8, 16])), min_size=1, max_size=60)


@settings(max_examples=200)
@given(waiting=shapes, limit=st.one_of(st.none(), st.integers(1, 9)))
def test_batches_are_a_permutation_of_what_waits(waiting: list[tuple[int, int, int]], limit: int | None) -> None:
    policy = BatchPolicy() if limit is None else fixed_batch(limit)
    left = list(enumerate(waiting))
    seen: list[int] = []
    while left:
        picked = pick_batch([shape for _, shape in left], policy)
        assert picked[0] == 0  # the oldest never starves
        assert len({left[index][1] for index in picked}) == 1
        assert limit is None or len(picked) <= limit
        seen += [left[index][0] for index in picked]
        left = [item for index, item in enumerate(left) if index not in picked]
    assert sorted(seen) == list(range(len(waiting)))


def test_large_images_go_alone_by_default() -> None:
    side = int(BATCH_PIXELS**0.5) + 1
    assert pick_batch([(side, side, 8)] * 5, BatchPolicy()) == [0]
    assert pick_batch([(side, side, 8)] * 5, fixed_batch(3)) == [0, 1, 2]
