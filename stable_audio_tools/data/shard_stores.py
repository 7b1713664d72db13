"""Where shards lie: a folder, or a bucket of S3 or of anything that speaks its language.

Both list ``.tar`` files and read any span of one, so that nothing above them knows which it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from stable_audio_tools.errors import DataError

T = TypeVar("T")

SHARD_SUFFIX = ".tar"
_TRIES = 6
_FIRST_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Shard:
    """A tar file. ``version`` is another where its content is another."""

    name: str
    size: int
    version: str


class ShardStore(Protocol):
    """Shards under one place."""

    place: str
    """The folder, or ``s3://bucket/prefix``."""

    def shards(self) -> list[Shard]:
        """The shards by name, which is their path from ``place``."""

    def where(self, shard: Shard) -> str:
        """The full name of a shard."""

    def read(self, shard: Shard, offset: int, length: int) -> bytes:
        """``length`` bytes of the shard from ``offset``."""


class LocalShards:
    """Shards in a folder and the folders in it, or a single one."""

    def __init__(self, path: Path) -> None:
        self.place = str(path)
        self._path = path
        self._root = path.parent if path.is_file() else path

    def shards(self) -> list[Shard]:
        """The shards by name; hidden and temporary files (``.tmp-*``) are none."""
        paths = [self._path] if self._path.is_file() else sorted(self._root.rglob(f"*{SHARD_SUFFIX}"))
        found = []
        for path in paths:
            relative = path.relative_to(self._root)
            if any(part.startswith(".") for part in relative.parts) or path.is_dir():
                continue
            try:
                status = path.stat()
            except OSError as error:
                raise DataError(f"{path}: {error.strerror or error}") from error
            found.append(Shard(relative.as_posix(), status.st_size, str(status.st_mtime_ns)))
        return sorted(found, key=lambda shard: shard.name)

    def where(self, shard: Shard) -> str:
        return str(self._root / shard.name)

    def read(self, shard: Shard, offset: int, length: int) -> bytes:
        path = self._root / shard.name
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                content = file.read(length)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error
        if len(content) < length:
            raise DataError(f"{path}: ends before byte {offset + length}; it has changed, start again")
        return content


