"""Local folders and `s3://bucket/prefix` behind a few small functions; the only importer of boto3.

Credentials and endpoint come from the standard AWS chain (environment, profile, instance role) and are never logged.
Every transfer from and to S3 is checked for length and checksum; what went wrong on the way is tried again, a bounded
number of times. What is written carries its SHA-256 as object metadata, so that a reader trusts no store and no proxy.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import random
import re
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from post_platform.atomic import file_errors, replacing
from post_platform.errors import ConfigError, DataError, PostError, StorageError
from post_platform.storage_errors import TRANSIENT_HINT, DamagedError, final_error, transient_reason

if TYPE_CHECKING:
    from botocore.client import BaseClient

Location = str | Path
T = TypeVar("T")
SCHEME = "s3://"
PART_BYTES = 16 << 20
"""Size of a part; larger files are uploaded and downloaded in parts, some at a time."""

DOWNLOADS = 8
UPLOADS = 2
"""Parts at a time. Training waits for what it downloads; what it uploads goes beside its steps, which threads slow."""

POOL_CONNECTIONS = 32
"""Kept open per process: 16 threads that read while a checkpoint is uploaded."""

ATTEMPTS = 5
"""Tries of a whole operation; within each, the client sends a request up to `REQUEST_ATTEMPTS` times."""

REQUEST_ATTEMPTS = 3
BACKOFF_SECONDS = 1.0
"""Sleep before the second try, doubled before each further one, less up to a half at random."""

LONGEST_BACKOFF_SECONDS = 20.0
CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 20.0
"""Longest silence of the store within one request."""

logger = logging.getLogger(__name__)
_jitter = random.SystemRandom()  # drawing from a seeded generator would change what a run augments


def is_remote(path: Location) -> bool:
    """True for `s3://...`. Raises: ConfigError for another scheme, which would become a local folder of that name."""
    text = str(path)
    if text.startswith(SCHEME):
        return True
    if re.match(r"s3:/|[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise ConfigError(f"{text}: expected a folder or s3://bucket/prefix")
    return False


def absolute(path: Location) -> str:
    """The same place for every process, whatever its working directory. Raises: ConfigError for a malformed address."""
    return SCHEME + "/".join(filter(None, _split(path))) if is_remote(path) else str(Path(path).expanduser().resolve())


def join(root: Location, *parts: str) -> str:
    """`root/part/part`, local or remote."""
    return "/".join([str(root).rstrip("/"), *parts])


def exists(path: Location) -> bool:
    """True when there is a file, or a folder (in S3: with something in it)."""
    if not is_remote(path):
        return Path(path).exists()

    def look(client: BaseClient, bucket: str, key: str) -> bool:
        # Two questions: in a listing any number of `key-2`, `key.bin` may stand between `key` and `key/`.
        for prefix in (key, _as_prefix(key)):
            found = client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents", [])
            if found and (prefix != key or key in ("", found[0]["Key"])):
                return True
        return False

    return _remotely(path, look)


def size(path: Location) -> int:
    """Length of a file in bytes. Raises: DataError naming it."""
    if is_remote(path):
        return int(_remotely(path, _head)["ContentLength"])
    with file_errors(path):
        return Path(path).stat().st_size


def modified(path: Location) -> float:
    """When a file was last written, in seconds since the epoch (S3: whole ones). Raises: DataError naming it."""
    if is_remote(path):
        return float(_remotely(path, _head)["LastModified"].timestamp())
    with file_errors(path):
        return Path(path).stat().st_mtime


def free_bytes(path: Location) -> int | None:
    """Room left where a local path lies, or will lie; None for S3, which has no end."""
    if is_remote(path):
        return None
    place = Path(absolute(path))
    with file_errors(path):
        return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free


def list_names(folder: Location) -> list[str]:
    """Names directly inside a folder, sorted; empty when there is no such folder."""
    if is_remote(folder):
        return sorted({name.split("/")[0] for name in _list(folder, delimiter="/")} - {""})
    with file_errors(folder):
        return sorted(os.listdir(folder)) if Path(folder).is_dir() else []


def list_files(folder: Location) -> list[str]:
    """Every file below a folder, by its path from there with `/`, sorted; empty when there is no such folder."""
    if is_remote(folder):
        return sorted(name for name in _list(folder, delimiter="") if not name.endswith("/"))
    with file_errors(folder):
        return sorted(file.relative_to(folder).as_posix() for file in Path(folder).rglob("*") if file.is_file())


def read_bytes(path: Location) -> bytes:
    """The whole file, verified. Raises: DataError naming it."""
    if not is_remote(path):
        with file_errors(path):
            return Path(path).read_bytes()

    def get(client: BaseClient, bucket: str, key: str) -> bytes:
        found = client.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        data: bytes = found["Body"].read()
        _verify(found, len(data), hashlib.sha256(data).hexdigest())
        return data

    return _remotely(path, get)


def read_range(path: Location, offset: int, length: int, crc32: int | None = None) -> bytes:
    """Exactly `length` bytes from `offset`; given their `crc32`, also what a store or a network damages is read again.

    Raises: DataError naming the file, also when it ends before the range does.
    """
    wanted = f"{offset}-{offset + length - 1}"

    def get(client: BaseClient, bucket: str, key: str) -> bytes:
        found = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={wanted}")
        first, total = _place(found)
        if total < offset + length:
            found["Body"].close()
            raise _truncated(path, total, offset + length)
        data: bytes = found["Body"].read()[offset - first :][:length]
        if first > offset or len(data) != length:
            raise DamagedError(f"the store did not send bytes {wanted}")
        if crc32 is not None and (got := zlib.crc32(data)) != crc32:
            raise DamagedError(f"bytes {wanted} have CRC-32 {got:08x}, expected {crc32:08x}")
        return data

    if length == 0:
        return b""  # which an HTTP range cannot say
    if is_remote(path):
        return _remotely(path, get)
    with file_errors(path), open(path, "rb") as file:
        file.seek(offset)
        data = file.read(length)
    if len(data) != length:
        raise _truncated(path, offset + len(data), offset + length)
    if crc32 is not None and (got := zlib.crc32(data)) != crc32:
        raise DataError(f"{path}: bytes {wanted} have CRC-32 {got:08x}, expected {crc32:08x}")
    return data


def write_bytes(path: Location, data: bytes) -> None:
    """Write a whole file; a reader, or a kill at any moment, sees the old file or the new one, never a part.

    Raises: DataError naming it.
    """
    if is_remote(path):
        _upload(path, partial(io.BytesIO, data))
    else:
        with writing(path) as file:
            file.write(data)


@contextlib.contextmanager
def writing(path: Location) -> Iterator[IO[bytes]]:
    """A file to write piece by piece, which becomes the file at `path` when the block ends well, as `write_bytes` does.

    Raises: DataError naming it.
    """
    if not is_remote(path):
        with file_errors(path), replacing(Path(path)) as file:
            yield file
        return
    with file_errors(path), tempfile.NamedTemporaryFile() as file:
        yield file
        file.flush()
        _upload(path, partial(io.FileIO, file.name))


def upload_file(local: Path, target: Location) -> None:
    """Copy a local file, whole or not at all; to S3 in parts when it is large.

    Raises: DataError naming the file that is at fault.
    """
    with file_errors(local), open(local, "rb") as source:
        if is_remote(target):
            _upload(target, partial(io.FileIO, local))
        else:
            with writing(target) as file:
                shutil.copyfileobj(source, file)


def download(source: Location, local: Path) -> None:
    """Copy a file to a local one, verified, whole or not at all.

    Raises: DataError naming the file that is at fault.
    """

    def get(client: BaseClient, bucket: str, key: str) -> None:
        found = _head(client, bucket, key)
        file.seek(0)
        file.truncate()
        client.download_fileobj(bucket, key, file, Config=_transfers(DOWNLOADS))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        _verify(found, file.tell(), digest)

    if not is_remote(source):
        upload_file(Path(source), local)
        return
    with file_errors(local), replacing(local) as file:
        _remotely(source, get)


def delete(path: Location) -> None:
    """Remove a file; one that is not there is no error. Raises: DataError naming it."""
    if is_remote(path):
        _remotely(path, lambda client, bucket, key: client.delete_object(Bucket=bucket, Key=key))
    else:
        with file_errors(path):
            Path(path).unlink(missing_ok=True)


def _split(path: Location) -> tuple[str, str]:
    """Bucket and key. `..` is refused: the HTTP client would resolve it, into another folder or bucket."""
    address = str(path).removeprefix(SCHEME).rstrip("/")
    bucket, _, key = address.partition("/")
    if not bucket:
        raise ConfigError(f"{path}: names no bucket; expected s3://bucket/prefix")
    if {".", ".."} & set(address.split("/")):
        raise ConfigError(f"{path}: an s3:// address is spelled out, without '.' and '..'")
    return bucket, key


def _as_prefix(key: str) -> str:
    return f"{key}/" if key else ""


def _head(client: BaseClient, bucket: str, key: str) -> Any:
    return client.head_object(Bucket=bucket, Key=key)


def _list(folder: Location, delimiter: str) -> list[str]:
    """Names below the folder, from there; with a delimiter those up to it, of folders with it."""

    def look(client: BaseClient, bucket: str, key: str) -> list[str]:
        prefix = _as_prefix(key)
        found: list[str] = []
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter=delimiter):
            found += [entry["Key"] for entry in page.get("Contents", [])]
            found += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
        return [name.removeprefix(prefix) for name in found if name != prefix]

    return _remotely(folder, look)


def _place(found: dict[str, Any]) -> tuple[int, int]:
    """First byte of an answer to a range request, and the size of the whole object."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", found.get("ContentRange", ""))
    return (int(match[1]), int(match[2])) if match else (0, int(found["ContentLength"]))


