"""A bucket of an object store (S3 and its likes, Google Cloud Storage, Azure) as source and as destination.

One PUT, or one completed multipart upload, publishes a result; what it was made from is in the object's own metadata,
so one HEAD answers whether it is done, and runs that know nothing of each other may share a bucket.
"""

from __future__ import annotations

import errno
import hashlib
import mimetypes
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast
from urllib.parse import urlsplit

from espan_deploy.errors import BackendUnavailableError, InputError
from espan_deploy.stores import APPEARED, HIDDEN_PREFIX, Endings, Entry, LeftOut, MadeFrom, State, check_size
from espan_deploy.stores.aws_profile import profile_options

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""What usually carries them, by a location's scheme."""

TRANSFERS = 16
"""At once: a request takes tens of milliseconds, nearly all of them waiting."""

PAGE = 1000
"""Objects to a request of a listing: as many as S3 gives."""

SINGLE_PUT_BYTES = 64 << 20
"""Up to here a result is one request, of which a kill leaves nothing; beyond, a multipart upload."""

PART_BYTES = 16 << 20
"""Of a multipart upload: 10,000 of them, which is the most, hold what no image format does."""

SPOOL_BYTES = 64 << 20
"""Of a result that is being written and stays in memory; what is larger goes to the system's temporary folder."""

RETRY_SECONDS = 180
"""Under five minutes: a request keeps the credentials that it was signed with."""

REQUEST_SECONDS = 300
"""For one request with its body."""

SILENCE_SECONDS = 60
"""Without a byte of an answer, after which a request is given up and tried again; long enough to upload one."""

TRIES_IN_SILENCE = 3
"""Of an upload that is to replace nothing, where no answer comes."""

TIMED_OUT = "TimedOut"
"""In obstore's words for it."""

IMPATIENT_SECONDS = 15
"""For a small request that only asks whether something works."""

INPUT_KEY, SETTINGS_KEY = "espandeployinput", "espandeploysettings"
"""Of the metadata. Letters only: Azure takes no hyphens, some proxies drop underscores."""

METADATA_SERVICE = "169.254.169.254"
"""Of cloud machines: where credentials are looked for last."""

DENIED = "access denied"

PROBE = f"{HIDDEN_PREFIX}-probe"


def open_bucket(url: str, *, patient: bool = True) -> ObjectStore:
    """The objects under a location. Credentials and endpoint come from where the store's own tools take them.

    patient: whether requests are tried again for minutes. Raises BackendUnavailableError without obstore, InputError
    where the location or its credentials make no sense.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as exc:
        raise BackendUnavailableError(
            f"{url} needs obstore, which is not installed", hint="pip install 'espan-deploy[cloud]'"
        ) from exc
    options: dict[str, Any] = profile_options() if urlsplit(url).scheme == "s3" else {}
    try:
        return from_url(
            url,
            # Plain HTTP is spoken only where the endpoint's own address asks for it.
            client_options={
                "allow_http": True,
                "timeout": timedelta(seconds=REQUEST_SECONDS if patient else IMPATIENT_SECONDS),
                "read_timeout": timedelta(seconds=SILENCE_SECONDS),
            },
            retry_config={
                "max_retries": 10 if patient else 2,
                "retry_timeout": timedelta(seconds=RETRY_SECONDS if patient else 5),
            },
            **options,
        )
    except (BaseError, ValueError) as exc:
        raise InputError(f"cannot use {url}: {_first_line(exc)}", hint=_credentials_hint(url)) from exc


class BucketReader:
    """The objects under a location."""

    transfers = TRANSFERS

    def __init__(self, url: str) -> None:
        self.base = url
        self._store = open_bucket(url)

    def read(self, entry: Entry) -> bytes:
        """The object's bytes, of the version that was listed."""
        import obstore

        with translated(entry.name, "cannot read"):
            try:
                response = obstore.get(self._store, entry.name)
            except FileNotFoundError as exc:
                raise InputError("the object is gone since it was listed") from exc
            check_size(response.meta["size"])
            version = _version(response.meta["e_tag"])
            if entry.version and version != entry.version:
                raise InputError("the object was replaced since it was listed", hint="run the same command again")
            return bytes(response.bytes())


