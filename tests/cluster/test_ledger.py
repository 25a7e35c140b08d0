"""Who has which files, and what becomes of those whose worker died."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from espan_deploy.cluster.ledger import LEAST_PIXELS, MAX_DEATHS, Ledger
from espan_deploy.errors import InputError
from espan_deploy.pipeline.encode import FORMATS
from espan_deploy.pipeline.names import NamedFile
from espan_deploy.stores import Entry

PIXELS = LEAST_PIXELS * 10
NODES = {"n0", "n1"}


def listing(count: int, listed: list[int] | None = None) -> Iterator[NamedFile]:
    for number in range(1, count + 1):
        if listed is not None:
            listed.append(number)
        yield NamedFile(number, Entry(f"{number}.png", PIXELS), f"{number}.png", FORMATS["png"])


def ledger(count: int, listed: list[int] | None = None) -> Ledger:
    return Ledger(listing(count, listed), lambda entry: entry.size or 0)


def numbers(files: tuple[NamedFile, ...]) -> list[int]:
    return [file.number for file in files]


def test_no_more_is_listed_than_handed_out() -> None:
    listed: list[int] = []
    books = ledger(10**7, listed)
    assert numbers(books.take("a", "n0", NODES, 3 * PIXELS)) == [1, 2, 3]
    assert numbers(books.take("b", "n1", NODES, PIXELS)) == [4]
    assert len(listed) == 4
    assert not books.done
    assert not books.spent


def test_pixels_are_estimated_by_bytes_and_ending_and_learnt() -> None:
    """A PNG has about a pixel to a byte, a JPEG eight; the smallest file counts for something."""
    names = ["a.png", "b.png", "c.jpg", "d.jpg", "e.jpg"]
    files = [NamedFile(number, Entry(name), name, FORMATS["png"]) for number, name in enumerate(names)]
    sizes = dict(zip(names, (1, 80_000, 10_000, 10_000_000, 10_000), strict=True))
    books = Ledger(iter(files), lambda entry: sizes[entry.name])
    assert [books.pixels(file) for file in files] == [LEAST_PIXELS, 80_000, 80_000, 80_000_000, 80_000]
    assert numbers(books.take("a", "n0", NODES, LEAST_PIXELS + 80_001)) == [0, 1, 2]
    assert numbers(books.take("a", "n0", NODES, 1)) == [3]
    books.ended("a", 3, 200_000_000)
    assert 175_000 < books.pixels(files[4]) < 200_000
    assert books.pixels(files[1]) == 80_000


def test_what_a_dead_worker_had_is_retried_elsewhere_then_each_alone() -> None:
    books = ledger(4)
    books.take("a", "n0", NODES, 4 * PIXELS)
    books.ended("a", 2)
    assert books.died("a", "n0") == []
    assert books.take("b", "n0", NODES, PIXELS) == ()  # not where it died, while there is an elsewhere
    assert numbers(books.take("c", "n1", NODES, PIXELS)) == [1, 3, 4]
    assert books.take("c", "n1", NODES, PIXELS) == ()  # not before these are done
    assert books.died("c", "n1") == []
    alone = [numbers(books.take(worker, "n0", NODES, PIXELS)) for worker in "def"]
    assert alone == [[1], [3], [4]]
    for worker, number in zip("def", (1, 3, 4), strict=True):
        books.ended(worker, number)
    assert books.take("d", "n0", NODES, PIXELS) == ()
    assert books.done


def test_suspects_go_to_a_worker_that_has_finished_and_fresh_files_go_on() -> None:
    books = ledger(100)
    books.take("a", "n0", NODES, PIXELS)
    books.take("b", "n1", NODES, PIXELS)
    books.died("a", "n0")
    assert books.take("b", "n1", NODES, PIXELS) == ()  # reserved for it; it still has something
    assert numbers(books.take("c", "n1", NODES, PIXELS)) == [3]  # others are not kept waiting
    books.ended("b", 2)
    assert numbers(books.take("b", "n1", NODES, PIXELS)) == [1]
    # What was only reserved dies with nobody.
    books.died("b", "n1")
    books.take("d", "n0", NODES, PIXELS)
    books.take("e", "n1", NODES, PIXELS)
    assert books.holds("d") == 1


def test_one_that_kills_costs_itself_alone() -> None:
    books, poison, deaths, given_up, ended = ledger(50), 17, 0, [], Counter[int]()
    rng = random.Random(1)
    for name in range(10_000):
        worker, node = f"w{name}", rng.choice(sorted(NODES))
        while files := books.take(worker, node, NODES, 8 * PIXELS):
            if poison in numbers(files):
                deaths += 1
                given_up += books.died(worker, node)
                break
            for file in files:
                assert books.ended(worker, file.number) is file
                ended[file.number] += 1
        if books.done:
            break
    assert [file.number for file in given_up] == [poison]
    assert deaths == MAX_DEATHS
    assert ended == Counter({number: 1 for number in range(1, 51) if number != poison})


@pytest.mark.parametrize("seed", range(20))
def test_every_file_ends_once_whoever_dies_whenever(seed: int) -> None:
    rng, books, ended = random.Random(seed), ledger(60), Counter[int]()
    hands: dict[str, list[int]] = {f"w{index}": [] for index in range(4)}
    for count in range(100_000):
        worker = rng.choice(sorted(hands))
        node = f"n{int(worker[1:]) % 2}"
        if rng.random() < 0.02:
            ended.update(file.number for file in books.died(worker, node))
            del hands[worker]
            hands[f"w{count + 4}"] = []
            continue
        hands[worker] += numbers(books.take(worker, node, NODES, rng.randint(1, 5) * PIXELS))
        if hands[worker] and rng.random() < 0.7:
            number = hands[worker].pop(rng.randrange(len(hands[worker])))
            assert books.ended(worker, number) is not None
            assert books.ended(worker, number) is None
            ended[number] += 1
        if books.done:
            break
    assert books.done
    assert ended == Counter(range(1, 61))


def test_a_listing_that_breaks_off_is_the_callers() -> None:
    def broken() -> Iterator[NamedFile]:
        yield from listing(2)
        raise InputError("gone")

    books = Ledger(broken(), lambda _: PIXELS)
    assert len(books.take("a", "n0", NODES, 5 * PIXELS)) == 2
    with pytest.raises(InputError):
        books.take("a", "n0", NODES, PIXELS)
    books.end_listing()
    assert not books.done
    for number in (1, 2):
        books.ended("a", number)
    assert books.done