def _truncated(path: Location, total: int, wanted: int) -> DataError:
    return DataError(f"{path}: ends after byte {total}, expected {wanted}: the file is truncated")


def _verify(found: dict[str, Any], total: int, sha256: str) -> None:
    """Compare what arrived with the store's length and, for a file written by us, with the writer's SHA-256."""
    if total != found["ContentLength"]:
        raise DamagedError(f"{total} of {found['ContentLength']} bytes arrived")
    if found.get("Metadata", {}).get("sha256", sha256) != sha256:
        raise DamagedError("its SHA-256 is not the one that it was written with")


def _upload(path: Location, content: Callable[[], io.BytesIO | io.FileIO]) -> None:
    """Store an object whose every part the store verifies; one that fails is aborted and leaves no part."""
    with content() as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    about = {"ChecksumAlgorithm": "SHA256", "Metadata": {"sha256": sha256}}

    def put(client: BaseClient, bucket: str, key: str) -> None:
        with content() as file:  # anew each time: the client closes it
            client.upload_fileobj(file, bucket, key, ExtraArgs=about, Config=_transfers(UPLOADS))

    _remotely(path, put)


def _transfers(threads: int) -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=threads,
        num_download_attempts=REQUEST_ATTEMPTS,
        preferred_transfer_client="classic",  # the other one ignores these settings
    )


