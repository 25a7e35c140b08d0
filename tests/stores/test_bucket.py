"""What is special about buckets: refusals said at once, trouble on the way, transfers side by side."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import ENDINGS, BucketPlace
from servers import BUCKET, MOTO_PAGE, Request, Server, Troublemaker

from espan_deploy.errors import BackendUnavailableError, InputError
from espan_deploy.stores import Entry, MadeFrom, State, bucket, open_stores
from espan_deploy.stores.aws_profile import profile_options
from espan_deploy.stores.bucket import BucketDestination, BucketSource

MADE = MadeFrom("1" * 64, "2" * 64)


@pytest.fixture
def here(moto: Server, monkeypatch: pytest.MonkeyPatch) -> BucketPlace:
    moto.use(monkeypatch)
    return BucketPlace(moto)


@pytest.fixture
def trouble(moto: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Troublemaker]:
    moto.use(monkeypatch)
    with Troublemaker(moto) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        yield made


def publish(destination: BucketDestination, name: str, data: bytes) -> None:
    part = destination.create(name)
    try:
        part.file.write(data)
        part.publish(MADE, None, replace=False)
    finally:
        part.discard()


class TestWhatIsWrongIsSaidFirst:
    def test_a_wrong_key(self, rclone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        rclone.use(monkeypatch)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        self.check(f"s3://{BUCKET}/x", "access denied .*InvalidAccessKeyId", "AWS_ACCESS_KEY_ID")

    def test_a_wrong_secret(self, rclone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        rclone.use(monkeypatch)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guessed")
        self.check(f"s3://{BUCKET}/x", "access denied .*SignatureDoesNotMatch", "AWS_ACCESS_KEY_ID")

    @pytest.mark.parametrize("name", ["rclone", "moto"])
    def test_no_such_bucket(self, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        request.getfixturevalue(name).use(monkeypatch)
        self.check("s3://nowhere/x", "there is no such bucket", "check its name")

    def test_no_server(self, here: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        self.check(here.url, "cannot be reached", "AWS_ENDPOINT_URL")

    def check(self, url: str, message: str, hint: str) -> None:
        with pytest.raises(InputError, match=message) as listing:
            BucketSource(url, ENDINGS)
        with pytest.raises(InputError, match=message) as writing, BucketDestination(url):
            pass
        for caught in (listing, writing):
            assert hint in caught.value.hint
            assert "Debug source" not in caught.value.message

    def test_a_denied_write(self, here: BucketPlace, trouble: Troublemaker) -> None:
        trouble.trouble = lambda request: 403 if request.verb == "PUT" else None
        here.source()
        with pytest.raises(InputError, match=r"cannot write to .*: access denied"), here.destination():
            pass

    def test_writing_without_the_right_to_delete_is_enough(self, here: BucketPlace, trouble: Troublemaker) -> None:
        trouble.trouble = lambda request: 403 if request.verb == "DELETE" else None
        with here.destination():
            pass
        assert list(here.source().entries()) == []

    def test_entering_leaves_nothing(self, here: BucketPlace) -> None:
        with here.destination():
            pass
        assert here.files() == {}

    def test_without_obstore(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "obstore.store", None)
        with pytest.raises(BackendUnavailableError, match="needs obstore") as caught:
            open_stores("s3://photos/in", "out", ENDINGS)
        assert "espan-deploy[cloud]" in caught.value.hint

    def test_other_urls(self) -> None:
        with pytest.raises(InputError, match="nothing is known of ftp://") as caught:
            open_stores("ftp://photos/in", "out", ENDINGS)
        assert "s3://, gs://, az://" in caught.value.hint

    @pytest.mark.parametrize("inner", ["", "/", "/out"])
    def test_results_among_the_inputs(self, here: BucketPlace, inner: str) -> None:
        with pytest.raises(InputError, match="the next run would upscale its results"):
            open_stores(here.url, here.url + inner, ENDINGS)
        open_stores(here.url, here.url + "-out", ENDINGS)


class TestListing:
    @pytest.fixture(autouse=True)
    def _pages_of_the_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bucket, "PAGE", MOTO_PAGE)

    def test_pages_are_asked_for_as_they_are_needed(self, here: BucketPlace, trouble: Troublemaker) -> None:
        for index in range(4 * MOTO_PAGE):
            here.put(f"{index:04}.png", b"")
        entries = here.source().entries()
        assert trouble.kinds()["LIST"] == 1  # whether it can
        assert next(entries).name == "0000.png"
        assert trouble.kinds()["LIST"] <= 3
        assert sum(1 for _ in entries) == 4 * MOTO_PAGE - 1
        assert trouble.kinds()["LIST"] >= 5

    def test_one_object(self, here: BucketPlace) -> None:
        here.put("sub/a.png", b"one")
        here.put("sub/a.png.png", b"two")
        source = BucketSource(here.url + "/sub/a.png", ENDINGS)
        (entry,) = source.entries()
        assert (entry.name, source.read(entry)) == ("a.png", b"one")

    def test_a_location_that_ends_like_an_image(self, here: BucketPlace) -> None:
        here.put("set.png/a.png", b"one")
        (entry,) = BucketSource(here.url + "/set.png", ENDINGS).entries()
        assert entry.name == "a.png"

    def test_marks_of_folders_are_none_of_our_business(self, here: BucketPlace) -> None:
        for name in ("", "sub/", "sub/a.png"):
            here.put(name, b"")
        assert [entry.name for entry in here.source().entries()] == ["sub/a.png"]

    def test_a_key_that_cannot_be_handled_is_named(self, here: BucketPlace) -> None:
        here.put("a//b.png", b"")
        with pytest.raises(InputError, match=r"a key cannot be handled .*a//b\.png"):
            list(here.source().entries())

    def test_trouble_in_the_middle_is_an_input_error(self, here: BucketPlace, trouble: Troublemaker) -> None:
        for index in range(3 * MOTO_PAGE):
            here.put(f"{index:04}.png", b"")
        entries = here.source().entries()
        next(entries)
        trouble.trouble = lambda request: 403 if request.kind == "LIST" else None
        with pytest.raises(InputError, match=r"cannot list .*access denied"):
            list(entries)


class TestReading:
    def test_replaced_since_it_was_listed(self, here: BucketPlace) -> None:
        here.put("a.png", b"one")
        source = here.source()
        (entry,) = source.entries()
        here.put("a.png", b"two")
        with pytest.raises(InputError, match="replaced since it was listed"):
            source.read(entry)

    def test_gone_since_it_was_listed(self, here: BucketPlace) -> None:
        with pytest.raises(InputError, match="gone since it was listed"):
            here.source().read(Entry("a.png", 1, "x"))


class TestTrouble:
    def once(self, kind: str, order: int | str, times: int = 1) -> Any:
        left = itertools.count(times, -1)
        return lambda request: order if request.kind == kind and next(left) > 0 else None

    @pytest.mark.parametrize("order", [500, 503, 429, "reset", "lose"])
    @pytest.mark.parametrize("kind", ["LIST", "GET", "HEAD", "PUT"])
    def test_requests_are_tried_again(
        self, here: BucketPlace, trouble: Troublemaker, order: int | str, kind: str
    ) -> None:
        here.put("a.png", b"one")
        with here.destination() as destination:
            source = here.source()
            trouble.trouble = self.once(kind, order, 2)
            (entry,) = source.entries()
            assert source.read(entry) == b"one"
            assert destination.state("b.png", MADE) is State.MISSING
            publish(destination, "b.png", b"two")
            assert destination.state("b.png", MADE) is State.CURRENT
        assert here.files() == {"a.png": b"one", "b.png": b"two"}
        assert trouble.kinds()[kind] > 2

    @pytest.mark.parametrize("kind", ["LIST", "GET", "HEAD", "PUT"])
    def test_a_server_that_falls_silent_is_asked_again(
        self, here: BucketPlace, trouble: Troublemaker, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        monkeypatch.setattr(bucket, "SILENCE_SECONDS", 0.5)
        here.put("a.png", b"one")
        with here.destination() as destination:
            source = here.source()
            trouble.trouble = self.once(kind, "silence")
            (entry,) = source.entries()
            assert source.read(entry) == b"one"
            assert destination.state("b.png", MADE) is State.MISSING
            publish(destination, "b.png", b"two")
        assert here.files() == {"a.png": b"one", "b.png": b"two"}
        assert trouble.kinds()[kind] > 1

    def test_a_multipart_upload_that_fails_is_aborted(
        self, here: BucketPlace, trouble: Troublemaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bucket, "SINGLE_PUT_BYTES", 1 << 20)
        monkeypatch.setattr(bucket, "PART_BYTES", 5 << 20)
        begun: list[Request] = []

        def refuse(request: Request) -> int | None:
            if "uploads" in request.query:
                begun.append(request)
            return 400 if "partNumber=3" in request.query else None

        with here.destination() as destination:
            publish(destination, "whole.png", bytes(12 << 20))
            trouble.trouble = refuse
            with pytest.raises(InputError, match="cannot write to"):
                publish(destination, "broken.png", bytes(12 << 20))
        assert len(begun) == 1
        assert here.files().keys() == {"whole.png"}
        assert not self.unfinished(here)
        with here.destination() as destination:
            assert destination.state("whole.png", MADE) is State.CURRENT

    def unfinished(self, here: BucketPlace) -> list[str]:
        uploads = here.server.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return [upload["Key"] for upload in uploads]

    def test_rights_that_are_lost_end_the_run(self, here: BucketPlace, trouble: Troublemaker) -> None:
        from espan_deploy.pipeline.run import STOPPING_ERRORS

        with here.destination() as destination:
            trouble.trouble = lambda request: 403 if request.verb == "PUT" else None
            with pytest.raises(OSError, match="access denied") as caught:
                publish(destination, "a.png", b"x")
        assert caught.value.errno in STOPPING_ERRORS


class TestProfiles:
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "credentials").write_text(
            "[default]\naws_access_key_id = A\naws_secret_access_key = B%\n"
            "[work]\naws_access_key_id = C\naws_secret_access_key = D\naws_session_token = E\n"
        )
        (tmp_path / "config").write_text(
            "[profile work]\nregion = eu-west-1\nendpoint_url = http://127.0.0.1:9\n[profile sso]\nsso_session = x\n"
        )
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)

    def test_the_default(self) -> None:
        assert profile_options() == {"access_key_id": "A", "secret_access_key": "B%"}

    def test_one_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
        monkeypatch.setenv("AWS_PROFILE", "work")
        options = {"access_key_id": "C", "secret_access_key": "D", "session_token": "E"}
        assert profile_options() == options | {"region": "eu-west-1", "endpoint": "http://127.0.0.1:9"}
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8")
        assert profile_options() == options | {"region": "eu-west-1"}

    def test_the_environment_comes_before_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
        assert profile_options() == {}

    def test_one_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(InputError, match="no profile 'nobody'"):
            profile_options()

    def test_one_without_keys_needs_boto3(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "sso")
        monkeypatch.setitem(sys.modules, "boto3", None)
        with pytest.raises(InputError, match="boto3") as caught:
            profile_options()
        assert caught.value.hint == "pip install boto3"

    def test_it_signs_what_the_server_checks(
        self, rclone: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = {name.lower(): value for name, value in rclone.environment.items() if "KEY" in name}
        text = "\n".join(["[work]", *(f"{name} = {value}" for name, value in keys.items())])
        (tmp_path / "credentials").write_text(text)
        monkeypatch.setenv("AWS_ENDPOINT_URL", rclone.endpoint)
        monkeypatch.setenv("AWS_PROFILE", "work")
        with BucketDestination(f"s3://{BUCKET}/profile") as destination:
            publish(destination, "a.png", b"x")
