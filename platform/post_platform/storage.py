"""Local folders and `s3://bucket/prefix` behind six small functions; the only importer of boto3.

Credentials and endpoint come from the standard AWS chain (environment, profile, instance role) and are never logged.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from post_platform.errors import DataError

if TYPE_CHECKING:
    from botocore.client import BaseClient

Location = str | Path
SCHEME = "s3://"


def is_remote(path: Location) -> bool:
    """True for `s3://...`."""
    return str(path).startswith(SCHEME)


def absolute(path: Location) -> str:
    """The same place for every process, whatever its working directory."""
    return str(path).rstrip("/") if is_remote(path) else str(Path(path).expanduser().resolve())


def join(root: Location, *parts: str) -> str:
    """`root/part/part`, local or remote."""
    return "/".join([str(root).rstrip("/"), *parts])


def exists(path: Location) -> bool:
    """True when there is a file, or a folder with something in it."""
    if not is_remote(path):
        return Path(path).exists()
    bucket, key = _split(path)
    with _errors(path):
        found = _client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=2)
    names = [entry["Key"] for entry in found.get("Contents", [])]
    return any(name == key or name.startswith(key.rstrip("/") + "/") for name in names)


def list_names(folder: Location) -> list[str]:
    """Names directly inside a folder, sorted; empty when there is no such folder."""
    if not is_remote(folder):
        return sorted(os.listdir(folder)) if Path(folder).is_dir() else []
    bucket, key = _split(folder)
    prefix = f"{key.rstrip('/')}/" if key else ""
    names: list[str] = []
    with _errors(folder):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
            names += [entry["Key"].removeprefix(prefix) for entry in page.get("Contents", [])]
            names += [entry["Prefix"].removeprefix(prefix).rstrip("/") for entry in page.get("CommonPrefixes", [])]
    return sorted(name for name in names if name)


def read_bytes(path: Location) -> bytes:
    """The whole file. Raises: DataError naming it."""
    with _errors(path):
        if not is_remote(path):
            return Path(path).read_bytes()
        bucket, key = _split(path)
        return _client().get_object(Bucket=bucket, Key=key)["Body"].read()


def read_range(path: Location, offset: int, length: int) -> bytes:
    """Exactly `length` bytes from `offset`.

    Raises: DataError naming the file, also when it ends before the range does.
    """
    with _errors(path):
        if is_remote(path):
            bucket, key = _split(path)
            wanted = f"bytes={offset}-{offset + length - 1}"
            data = _client().get_object(Bucket=bucket, Key=key, Range=wanted)["Body"].read()
        else:
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read(length)
    if len(data) != length:
        raise DataError(
            f"{path}: ends after byte {offset + len(data)}, expected {offset + length}: the file is truncated"
        )
    return data


def write_bytes(path: Location, data: bytes) -> None:
    """Write a whole file; a reader, or a kill at any moment, sees the old file or the new one, never a part.

    Raises: DataError naming it.
    """
    with _errors(path):
        if is_remote(path):
            bucket, key = _split(path)
            _client().put_object(Bucket=bucket, Key=key, Body=data)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def delete(path: Location) -> None:
    """Remove a file; one that is not there is no error. Raises: DataError naming it."""
    with _errors(path):
        if is_remote(path):
            bucket, key = _split(path)
            _client().delete_object(Bucket=bucket, Key=key)
        else:
            Path(path).unlink(missing_ok=True)


def _split(path: Location) -> tuple[str, str]:
    bucket, _, key = str(path).removeprefix(SCHEME).partition("/")
    return bucket, key


@cache
def _umask() -> int:
    mask = os.umask(0o022)  # reading the mask means setting it
    os.umask(mask)
    return mask


@cache
def _client() -> BaseClient:
    import boto3

    return boto3.client("s3")


@contextlib.contextmanager
def _errors(path: Location) -> Iterator[None]:
    """Turn the system's and the S3 client's errors into one line that names the path."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except Exception as error:
        if not is_remote(path) or not type(error).__module__.startswith(("botocore", "boto3")):
            raise
        code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
        reason = "not found" if code in ("NoSuchKey", "NoSuchBucket", "404") else code or " ".join(str(error).split())
        raise DataError(f"{path}: {reason}", hint="credentials and endpoint: AWS_PROFILE, AWS_ENDPOINT_URL") from error