def _remotely(path: Location, action: Callable[[BaseClient, str, str], T]) -> T:
    """Run an action on an S3 object until it succeeds, a bounded number of times; no error of the client gets out.

    The client tries a request again by itself, but not a body that breaks off, and for less than a second where
    nothing answers: so the whole action is repeated here.
    """
    bucket, key = _split(path)
    attempt = 1
    while True:
        try:
            return action(_client(), bucket, key)
        except PostError:
            raise
        except Exception as error:
            reason = transient_reason(error)
            if not reason:
                final = final_error(path, bucket, error)
                raise final from (None if final is error else error)
            if attempt == ATTEMPTS:
                raise StorageError(f"{path}: {reason}; given up after {attempt} attempts", TRANSIENT_HINT) from error
        seconds = min(BACKOFF_SECONDS * 2 ** (attempt - 1), LONGEST_BACKOFF_SECONDS) * _jitter.uniform(0.5, 1)
        attempt += 1
        logger.warning("%s: %s; attempt %d of %d in %.1f s", path, reason, attempt, ATTEMPTS, seconds)
        time.sleep(seconds)


def _client() -> BaseClient:
    """The client of this process; threads share it, a forked child makes its own."""
    with _making_client:
        return _new_client()


@cache
def _new_client() -> BaseClient:
    import boto3
    from botocore.config import Config

    for name in ("boto3", "botocore", "s3transfer"):
        logging.getLogger(name).setLevel(logging.WARNING)  # their debug lines hold signatures and session tokens
    # A store at an address of its own rarely has a DNS name per bucket.
    own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        retries={"mode": "standard", "total_max_attempts": REQUEST_ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
        max_pool_connections=POOL_CONNECTIONS,
        tcp_keepalive=True,
        s3={"addressing_style": "path"} if own else None,
    )
    try:
        return boto3.session.Session().client("s3", config=config)
    except ValueError as error:  # its text would repeat a password in the address
        raise ConfigError("AWS_ENDPOINT_URL: not an address", "it looks like http://host:9000") from error


def _forget_client() -> None:
    global _making_client
    _making_client = threading.Lock()
    _new_client.cache_clear()


_making_client = threading.Lock()
os.register_at_fork(after_in_child=_forget_client)
