"""What several test files share: a toy city small enough to convert in seconds."""

from pathlib import Path

import pytest


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