class BucketSource(BucketReader):
    """The objects under a location, or the one object named. Listed page by page; versions are told by ETags."""

    total = None

    def __init__(self, url: str, endings: Endings) -> None:
        super().__init__(url)
        self.location, self.left_out = url, LeftOut()
        self._endings = endings
        self._prefix = ""
        self._require_listing()
        name = urlsplit(url).path.rpartition("/")[2]
        if _ending(name) in endings:
            base = url.removesuffix(name).rstrip("/")
            root = open_bucket(base)
            if _head(root, name, url) is not None:
                self._store, self._prefix, self.base = root, name, base

    def _require_listing(self) -> None:
        """Ask once, impatiently, so that what is wrong is said at once. Raises InputError."""
        import obstore

        with translated(self.location, "cannot list"):
            next(iter(obstore.list(open_bucket(self.location, patient=False), chunk_size=1)), None)

    def size(self, entry: Entry) -> int:
        """As listed."""
        return entry.size or 0

    def entries(self) -> Iterator[Entry]:
        """The objects, in the order of their keys."""
        import obstore

        self.left_out = LeftOut()
        last = ""
        with translated(self.location, "cannot list"):
            if self._prefix:
                meta = obstore.head(self._store, self._prefix)
                yield Entry(self._prefix, meta["size"], _version(meta["e_tag"]))
                return
            for page in obstore.list(self._store, chunk_size=PAGE):
                for meta in page:
                    name = meta["path"]
                    if name < last:
                        raise InputError(
                            f"{self.location} is not listed in the order of its keys",
                            hint="directory buckets are like that: copy the objects into a general purpose bucket",
                        )
                    last = name
                    base = name.rpartition("/")[2]
                    if not base or base.startswith(HIDDEN_PREFIX):
                        continue
                    if (ending := _ending(base)) in self._endings:
                        yield Entry(name, meta["size"], _version(meta["e_tag"]))
                    else:
                        self.left_out.ignored[ending] += 1


class BucketDestination:
    """Objects under a location. Entering writes and removes a small one, to see that it can."""

    transfers = TRANSFERS

    def __init__(self, url: str) -> None:
        self.location = self.base = url
        self.store = open_bucket(url)

    def __enter__(self) -> BucketDestination:
        import obstore
        from obstore.exceptions import BaseError

        quick = open_bucket(self.location, patient=False)
        with translated(self.location, "cannot write to"):
            obstore.put(quick, PROBE, b"", use_multipart=False)
        # Whoever may write but not delete may work here: the probe is empty, and no source lists it.
        with suppress(BaseError, OSError):
            obstore.delete(quick, PROBE)
        return self

    def __exit__(self, *_: object) -> None: ...

    def state(self, name: str, made_from: MadeFrom) -> State:
        """By the metadata of the object."""
        attributes = _head(self.store, _key(name), self.location)
        if attributes is None:
            return State.MISSING
        if INPUT_KEY not in attributes or SETTINGS_KEY not in attributes:
            return State.FOREIGN
        found = MadeFrom(attributes[INPUT_KEY], attributes[SETTINGS_KEY])
        return State.CURRENT if found == made_from else State.OUTDATED

    def create(self, name: str) -> BucketPart:
        """A buffer of this machine, to be uploaded whole."""
        return BucketPart(self, _key(name))


