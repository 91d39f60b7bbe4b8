"""Local files that appear whole or not at all, and one line for what the file system refuses."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from io import BufferedRandom
from pathlib import Path

from post_platform.errors import DataError


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
