"""What a run's files are called, and where they are: in the run's folder, or on S3 with a working copy here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from post_platform import storage
from post_platform.config import RunConfig
from post_platform.errors import PostError
from post_platform.training import checkpoint

CONFIG = "config.yaml"
RUN = "run.json"
"""The run's MLflow run."""

SCORES = "scores.json"
"""Of the last validation."""

LOCK = "lock"
ATTEMPT = "attempt"
"""Names the process that trains the run now; who finds another name there commits nothing."""

STOP, CHECKPOINT = "stop", "checkpoint_now"
"""With which the driver, or Ray Train's controller, asks the workers for it: small, and seen by every one."""

LOGS = "logs"
PROGRESS = "progress.json"
"""In `LOGS`: how far the run is."""


def address_of(config: RunConfig) -> str | None:
    """The run's address on S3; None for a run in a folder."""
    return storage.join(config.run.dir, config.run.name) if storage.is_remote(config.run.dir) else None


def folder_of(config: RunConfig) -> Path:
    """The run's files on this machine: its folder; or, for a run on S3, a working copy that may go at any time."""
    if not address_of(config):
        return Path(config.run.dir) / config.run.name
    return checkpoint.cache() / "runs" / hashlib.sha256(config.run.dir.encode()).hexdigest()[:32] / config.run.name


def continued_elsewhere(config: RunConfig) -> PostError:
    """The end of an attempt that finds another one's name in `ATTEMPT`."""
    return PostError(f"run {config.run.name!r} has been continued by another process")