class S3Shards:
    """Shards under a prefix of a bucket.

    Credentials are found the AWS way: the environment, ``~/.aws`` and its profiles, the machine's role. An
    answer that breaks off is asked for again from where it broke off, with growing pauses.

    Args:
        url: ``s3://bucket/prefix``; the prefix is a folder or one ``.tar``.
        profile: of the AWS credentials.
        endpoint_url: of another server than Amazon's; ``AWS_ENDPOINT_URL`` says it too.
        anonymous: send no credentials, as to a public bucket.

    Raises:
        DataError: the url is not one of S3.
    """

    def __init__(
        self,
        url: str,
        *,
        profile: str | None = None,
        endpoint_url: str | None = None,
        anonymous: bool = False,
    ) -> None:
        scheme, _, rest = url.partition("://")
        self._bucket, _, prefix = rest.partition("/")
        if scheme != "s3" or not self._bucket:
            raise DataError(f"s3_path {url!r}: expected s3://bucket/prefix")
        self._prefix = prefix.strip("/")
        self._folder = self._prefix.rpartition("/")[0] if self._is_shard(self._prefix) else self._prefix
        self.place = url.rstrip("/")
        self._options: dict[str, Any] = {
            "profile": profile,
            "endpoint_url": endpoint_url,
            "anonymous": anonymous,
        }
        self._made_in: int | None = None
        self._client_there: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the client: each process needs one of its own."""
        return {**self.__dict__, "_made_in": None, "_client_there": None}

    def shards(self) -> list[Shard]:
        return sorted(self._tried(lambda: list(self._listed()), self.place), key=lambda shard: shard.name)

    def where(self, shard: Shard) -> str:
        return f"s3://{self._bucket}/{self._key(shard)}"

    def read(self, shard: Shard, offset: int, length: int) -> bytes:
        """As :meth:`ShardStore.read`; refuses a shard that is no longer the one that was listed."""
        content = bytearray()

        def go_on() -> bytes:
            while len(content) < length:
                first, last = offset + len(content), offset + length - 1
                answer = self._client().get_object(
                    Bucket=self._bucket,
                    Key=self._key(shard),
                    Range=f"bytes={first}-{last}",
                    IfMatch=shard.version,
                )
                if answer["ContentLength"] != last - first + 1:
                    raise DataError(
                        f"{self.where(shard)}: the server answers a request for {last - first + 1} bytes with"
                        f" {answer['ContentLength']}; it does not know the Range header"
                    )
                for block in answer["Body"].iter_chunks(1 << 18):
                    content.extend(block)
            return bytes(content)

        return self._tried(go_on, self.where(shard)) if length else b""

    def _listed(self) -> Iterator[Shard]:
        prefix = self._prefix if self._is_shard(self._prefix) or not self._prefix else f"{self._prefix}/"
        lister = self._client().get_paginator("list_objects_v2")
        for page in lister.paginate(Bucket=self._bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                key = entry["Key"]
                if self._is_shard(key):
                    name = key.removeprefix(f"{self._folder}/") if self._folder else key
                    yield Shard(name, int(entry["Size"]), entry["ETag"])

    def _key(self, shard: Shard) -> str:
        return f"{self._folder}/{shard.name}" if self._folder else shard.name

    @staticmethod
    def _is_shard(key: str) -> bool:
        return key.endswith(SHARD_SUFFIX) and not key.rpartition("/")[2].startswith(".")

    def _client(self) -> Any:
        """The client of this process: one that was forked would share its parent's connections."""
        if self._made_in != os.getpid():
            self._client_there = _make_client(**self._options)
            self._made_in = os.getpid()
        return self._client_there

    def _tried(self, ask: Callable[[], T], where: str) -> T:
        try:
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise DataError(
                f"{where}: shards on S3 need boto3: pip install 'stable-audio-tools[s3]'"
            ) from error

        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, _TRIES + 1):
            try:
                return ask()
            except ClientError as error:
                status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
                if status not in (429, 500, 502, 503, 504) or attempt == _TRIES:
                    raise DataError(_refusal(where, status, error)) from error
            except BotoCoreError as error:
                if attempt == _TRIES or not _may_pass(error):
                    raise DataError(f"{where}: {_one_line(error)}{_advice(error)}") from error
            time.sleep(pause)
            pause *= 2
        raise AssertionError("unreachable")


def _make_client(profile: str | None, endpoint_url: str | None, anonymous: bool) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    settings: dict[str, Any] = {
        "retries": {"total_max_attempts": 1},  # ours go on where an answer broke off
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 32,
        # other servers than Amazon's do not send the newer checksums
        "response_checksum_validation": "when_required",
    }
    if endpoint_url is not None:
        settings["s3"] = {"addressing_style": "path"}
    if anonymous:
        settings["signature_version"] = UNSIGNED
    session = boto3.session.Session(profile_name=profile)
    return session.client("s3", endpoint_url=endpoint_url, config=Config(**settings))


def _may_pass(error: Exception) -> bool:
    from botocore import exceptions

    streams = (exceptions.ResponseStreamingError, exceptions.IncompleteReadError)
    return isinstance(error, (exceptions.ConnectionError, exceptions.HTTPClientError, *streams))


def _advice(error: Exception) -> str:
    from botocore import exceptions

    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile, or set anonymous to true"
    if isinstance(error, exceptions.ConnectionError | exceptions.HTTPClientError):
        return "; check endpoint_url and the network"
    return ""


def _refusal(where: str, status: int, error: Exception) -> str:
    reasons = {
        403: "access is refused; check the profile and its rights (s3:ListBucket, s3:GetObject)",
        404: "does not exist",
        412: "has changed while it was in use; start again",
    }
    return f"{where}: {reasons.get(status) or _one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
