"""Local files that appear whole or not at all, a lock, and one line for what the file system refuses."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from io import BufferedRandom
from pathlib import Path

from post_platform.errors import DataError, PostError


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BufferedRandom]:
    """A file to write that takes the target's place, safe on disk, when the block ends well; else it is gone.

    A reader, or a kill at any moment, sees the old file or the new one, never a part.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


@contextlib.contextmanager
def held(path: Path, busy: PostError) -> Iterator[None]:
    """Hold the lock at `path` while the block runs; it goes when this process does, however it ends.

    Raises: `busy`: another process holds it.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        yield


@contextlib.contextmanager
def file_errors(path: str | Path) -> Iterator[None]:
    """Turn the system's errors into one line that names the path. Raises: DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Make a renaming outlast a power failure, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@cache
def _umask() -> int:
    mask = os.umask(0o022)  # reading the mask means setting it
    os.umask(mask)
    return mask
