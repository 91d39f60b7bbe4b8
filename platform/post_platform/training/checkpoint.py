"""Checkpoint folders that are whole or do not exist: MANIFEST.json with every file's sha256 is written last.

On S3 as on disk: a copy there ends with its manifest too, and is used through a verified copy here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import re
import shutil
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from post_platform import storage
from post_platform.errors import DataError, StorageError

logger = logging.getLogger(__name__)
Name = TypeVar("Name", str, Path)

MANIFEST = "MANIFEST.json"
STATE = "state.json"
FOLDER = "checkpoints"
"""Name of the folder of a run's checkpoints, in the run's."""

_NAME = re.compile(r"step_(\d{8,})(-[a-z]{8})?")  # on S3 with its writer's token: no renaming is atomic there


def save(
    folder: Path, step: int, write: Callable[[Path], None], keep: int, fence: Callable[[], None] = lambda: None
) -> Path:
    """Write checkpoint `step` through `write(path)`, and drop all but the newest `keep` and the best.

    A kill at any moment leaves either the whole checkpoint or a hidden `.partial` folder, which nothing reads.

    Args:
        folder: the run's checkpoints.
        step: steps that are done.
        write: writes the checkpoint's files.
        keep: how many of the newest stay.
        fence: raises where this process may not commit any more; asked at the last moment.
    """
    final = write_new(folder / name_of(step), write, {"step": step}, fence)
    found = whole(folder)
    for old in dropped(found, [score(path) for path in found], keep):
        discard(old)
    return final


def write_new(
    final: Path, write: Callable[[Path], None], facts: Mapping[str, object], fence: Callable[[], None] = lambda: None
) -> Path:
    """Write a folder through `write(path)`, with a manifest of `facts` and every file's sha256.

    It appears under its name only when it is whole. A whole one of that name stands: a process that was taken for dead
    has come first, and one state of the run after a step is as good as another.
    """
    partial, _ = _write_partial(final, write, facts)
    try:
        fence()
        if final.exists() and not (final / MANIFEST).is_file():
            discard(final)
        try:
            os.rename(partial, final)
        except OSError:
            if not (final / MANIFEST).is_file():
                raise
    finally:
        discard(partial)
    sync(final.parent)
    return final


def write_whole(final: Path, write: Callable[[Path], None], facts: Mapping[str, object]) -> dict[str, str]:
    """As `write_new`, but a folder that stands there is replaced; returns every file's sha256."""
    partial, files = _write_partial(final, write, facts)
    discard(final)
    os.rename(partial, final)
    sync(final.parent)
    return files


def _write_partial(
    final: Path, write: Callable[[Path], None], facts: Mapping[str, object]
) -> tuple[Path, dict[str, str]]:
    """The folder beside its place, whole and safe on disk, and its files' sha256."""
    partial = _aside(final)
    partial.mkdir(parents=True)
    try:
        write(partial)
        paths = sorted(partial.iterdir())
        for path in paths:
            sync(path)
        files = {path.name: sha256(path) for path in paths}
        (partial / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=1))
        sync(partial / MANIFEST)
        sync(partial)
    except Exception:
        discard(partial)
        raise
    return partial, files


def discard(path: Path) -> None:
    """Remove a checkpoint, whole or not; one that is not there is no error.

    It loses its name first: a kill in between leaves no part of it that looks whole, and a process that is just about
    to give it its name finds it gone.
    """
    gone = _aside(path)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def discard_partial(folder: Path) -> list[str]:
    """Remove what kills have left of checkpoints, by name."""
    found = sorted(folder.glob(".step_*.partial"))
    for path in found:
        discard(path)
    return [path.name for path in found]


