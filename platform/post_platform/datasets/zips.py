"""Label files inside a zip, read in place: nothing of the archive ever reaches the disk, whatever its names say."""

from __future__ import annotations

import zipfile
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath

from post_platform.datasets.files import is_junk
from post_platform.errors import DataError

MAX_MEMBER_BYTES = 1 << 26  # the largest official label PNG is below 1 MB


FAULTS = (OSError, KeyError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile)


def members(path: Path) -> dict[str, str]:
    """File name -> member of that name, wherever it lies in the archive; junk is left out.

    Raises: DataError naming the archive.
    """
    return _open(path)[1]


def read_member(path: Path, member: str, where: str) -> bytes:
    """One member's bytes, in memory. Raises: DataError naming `where` when it cannot be read or is too large."""
    try:
        with _open(path)[0].open(member) as stream:
            content = stream.read(MAX_MEMBER_BYTES + 1)
    except FAULTS as error:
        raise DataError(f"{where}: {member} in {path.name} cannot be read: {error}") from error
    if len(content) > MAX_MEMBER_BYTES:
        raise DataError(f"{where}: {member} in {path.name} is larger than {MAX_MEMBER_BYTES} bytes")
    return content


def _open(path: Path) -> tuple[zipfile.ZipFile, dict[str, str]]:
    try:
        return _opened(path, path.stat().st_mtime_ns)
    except FAULTS as error:
        raise DataError(f"{path} cannot be opened: {error}") from error


@lru_cache(maxsize=2)
def _opened(path: Path, changed: int) -> tuple[zipfile.ZipFile, dict[str, str]]:
    """The archive as it is since `changed`, and its members by name."""
    archive = zipfile.ZipFile(path)
    found = (PurePosixPath(member) for member in archive.namelist())
    return archive, {member.name: str(member) for member in found if not any(map(is_junk, member.parts))}
