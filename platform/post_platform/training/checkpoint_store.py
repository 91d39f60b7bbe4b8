"""A run's checkpoints, in a folder that all its machines share, or on S3 with working copies in a folder of each."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Callable
from pathlib import Path

from post_platform import storage
from post_platform.training import checkpoint

logger = logging.getLogger(__name__)

WRITER = ".writer"


class Superseded(RuntimeError):
    """Other workers train the run by now. No mistake of the user: where a driver still listens, it tries again."""


class Store:
    """One authority on where a run stands: the newest checkpoint that is whole, here or, for a run on S3, there.

    Every whole checkpoint is a state of the run by itself: with its ledger and the metrics that waited for it. So
    nothing is lost when a process that was taken for dead commits one after all; but it is stopped where it can be:
    who trains the run now has claimed it, and a writer asks for its claim before a checkpoint gets its name. On S3,
    where a folder does not appear at once, each writer has folders of its own: none ever mixes two writers' files.
    """

    def __init__(self, folder: Path, remote: str | None = None) -> None:
        """Look at the checkpoints in `folder`; with `remote` at those below this S3 address, copied to `folder`."""
        self.folder, self.remote = folder, remote
        self.root: storage.Location = remote or folder
        self.token: str | None = None
        self._scores: dict[str, float | None] = {}

    def claim(self) -> None:
        """Become the only writer, and clear what dead ones have left half-written, which is named."""
        self.token = checkpoint.token()
        storage.write_bytes(storage.join(self.root, WRITER), self.token.encode())
        left = checkpoint.discard_partial(self.folder)
        for name in left if not self.remote else self._discard_half_uploaded():
            logger.warning("removed half-written checkpoint %s", storage.join(self.root, name))

    def require_claim(self) -> None:
        """Raises: Superseded: another worker group has claimed the run since."""
        if self.token and storage.read_bytes(storage.join(self.root, WRITER)).decode() != self.token:
            raise Superseded(f"the checkpoints in {self.root} are continued by other workers")

    def names(self) -> list[str]:
        """Whole checkpoints, oldest first."""
        if self.remote:
            return checkpoint.whole_remote(self.remote)
        return [path.name for path in checkpoint.whole(self.folder)]

    def newest(self) -> str | None:
        """Name of the checkpoint where the run continues; half-written ones are named in a warning."""
        if not self.remote:
            found = checkpoint.latest(self.folder)
            return found.name if found else None
        for name in reversed(self.names()):
            files = storage.list_names(self.address(name))
            if set(checkpoint.read_manifest(str(self.address(name)))[1]) <= set(files):
                return name
            logger.warning("ignoring checkpoint %s: it lacks files that its manifest lists", self.address(name))
        return None

    def committed_step(self) -> int:
        """The step where the run continues; 0 where there is no checkpoint."""
        newest = self.newest()
        return checkpoint.step_of(newest) if newest else 0

    def latest(self) -> Path | None:
        """The newest checkpoint, as `path` gives it."""
        newest = self.newest()
        return self.path(newest) if newest else None

    def path(self, name: str) -> Path:
        """A checkpoint as a folder of this machine, verified; one on S3 is copied once.

        Raises: DataError: it is damaged, or is none, by name.
        """
        local = self.folder / name
        if not self.remote:
            checkpoint.verify(local)
            return local
        source = str(self.address(name))
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".copying").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of a machine's ranks the first copies, for all
            checkpoint.copy_here(source, *checkpoint.read_manifest(source), local)
        return local

    def address(self, name: str) -> storage.Location:
        """Where a checkpoint is, for messages and for commands that take one."""
        return storage.join(self.remote, name) if self.remote else self.folder / name

    def best(self) -> str | None:
        """Name of the checkpoint with the highest `val/mean/score`."""
        names = self.names()
        return checkpoint.best_of(names, [self._score(name) for name in names])

    def commit(
        self, step: int, write: Callable[[Path], None], keep: int, fence: Callable[[], None] = lambda: None
    ) -> str:
        """Make the checkpoint of `step` permanent, then drop all but the newest `keep` and the best; returns its name.

        On S3 it counts once its copy there is whole; of the working copies only the newest stays.

        Raises:
            Superseded: another worker group has claimed the run; or what `fence` raises.
        """

        def allowed() -> None:
            fence()
            self.require_claim()

        if not self.remote:
            return checkpoint.save(self.folder, step, write, keep, allowed).name
        name = f"{checkpoint.name_of(step)}-{self.token or checkpoint.token()}"
        local = checkpoint.write_new(self.folder / name, write, {"step": step})
        checkpoint.publish(local, self.address(name), allowed)
        for copy in checkpoint.whole(self.folder):
            if copy != local:
                checkpoint.discard(copy)
        names = self.names()
        for old in checkpoint.dropped(names, [self._score(one) for one in names], keep):
            self._delete(old, storage.list_names(self.address(old)))
        return name

    def _score(self, name: str) -> float | None:
        if name not in self._scores:
            self._scores[name] = checkpoint.score(self.address(name))
        return self._scores[name]

    def _discard_half_uploaded(self) -> list[str]:
        assert self.remote
        whole = set(self.names())
        found: dict[str, list[str]] = {}
        for file in storage.list_files(self.remote):
            name, slash, rest = file.partition("/")
            if slash and name not in whole:
                found.setdefault(name, []).append(rest)
        for name, files in found.items():
            self._delete(name, files)
        return sorted(found)

    def _delete(self, name: str, files: list[str]) -> None:
        """The manifest first: a kill in between leaves no checkpoint that looks whole."""
        for file in sorted(files, key=lambda file: file != checkpoint.MANIFEST):
            storage.delete(storage.join(self.address(name), file))
