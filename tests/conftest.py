"""What several test files share: a toy city small enough to convert in seconds."""

import faulthandler
from pathlib import Path

import pytest


def pytest_unconfigure():
    """A thread that the process waits for after the last test shows where it is, and ends it, with an error."""
    faulthandler.dump_traceback_later(120, exit=True)


@pytest.fixture(scope="session")
def toy_shards(tmp_path_factory) -> Path:
    """Root of three converted toy datasets (train and val), 64x128 pixels; read only: copy it to damage it."""
    from post_platform import cluster, toycity
    from post_platform.shards.write import convert

    folder = tmp_path_factory.mktemp("toy")
    sources = toycity.write_all(folder / "raw", train_frames=4, val_frames=3, stills=6, height=64, width=128)
    cluster.connect()
    for name, source in sources.items():
        convert(name, source, folder / "shards")
    return folder / "shards"