class BucketPart:
    """A result that is uploaded once it is complete: until then the bucket holds nothing of it."""

    def __init__(self, destination: BucketDestination, key: str) -> None:
        self._destination, self._key = destination, key
        self.file = cast(BinaryIO, tempfile.SpooledTemporaryFile(SPOOL_BYTES))  # noqa: SIM115

    def settle(self) -> None:
        """Nothing to move on."""

    def publish(self, made_from: MadeFrom, sha256: str | None, *, replace: bool = True) -> int:
        """Upload. A multipart upload that fails is aborted; it replaces what it finds."""
        size = self.file.seek(0, os.SEEK_END)
        self.file.seek(0)
        attributes = {INPUT_KEY: made_from.input_sha256, SETTINGS_KEY: made_from.settings_sha256}
        if kind := mimetypes.guess_type(self._key)[0]:
            attributes["Content-Type"] = kind
        with translated(self._destination.location, "cannot write to", denial_stops=True):
            if size > SINGLE_PUT_BYTES:
                self._put_in_parts(attributes)
            elif (
                not self._put(self.file.read(), attributes, replace=replace)
                # This very result is there where an answer was lost, or where another run was faster.
                and self._destination.state(self._key, made_from) is not State.CURRENT
            ):
                raise InputError(APPEARED)
        self.file.close()
        return size

    def _put(self, data: bytes, attributes: dict[str, str], *, replace: bool) -> bool:
        """One request; False where something stands there that is not to be replaced."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, GenericError

        mode: Literal["overwrite", "create"] = "overwrite" if replace else "create"
        for tries_left in reversed(range(TRIES_IN_SILENCE)):
            try:
                obstore.put(
                    self._destination.store, self._key, data, attributes=attributes, mode=mode, use_multipart=False
                )
                break
            except AlreadyExistsError:
                return False
            except GenericError as exc:
                # obstore does not repeat what may be created and was not answered; here what was is recognised.
                if replace or not tries_left or TIMED_OUT not in str(exc):
                    raise
        return True

    def _put_in_parts(self, attributes: dict[str, str]) -> None:
        import obstore

        parts = iter(lambda: self.file.read(PART_BYTES), b"")
        obstore.put(self._destination.store, self._key, parts, attributes=attributes, chunk_size=PART_BYTES)

    def discard(self) -> None:
        """Let go of the buffer."""
        self.file.close()


def check_apart(source: BucketSource, destination: BucketDestination) -> None:
    """Raise InputError where results would stand among the inputs."""
    outer, inner = source.location.rstrip("/") + "/", destination.location.rstrip("/") + "/"
    if inner.startswith(outer):
        raise InputError(
            f"{destination.location} lies in {source.location}: the next run would upscale its results",
            hint="name a location beside it",
        )


@contextmanager
def translated(location: str, failed: str, *, denial_stops: bool = False) -> Iterator[None]:
    """obstore's errors as InputError, with what to do.

    denial_stops: whether a refusal for lack of rights is an OSError instead, of the kind that ends a run.
    """
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as exc:
        raise InputError(f"{failed} {location}: there is no such bucket", hint="check its name") from exc
    except (BaseError, ValueError) as exc:
        reason, hint = _explained(exc, location)
        if denial_stops and reason.startswith(DENIED):
            raise OSError(errno.EROFS, f"{failed} {location}: {reason}") from exc
        raise InputError(f"{failed} {location}: {reason}", hint=hint) from exc


def _explained(exc: Exception, location: str) -> tuple[str, str]:
    """What a server's refusal says, and what helps."""
    text = str(exc)
    code, message = (re.search(f"<{tag}>(.*?)</{tag}>", text) for tag in ("Code", "Message"))
    said = ": ".join(found[1] for found in (code, message) if found) or _first_line(exc)
    status = re.search(r"status code: (\d+)", text)
    if METADATA_SERVICE in text:
        return "no credentials were found", _credentials_hint(location)
    if status and status[1] == "404":
        return f"there is no such bucket ({said})", "check its name"
    denied = type(exc).__name__ in ("PermissionDeniedError", "UnauthenticatedError")
    if denied or (status and status[1] in ("401", "403")):
        return f"{DENIED} ({said})", _credentials_hint(location)
    if type(exc).__name__ == "InvalidPathError":
        return f"a key cannot be handled ({said})", "rename it: no empty, . or .. parts between slashes"
    if "error sending request" in text or "error trying to connect" in text:
        return "the server cannot be reached", "check the network, and AWS_ENDPOINT_URL if it is set"
    return said, ""


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0][:300]


def _credentials_hint(location: str) -> str:
    carriers = CREDENTIALS.get(urlsplit(location).scheme, "the credentials")
    return f"check {carriers}, and what they are allowed to do"


def _head(store: ObjectStore, key: str, location: str) -> dict[str, str] | None:
    """An object's metadata; None where there is no such object."""
    import obstore

    with translated(location, "cannot look into"):
        try:
            return dict(obstore.get(store, key, options={"head": True}).attributes)
        except FileNotFoundError:
            return None


def _key(name: str) -> str:
    """A result's name as the part of a key. Raises InputError where it cannot be one."""
    key = name.replace(os.sep, "/")
    try:
        key.encode()
    except UnicodeEncodeError as exc:
        raise InputError("its name is no UTF-8, as keys in a bucket are", hint="rename the file") from exc
    return key


def _version(etag: str | None) -> str:
    """An ETag without its quotes: some servers leave them out of listings. What several runs see of one version."""
    return "" if not etag else hashlib.sha256(etag.removeprefix("W/").strip('"').encode()).hexdigest()


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()
