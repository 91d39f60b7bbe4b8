"""One driver at a time for a run on S3, where no lock goes with the process that holds it: a lease that is renewed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count

from post_platform import storage
from post_platform.errors import DataError, PostError, StorageError

logger = logging.getLogger(__name__)

LEASE = "lease"
RENEW_EVERY = 5.0
EXPIRES = 20.0
"""Seconds for which a lease must stay as it is before its holder counts as dead."""

LOOK_EVERY = 1.0


@contextmanager
def leased(shared: str, attempt: str, busy: PostError) -> Iterator[None]:
    """Hold the lease of the run at `shared` while the block runs; after a killed holder, once its lease has expired.

    Whether it is renewed is seen by looking: no clocks are compared, and no conditional write is asked of the store,
    which not every store has. So two that start within a second may both go on; the attempt leaves one of them, before
    anything is committed.

    Raises: `busy`: another process renews the lease.
    """
    file = storage.join(shared, LEASE)
    _wait(file, busy)
    storage.write_bytes(file, f"{attempt} 0".encode())
    ended = threading.Event()

    def renew() -> None:
        for number in count(1):
            if ended.wait(RENEW_EVERY):
                return
            with suppress(StorageError):  # away for long: then the lease is lost, and the next attempt decides
                storage.write_bytes(file, f"{attempt} {number}".encode())

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(StorageError):
            storage.delete(file)


def _wait(file: str, busy: PostError) -> None:
    """Return when there is no lease, or it has expired. Raises: `busy`."""
    before = _read(file)
    if not before:
        return
    logger.info("another process trains this run, or was killed: looking at it for %.0f s", EXPIRES)
    deadline = time.monotonic() + EXPIRES
    while time.monotonic() < deadline:
        time.sleep(LOOK_EVERY)
        now = _read(file)
        if now not in (before, ""):
            raise busy
        if not now:
            return


def _read(file: str) -> str:
    """The lease; '' where there is none."""
    try:
        return storage.read_bytes(file).decode()
    except StorageError:
        raise
    except DataError:
        return ""
