"""The contract of ``espan_deploy.stores``, held by every store alike."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from places import Place

from espan_deploy.errors import InputError
from espan_deploy.stores import Destination, Entry, MadeFrom, State

MADE = MadeFrom("1" * 64, "2" * 64)

NAMES = ("a.png", "deep/er/a.png", "with space.png", "a+b=c&d.png", "50%25.png", "#1?.png", "größe/猫.png", "a..png")
"""What a path, a URL or a signature may trip over."""

LARGE = 17 << 20
"""Several parts of a multipart upload."""


def publish(destination: Destination, name: str, data: bytes, made_from: MadeFrom = MADE) -> None:
    part = destination.create(name)
    part.file.write(data)
    part.settle()
    assert part.publish(made_from, None) == len(data)


class TestSource:
    def test_lists_by_name_and_reads(self, place: Place) -> None:
        contents = {name: name.encode() * 3 for name in NAMES}
        for name, data in contents.items():
            place.put(name, data)
        source = place.source()
        entries = list(source.entries())
        assert [entry.name for entry in entries] == sorted(NAMES)
        assert source.total in (None, len(NAMES))
        for entry in entries:
            assert source.read(entry) == contents[entry.name]
            assert entry.size in (None, len(contents[entry.name]))

    def test_other_endings_are_counted_and_our_own_files_are_not(self, place: Place) -> None:
        for name in ("a.PNG", "b.txt", "sub/c.txt", "d"):
            place.put(name, b"x")
        with place.destination():
            source = place.source()
            assert [entry.name for entry in source.entries()] == ["a.PNG"]
        assert source.left_out.ignored == {".txt": 2, "": 1}

    def test_an_empty_one_lists_nothing(self, place: Place) -> None:
        source = place.source()
        assert list(source.entries()) == []
        assert source.total in (None, 0)

    def test_a_file_that_is_gone(self, place: Place) -> None:
        place.put("a.png", b"x")
        with pytest.raises((OSError, InputError)):
            place.source().read(Entry("b.png"))

    def test_an_empty_file(self, place: Place) -> None:
        place.put("empty.png", b"")
        (entry,) = place.source().entries()
        assert entry.size in (None, 0)
        assert place.source().read(entry) == b""

    def test_listing_twice_counts_once(self, place: Place) -> None:
        place.put("a.txt", b"")
        source = place.source()
        assert list(source.entries()) == list(source.entries()) == []
        assert source.left_out.ignored == {".txt": 1}

    def test_versions_if_any_follow_the_contents(self, place: Place) -> None:
        def version() -> str:
            (entry,) = place.source().entries()
            return entry.version

        place.put("a.png", b"one")
        one = version()
        assert one == version()
        place.put("a.png", b"two")
        assert not one or version() != one
        assert len(one) in (0, 64)


class TestDestination:
    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_published_is_there_whole(self, place: Place, name: str) -> None:
        with place.destination() as destination:
            part = destination.create(name)
            part.file.write(b"abc")
            assert name not in place.files()
            part.file.write(b"def")
            part.publish(MADE, hashlib.sha256(b"abcdef").hexdigest())
            assert destination.state(name, MADE) is State.CURRENT
        assert place.files() == {name: b"abcdef"}

    def test_nothing_shows_before_and_nothing_stays_of_what_is_discarded(self, place: Place) -> None:
        with place.destination() as destination:
            part = destination.create("sub/a.png")
            part.file.write(b"x" * LARGE)
            part.settle()
            assert destination.state("sub/a.png", MADE) is State.MISSING
            assert "sub/a.png" not in place.files()
            part.discard()
            part.discard()
            assert destination.state("sub/a.png", MADE) is State.MISSING
        assert place.files() == {}

    def test_what_stood_there_stays_until_the_new_one_is_whole(self, place: Place) -> None:
        with place.destination() as destination:
            publish(destination, "a.png", b"old")
            part = destination.create("a.png")
            part.file.write(b"new")
            assert place.files()["a.png"] == b"old"
            part.discard()
            assert place.files()["a.png"] == b"old"
            publish(destination, "a.png", b"newer")
            part.discard()
        assert place.files() == {"a.png": b"newer"}

    def test_discarding_after_publication_does_no_harm(self, place: Place) -> None:
        with place.destination() as destination:
            part = destination.create("a.png")
            part.file.write(b"x")
            part.publish(MADE, None)
            part.discard()
        assert place.files() == {"a.png": b"x"}

    def test_the_promise_outlives_the_run(self, place: Place) -> None:
        with place.destination() as destination:
            publish(destination, "a.png", b"x")
        with place.destination() as destination:
            assert destination.state("a.png", MADE) is State.CURRENT
            assert destination.state("a.png", MadeFrom("3" * 64, MADE.settings_sha256)) is State.OUTDATED
            assert destination.state("a.png", MadeFrom(MADE.input_sha256, "3" * 64)) is State.OUTDATED
            assert destination.state("b.png", MADE) is State.MISSING

    def test_what_others_put_or_edited_is_foreign(self, place: Place) -> None:
        place.put("a.png", b"precious")
        with place.destination() as destination:
            assert destination.state("a.png", MADE) is State.FOREIGN
            publish(destination, "b.png", b"ours")
        place.put("b.png", b"edited")
        with place.destination() as destination:
            assert destination.state("b.png", MADE) is State.FOREIGN
            publish(destination, "b.png", b"ours again")
            assert destination.state("b.png", MADE) is State.CURRENT

    def test_what_appears_meanwhile_is_kept_where_the_store_can(self, place: Place) -> None:
        with place.destination() as destination:
            for name, appeared in (("a.png", b"somebody's"), ("b.png", None)):
                assert destination.state(name, MADE) is State.MISSING
                part = destination.create(name)
                part.file.write(b"ours")
                if appeared is not None:
                    place.put(name, appeared)
                if appeared is None or not place.keeps:
                    part.publish(MADE, None, replace=False)
                    continue
                with pytest.raises(InputError, match="appeared in its place"):
                    part.publish(MADE, None, replace=False)
                part.discard()
        assert place.files() == {"a.png": b"somebody's" if place.keeps else b"ours", "b.png": b"ours"}

    def test_what_another_run_made_of_the_same_meanwhile_is_as_good(self, place: Place) -> None:
        with place.destination() as destination:
            parts = [destination.create("a.png") for _ in range(2)]
            for part in parts:
                part.file.write(b"same")
                assert part.publish(MADE, None, replace=False) == 4
        assert place.files() == {"a.png": b"same"}

    def test_another_result_in_its_place_is_current_for_what_it_was_made_from(self, place: Place) -> None:
        other = MadeFrom("4" * 64, "5" * 64)
        with place.destination() as destination:
            publish(destination, "a.png", b"one")
            publish(destination, "a.png", b"two", other)
            assert destination.state("a.png", other) is State.CURRENT
            assert destination.state("a.png", MADE) is State.OUTDATED

    def test_a_header_may_be_written_last(self, place: Place) -> None:
        """TIFF's head points at the directory behind the pixels."""
        body = bytes(range(256)) * (LARGE // 256)
        with place.destination() as destination:
            part = destination.create("a.png")
            part.file.write(b"....")
            for at in range(0, LARGE, 1 << 20):
                part.file.write(body[at : at + (1 << 20)])
                part.settle()
            assert part.file.tell() == 4 + LARGE
            part.file.seek(0)
            part.file.write(b"head")
            assert part.publish(MADE, None) == 4 + LARGE
            assert destination.state("a.png", MADE) is State.CURRENT
        assert hashlib.sha256(place.files()["a.png"]).digest() == hashlib.sha256(b"head" + body).digest()

    def test_from_many_threads(self, place: Place) -> None:
        names = [f"{index % 3}/{index}.png" for index in range(60)]
        with place.destination() as destination, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: publish(destination, name, name.encode()), names))
            assert all(pool.map(lambda name: destination.state(name, MADE) is State.CURRENT, names))
        assert place.files() == {name: name.encode() for name in names}
