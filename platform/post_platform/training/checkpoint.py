"""Checkpoint folders that are whole or do not exist: MANIFEST.json with every file's sha256 is written last.

On S3 as on disk: a copy there ends with its manifest too, and is used through a verified copy here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from post_platform import storage
from post_platform.errors import DataError

logger = logging.getLogger(__name__)

MANIFEST = "MANIFEST.json"


def save(folder: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Write checkpoint `step` through `write(path)` and drop the oldest beyond `keep`.

    A kill at any moment leaves either the whole checkpoint or a folder without MANIFEST.json, which nothing reads.
    """
    final = folder / f"step_{step:08d}"
    write_whole(final, write, {"step": step})
    for old in whole(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def write_whole(final: Path, write: Callable[[Path], None], facts: Mapping[str, object]) -> dict[str, str]:
    """Write a folder through `write(path)`, with a manifest of `facts` and every file's sha256, which are returned.

    The folder appears under its name only when it is whole; one that stood there is replaced.
    """
    partial = final.parent / f".{final.name}.partial"
    for stale in (partial, final):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    files = {path.name: sha256(path) for path in sorted(partial.iterdir())}
    _write_durably(partial / MANIFEST, json.dumps({**facts, "files": files}, indent=1))
    os.rename(partial, final)
    return files


def whole(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / MANIFEST).is_file())


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, the only authority on where a run continues; half-written ones are named."""
    for partial in folder.glob(".step_*.partial"):
        logger.warning("ignoring half-written checkpoint %s", partial)
    found = whole(folder)
    return found[-1] if found else None


def verify(path: Path) -> None:
    """Check every file against the manifest.

    Raises:
        DataError: no manifest, or a file that is missing or differs, by name.
    """
    if not (path / MANIFEST).is_file():
        raise DataError(f"{path} is not a checkpoint: it has no {MANIFEST}", f"list the folder: ls {path.parent}")
    hint = f"without it, the one before counts: rm -r {path}"
    try:
        files = dict(json.loads((path / MANIFEST).read_text())["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"checkpoint {path}: {MANIFEST} is damaged", hint) from error
    for name, expected in files.items():
        if not (path / name).is_file():
            raise DataError(f"checkpoint {path}: {name} is missing", hint)
        if (got := sha256(path / name)) != expected:
            raise DataError(f"checkpoint {path}: {name} is damaged (sha256 {got[:12]}, expected {expected[:12]})", hint)


def fetch(location: storage.Location) -> Path:
    """A checkpoint as a folder of this machine: itself, or a whole and verified copy of one on S3.

    Copies stay in the user's cache, named by the address and the manifest, so each is transferred once per machine.

    Raises:
        DataError: there is no checkpoint, or a file is missing or damaged, by name.
    """
    if not storage.is_remote(location):
        return Path(storage.absolute(location))
    source = storage.absolute(location)
    try:
        content = storage.read_bytes(storage.join(source, MANIFEST))
        names = list(json.loads(content)["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"checkpoint {source}: {MANIFEST} is damaged") from error
    except DataError as error:
        if not str(error).endswith("not found"):
            raise
        raise DataError(f"{source} is not a checkpoint, or not a whole one: it has no {MANIFEST}") from error
    if strange := [name for name in names if not re.fullmatch(r"\w[\w.-]*", name)]:
        raise DataError(f"checkpoint {source}: {MANIFEST} lists {strange[0]!r}, which is no file's name")
    copy = _cache() / hashlib.sha256(source.encode() + content).hexdigest()[:32]
    if (copy / MANIFEST).is_file():
        try:
            verify(copy)
            return copy
        except DataError:
            shutil.rmtree(copy)
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=copy.parent, prefix=".partial."))
    try:
        for name in names:
            storage.download(storage.join(source, name), partial / name)
        (partial / MANIFEST).write_bytes(content)
        verify(partial)
        with contextlib.suppress(OSError):  # another process of this machine was first
            os.rename(partial, copy)
    except DataError as error:
        raise DataError(str(error).replace(str(partial), source), f"copy it there again: {source}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return copy


def fetch_file(location: storage.Location) -> Path:
    """A file of weights on this machine: itself, or a verified copy of one on S3. Raises: DataError naming it."""
    if not storage.is_remote(location):
        return Path(storage.absolute(location))
    source = storage.absolute(location)
    version = f"{source} {storage.size(source)} {storage.modified(source)}"
    copy = _cache() / hashlib.sha256(version.encode()).hexdigest()[:32] / source.rpartition("/")[2]
    if not copy.is_file():
        storage.download(source, copy)
    return copy


def publish(folder: Path, target: storage.Location) -> None:
    """Copy a whole checkpoint to S3, the manifest last: until then there is none. Raises: DataError naming the file."""
    verify(folder)
    storage.delete(storage.join(target, MANIFEST))
    for name in json.loads((folder / MANIFEST).read_text())["files"]:
        storage.upload_file(folder / name, storage.join(target, name))
    storage.upload_file(folder / MANIFEST, storage.join(target, MANIFEST))


def read_state(path: Path) -> dict:
    """The run's state at this checkpoint: step, position, seed, ledger hash, resolved config, MLflow run id."""
    return json.loads((path / "state.json").read_text())


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "post-platform" / "checkpoints"
