"""What waits for the experiment store: one append-only file per writer, sent in order by one thread per run.

Any number of processes of a run write, each to a file of its own; one of them sends for all. It holds `sender.lock`;
when it dies, another one of the run, or of its next start, takes over. All locks go with the process that holds them.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

Entry = dict[str, Any]

CHUNK = 1 << 20  # bytes read ahead; more when one line is longer
POLL, LONGEST_PAUSE, PATIENCE, PROBE = 0.5, 10.0, 30.0, 10.0  # seconds

_log = logging.getLogger(__name__)


class Spool:
    """The file of one writer: a line is with the operating system, so survives a SIGKILL, once `append` returns."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
        self.files = self.path.with_suffix("")
        # Locked before it has its name: a sender takes an unlocked file for that of a writer that is gone.
        unlocked = self.path.with_suffix(".new")
        self._file = unlocked.open("ab", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        unlocked.rename(self.path)

    def append(self, entry: Entry) -> None:
        """Add an entry, in one write: no other process sees half of it unless this one dies meanwhile."""
        self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def new_file(self, name: str) -> Path:
        """Return where a file that an entry refers to is to be put: its name stays, whatever else has that name."""
        folder = self.files / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder / name

    def close(self) -> None:
        """Leave the file to the sender, which removes it when everything is sent."""
        self._file.close()


class Sender:
    """Hands what the spools of a folder hold to `deliver`, oldest file first, until all is taken.

    `deliver` gets entries and returns how many of the first ones are stored for good; where it fails it is called
    again later, with the same entries, so it must bear some that are stored already.
    """

    def __init__(self, folder: Path, store: str, deliver: Callable[[list[Entry]], int]) -> None:
        self.folder = folder
        self._store = store
        self._deliver = deliver
        self._wake = threading.Event()
        self._closed = self._paused = False
        self._thread: threading.Thread | None = None
        self._replayed = 0

    @property
    def away(self) -> bool:
        """Whether the store did not answer last time."""
        return self._marker.exists()

    @property
    def waiting(self) -> int:
        """Bytes that are not sent yet."""
        return sum(_left(path) for path in _spools(self.folder))

    def notice_away(self, reason: str) -> None:
        """Note that the store does not answer, with a warning the first time."""
        if not self.away:
            _log.warning(
                "%s does not answer; what is logged waits in %s and is sent later: %s", self._store, self.folder, reason
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._marker.touch()
        os.utime(self._marker, ns=(time.time_ns(), time.time_ns()))

    def notice_answer(self) -> None:
        """Note that the store answers."""
        self._marker.unlink(missing_ok=True)

    def wake(self, hurry: bool = False) -> None:
        """Send in the background: now, or, where the store is away and there is no hurry, when it is tried again."""
        if self._thread is None:
            self._closed = False
            self._thread = threading.Thread(target=self._run, daemon=True, name="experiment-sender")
            self._thread.start()
        if hurry or not self._paused:
            self._wake.set()

    def flush(self) -> bool:
        """Wait until what is spooled now is sent; False as soon as the store fails, or makes no progress for long."""
        began = time.time_ns()
        sizes = {path: _size(path) for path in _spools(self.folder)}
        self.wake(hurry=True)
        seen, since = -1, time.monotonic()
        while (left := sum(_left(path, size) for path, size in sizes.items())) or (self.away and self._replayed):
            if self._failed_after(began) or time.monotonic() - since > PATIENCE:
                return False
            if left != seen:
                seen, since = left, time.monotonic()
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """Stop sending, after a last look; another process of the run may go on."""
        self._closed = True
        self._wake.set()
        if self._thread:
            self._thread.join(timeout=PATIENCE)
        self._thread = None

    @property
    def _marker(self) -> Path:
        return self.folder / "away"

    def _failed_after(self, moment: int) -> bool:
        try:
            return self._marker.stat().st_mtime_ns > moment
        except FileNotFoundError:
            return False

    def _run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "sender.lock").open("ab") as lock:
            pause = POLL
            while True:
                self._wake.clear()
                last = self._closed
                if _try_lock(lock) and not (last and self.away):
                    self._paused = not self._round()
                    pause = min(LONGEST_PAUSE, 2 * pause) if self._paused else POLL
                if last:
                    return
                self._wake.wait(pause)

    def _round(self) -> bool:
        """Send what there is; False when the store did not take it."""
        try:
            for path in _spools(self.folder):
                self._drain(path)
        except Exception as error:  # whatever a client, a driver or a disk raises: logging must not end a training
            if not self.away:
                self._replayed = 0
            self.notice_away(first_line(error))
            return False
        if self.away and self._replayed:
            self.notice_answer()
            _log.warning("%s answers again; %d entries that had waited are stored", self._store, self._replayed)
        self._replayed = 0
        return True

    def _drain(self, path: Path) -> None:
        gone = _abandoned(path)  # asked first: what is written after that makes the next round's
        sent = _sent(path)
        with path.open("rb") as file:
            file.seek(sent)
            while lines := _whole_lines(file):
                entries = [json.loads(line) for line in lines]
                while entries:
                    done = self._deliver(entries)
                    sent += sum(map(len, lines[:done]))
                    self._replayed += done
                    _write_sent(path, sent)
                    entries, lines = entries[done:], lines[done:]
                file.seek(sent)
        if gone:
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink()
            _mark(path).unlink(missing_ok=True)


def unreachable(uri: str) -> str | None:
    """Make the database's folder, or say within seconds why no server answers."""
    parts = urlsplit(uri)
    try:
        if parts.scheme == "sqlite":
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        elif parts.scheme == "https":
            socket.create_connection((parts.hostname or "", parts.port or 443), timeout=PROBE).close()
        elif parts.scheme == "http":
            # One that hangs accepts connections too: only an answer counts, whatever it is, but not a proxy's own.
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=PROBE)
            connection.request("HEAD", parts.path.rstrip("/") + "/health")
            status = connection.getresponse().status
            connection.close()
            if status in (502, 503, 504):
                return f"HTTP status {status}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return first_line(error)
    return None


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _spools(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def _mark(path: Path) -> Path:
    return path.with_suffix(".sent")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # sent meanwhile, and removed
        return 0


def _sent(path: Path) -> int:
    """Bytes of a spool that are sent."""
    try:
        return int(_mark(path).read_text())
    except FileNotFoundError:
        return 0


def _left(path: Path, end: int | None = None) -> int:
    """Bytes of a spool, or of those before `end`, that are not sent; none of one that is sent and removed."""
    size = _size(path)
    return max(0, min(size, size if end is None else end) - _sent(path))


def _write_sent(path: Path, sent: int) -> None:
    new = path.with_suffix(".sent.new")
    new.write_text(str(sent))
    new.rename(_mark(path))


def _whole_lines(file: IO[bytes]) -> list[bytes]:
    """The next lines; without the last one where a writer died within it."""
    data = file.read(CHUNK)
    if data and not data.endswith(b"\n"):
        head, newline, _ = data.rpartition(b"\n")
        data = head + newline if newline else data + file.readline()
    return [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _abandoned(path: Path) -> bool:
    """Whether the writer of a spool has closed it or died."""
    with path.open("ab") as file:
        return _try_lock(file)
