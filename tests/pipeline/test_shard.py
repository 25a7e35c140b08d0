"""A division of files among runs that know nothing of each other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torture
from PIL import Image

from espan_deploy.pipeline.assignment import Assignment
from espan_deploy.pipeline.opened import UpscaleSettings
from espan_deploy.pipeline.shard import Shard


def shards(of: int) -> list[Shard]:
    return [Shard(number, of) for number in range(1, of + 1)]


def test_every_name_falls_to_one_of_them_and_always_the_same() -> None:
    names = [f"frames/frame.{index:05}.png" for index in range(4000)]
    owners = [[shard.number for shard in shards(16) if shard.holds(name)] for name in names]
    assert {len(owner) for owner in owners} == {1}
    counts = Counter(owner[0] for owner in owners)
    assert len(counts) == 16
    assert max(counts.values()) < 1.3 * min(counts.values())  # 250 each, give or take four deviations of 16
    # What other machines and later versions must agree on.
    assert [owner[0] for owner in owners[:12]] == [11, 11, 2, 11, 9, 3, 16, 13, 15, 5, 14, 6]


@pytest.mark.parametrize(("number", "of"), [(0, 4), (5, 4), (1, 0)])
def test_no_such_part(number: int, of: int) -> None:
    with pytest.raises(ValueError, match="no part"):
        Shard(number, of)


def test_no_two_give_a_result_the_same_name(tmp_path: Path) -> None:
    """a.jpg and a.png both want to be a.png; who gets it does not depend on the division."""
    source = tmp_path / "in"
    source.mkdir()
    for index in range(20):
        for ending in ("png", "jpg", "bmp"):
            Image.fromarray(torture.picture(4, 4, seed=index)).save(source / f"{index}.{ending}")

    def named(shard: Shard | None) -> dict[str, tuple[int, str]]:
        settings = UpscaleSettings(format="png", shard=shard)
        assignment = Assignment(source, tmp_path / "out", None, settings)
        found = {file.entry.name: (file.number, file.output) for file in assignment.files()}
        assert assignment.total == len(found)
        return found

    whole = named(None)
    parts = [named(shard) for shard in shards(5)]
    assert sum(map(len, parts)) == len(whole) == 60
    merged = {name: file for part in parts for name, file in part.items()}
    assert merged == whole
    assert len({output for _, output in merged.values()}) == 60
