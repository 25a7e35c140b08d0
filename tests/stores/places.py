"""Every kind of store, as the contract's tests need it. A new kind is one more class here.

Buckets are those of real servers on 127.0.0.1, started once: rclone, which checks signatures, and moto, which knows
more of S3's answers.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Protocol

from servers import BUCKET, Server

from espan_deploy.stores import Destination, Endings, Source
from espan_deploy.stores.bucket import BucketDestination, BucketSource
from espan_deploy.stores.folder import FolderDestination, FolderSource
from espan_deploy.stores.memory import Memory

ENDINGS: Endings = frozenset((".png", ".jpg"))


class Place(Protocol):
    """One place, seen as a source, as a destination, and by somebody who does not know us.

    keeps: whether it can keep what somebody else puts there while a result is on its way.
    """

    keeps: bool

    def source(self) -> Source: ...

    def destination(self) -> Destination:
        """Another view of it each time, as another run would have."""
        ...

    def put(self, name: str, data: bytes) -> None: ...

    def files(self) -> dict[str, bytes]:
        """All there is but our own records."""
        ...


class FolderPlace:
    keeps = False  # one run holds it, and others are asked not to write there

    def __init__(self, root: Path) -> None:
        self.root = root / "place"
        self.root.mkdir()

    def source(self) -> Source:
        return FolderSource(self.root, ENDINGS)

    def destination(self) -> Destination:
        return FolderDestination(self.root)

    def put(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and path.name != ".espan-deploy.jsonl"
        }


class MemoryPlace:
    keeps = True

    def __init__(self, _: Path) -> None:
        self.memory = Memory(endings=ENDINGS)

    def source(self) -> Source:
        return self.memory

    def destination(self) -> Destination:
        return self.memory

    def put(self, name: str, data: bytes) -> None:
        self.memory.put(name, data)

    def files(self) -> dict[str, bytes]:
        return {name: stored.data for name, stored in self.memory.files.items()}


class BucketPlace:
    """A location in a bucket, made for one test. Somebody who does not know us is boto3."""

    def __init__(self, server: Server) -> None:
        self.server, self.keeps = server, server.conditional
        self.key = f"place-{secrets.token_hex(4)}"
        self.url = f"s3://{BUCKET}/{self.key}"

    def source(self) -> Source:
        return BucketSource(self.url, ENDINGS)

    def destination(self) -> Destination:
        return BucketDestination(self.url)

    def put(self, name: str, data: bytes) -> None:
        self.server.client.put_object(Bucket=BUCKET, Key=f"{self.key}/{name}", Body=data)

    def files(self) -> dict[str, bytes]:
        found = {}
        for page in self.server.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self.key + "/"):
            for item in page.get("Contents", []):
                body = self.server.client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"]
                found[item["Key"].removeprefix(self.key + "/")] = body.read()
        return found
