"""What results are called."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espan_deploy.pipeline.names import outputs
from espan_deploy.stores import Entry


def named(names: list[str], format_name: str) -> dict[str, str]:
    return {named.entry.name: named.output for named in outputs(map(Entry, sorted(names)), format_name)}


@pytest.mark.parametrize(
    ("names", "format_name", "expected"),
    [
        (["a.jpg"], "same", ["a.jpg"]),
        (["a.JPEG"], "same", ["a.JPEG"]),
        (["a.gif"], "same", ["a.png"]),
        (["a.jpg"], "png", ["a.png"]),
        (["d.1/a.jpg", "d.1/a.png"], "png", ["d.1/a.jpg.png", "d.1/a.png"]),
        (["a.gif", "a.jpg"], "png", ["a.gif.png", "a.jpg.png"]),
        (["a.jpg", "a.jpg.png", "a.png"], "png", ["a.jpg_.png", "a.jpg.png", "a.png"]),
        (["a.jpg", "b/a.png"], "png", ["a.png", "b/a.png"]),
        (["a.jpg", "a.k/a.jpg", "a.png"], "png", ["a.jpg.png", "a.k/a.png", "a.png"]),
    ],
)
def test_names(names: list[str], format_name: str, expected: list[str]) -> None:
    assert named(names, format_name) == dict(zip(names, expected, strict=True))


pieces = st.text(alphabet="ab./", max_size=5)
names = st.builds(lambda stem, ending: f"{stem}a{ending}", pieces, st.sampled_from([".jpg", ".png", ".gif", ".tif"]))


@given(st.lists(names, unique=True, max_size=30), st.sampled_from(["same", "png", "jpeg"]))
def test_no_name_is_given_twice(files: list[str], format_name: str) -> None:
    found = named(files, format_name)
    assert found.keys() == set(files)
    assert len(set(found.values())) == len(files)


def test_names_are_given_as_the_files_are_listed() -> None:
    listed = []

    def entries() -> Iterator[Entry]:
        for index in range(100):
            listed.append(index)
            yield Entry(f"{index:03}.jpg")

    found = outputs(entries(), "png")
    for index in range(50):
        assert next(found).output == f"{index:03}.png"
        assert len(listed) <= index + 2