def whole(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*") if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file())


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, the only authority on where a run continues; half-written ones are named."""
    for partial in sorted(folder.glob(".step_*.partial")):
        logger.warning("ignoring half-written checkpoint %s", partial)
    found = whole(folder)
    return found[-1] if found else None


def name_of(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step_{step:08d}"


def step_of(name: str) -> int:
    """Steps that are done, by the name of a checkpoint's folder."""
    match = _NAME.fullmatch(name)
    assert match, name
    return int(match[1])


def score(path: storage.Location) -> float | None:
    """`val/mean/score` of a checkpoint, here or on S3; None where its step was not validated."""
    try:
        found = json.loads(storage.read_bytes(storage.join(path, STATE))).get("score")
    except DataError as error:
        if not str(error).endswith("not found"):
            raise
        return None
    return None if found is None else float(found)


def best_of(names: Sequence[Name], scores: Sequence[float | None]) -> Name | None:
    """The checkpoint with the highest score, of equal ones the newest; None where no score is known.

    Args:
        names: of checkpoints, oldest first.
        scores: one to each.
    """
    known = [(value, index) for index, value in enumerate(scores) if value is not None]
    return names[max(known)[1]] if known else None


def dropped(names: Sequence[Name], scores: Sequence[float | None], keep: int) -> list[Name]:
    """Checkpoints that are neither among the newest `keep` nor the best; arguments as `best_of`."""
    best = best_of(names, scores)
    return [name for name in names[:-keep] if name != best]


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


def resolve(location: storage.Location) -> str:
    """A checkpoint's address: `<run>/best` and `<run>/latest` are what they mean now, any other place is itself.

    A run's address on S3, where names of checkpoints hold a part that nobody can guess, means its newest one.

    Raises:
        DataError: the run has none.
    """
    place = storage.absolute(location)
    run, _, name = place.rpartition("/")
    if name in ("best", "latest") and not storage.exists(place):
        folder = storage.join(run, FOLDER)
        names = whole_remote(folder) if storage.is_remote(folder) else [path.name for path in whole(Path(folder))]
        if name == "best":
            found = best_of(names, [score(storage.join(folder, one)) for one in names])
        else:
            found = names[-1] if names else None
        if not found:
            raise DataError(f"{place}: {folder} has no {'validated ' if name == 'best' else ''}checkpoint")
        return storage.join(folder, found)
    if storage.is_remote(place) and not _has_manifest(place):
        folder = storage.join(place, FOLDER)
        if names := whole_remote(folder):
            logger.info("%s is a run: taking its newest checkpoint, %s", place, names[-1])
            return storage.join(folder, names[-1])
    return place


def _has_manifest(source: str) -> bool:
    """Whether a place on S3 has a manifest; asks for no more rights than reading it does."""
    try:
        return storage.size(storage.join(source, MANIFEST)) > 0
    except StorageError:
        raise
    except DataError:
        return False


def fetch(location: storage.Location) -> Path:
    """A checkpoint as a folder of this machine: itself, or a whole and verified copy of one on S3.

    Copies stay in the user's cache, named by the address and the manifest, so each is transferred once per machine.
    `<run>/best` and `<run>/latest` stand for the checkpoints that they mean now.

    Raises:
        DataError: there is no checkpoint, or a file is missing or damaged, by name.
    """
    source = resolve(location)
    if not storage.is_remote(source):
        return Path(source)
    content, names = read_manifest(source)
    copy = cache() / "checkpoints" / hashlib.sha256(source.encode() + content).hexdigest()[:32]
    copy_here(source, content, names, copy)
    return copy


def copy_here(source: str, content: bytes, names: Sequence[str], copy: Path) -> None:
    """Make `copy` a whole and verified copy of a checkpoint on S3, where it is none yet.

    Args:
        source: its address.
        content: its manifest.
        names: the files that the manifest lists.
        copy: a folder of this machine.

    Raises:
        DataError: a file is missing or damaged there, by name.
    """
    if (copy / MANIFEST).is_file() and (copy / MANIFEST).read_bytes() == content:
        try:
            verify(copy)
            return
        except DataError:
            logger.warning("copying %s again: %s is damaged", source, copy)
    discard(copy)
    partial = _aside(copy)
    partial.mkdir(parents=True)
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


def read_manifest(source: str) -> tuple[bytes, list[str]]:
    """The manifest of a checkpoint on S3, and the names of its files. Raises: DataError: none, or a damaged one."""
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
    return content, names


def fetch_file(location: storage.Location) -> Path:
    """A file of weights on this machine: itself, or a verified copy of one on S3. Raises: DataError naming it."""
    if not storage.is_remote(location):
        return Path(storage.absolute(location))
    source = storage.absolute(location)
    version = f"{source} {storage.size(source)} {storage.modified(source)}"
    copy = cache() / "checkpoints" / hashlib.sha256(version.encode()).hexdigest()[:32] / source.rpartition("/")[2]
    if not copy.is_file():
        storage.download(source, copy)
    return copy


def publish(folder: Path, target: storage.Location, fence: Callable[[], None] = lambda: None) -> None:
    """Copy a whole checkpoint to S3, the manifest last: until then there is none. Raises: DataError naming the file."""
    verify(folder)
    storage.delete(storage.join(target, MANIFEST))
    for name in json.loads((folder / MANIFEST).read_text())["files"]:
        storage.upload_file(folder / name, storage.join(target, name))
    fence()
    storage.upload_file(folder / MANIFEST, storage.join(target, MANIFEST))


def whole_remote(folder: str) -> list[str]:
    """Names of the complete checkpoints below an S3 address, oldest first; half-written ones are named."""
    files = [name.split("/", 1) for name in storage.list_files(folder) if "/" in name]
    names = sorted({name for name, _ in files if _NAME.fullmatch(name)})
    found = [name for name in names if [name, MANIFEST] in files]
    for name in names:
        if name not in found:
            logger.warning("ignoring half-written checkpoint %s", storage.join(folder, name))
    return found


def read_state(path: Path) -> dict:
    """The run's state at this checkpoint: step, position, seed, score, ledger hash, resolved config, MLflow run id."""
    return json.loads((path / STATE).read_text())


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, outlast a power failure, where the file system can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(handle)
    finally:
        os.close(handle)


def cache() -> Path:
    """Where copies of what is on S3 lie on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "post-platform"


def token() -> str:
    """Eight letters that no other process draws; no digits, so that those of a checkpoint's name are its step."""
    return "".join(random.SystemRandom().choices(string.ascii_lowercase, k=8))


def _aside(path: Path) -> Path:
    """A hidden name beside `path` that no other process uses."""
    name = re.sub(r"^\.|\.[a-z]{8}\.partial$", "", path.name)
    return path.with_name(f".{name}.{token()}.partial")
