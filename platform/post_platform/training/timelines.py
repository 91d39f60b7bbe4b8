"""Timelines of evaluated sequences: drawn by the rank that has the sequence, which alone has its pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from zlib_ng import zlib_ng as zlib

from post_platform.data.load import read_frame
from post_platform.labels import Contract
from post_platform.render import Labels
from post_platform.render_tracks import Sight, close_up, draw_timeline, png, timeline, worst_switches

if TYPE_CHECKING:
    from post_platform.shards.index import Split

MOST = 4  # per dataset in a validation: about a second and half a MB each; always the first ones: steps compare
Timelines = dict[tuple[str, str], bytes]
"""{(dataset, sequence): PNG}."""


class Tape:
    """The predictions of one sequence, kept until its worst switches are known, which is when it has ended.

    Predicted maps compress to some 40 kB a frame, in a millisecond. Images do not, and they and the truth are in the
    shard: those of the six frames that are shown are read again.
    """

    def __init__(self, split: Split, rows: list[dict[str, Any]]) -> None:
        """Begin with nothing; `rows` are the sequence's rows of the split's index."""
        self.folder = split.folder
        self.rows = {row["frame"]: row for row in rows}
        self.packed: dict[int, bytes] = {}

    def keep(self, frame: int, prediction: Labels) -> None:
        """Remember the predicted (classes, tracks) of a frame."""
        classes, tracks = prediction
        self.packed[frame] = zlib.compress(classes.astype(np.uint8).tobytes() + tracks.astype(np.int32).tobytes(), 1)

    def look(self, frame: int) -> Sight:
        """A frame that was kept, with its image and truth."""
        row = self.rows[frame]
        truth = read_frame(self.folder, row, f"{row['sequence']}/{frame:06d}")
        content, (height, width) = zlib.decompress(self.packed[frame]), truth.classes.shape
        classes = np.frombuffer(content, np.uint8, height * width).reshape(height, width)
        tracks = np.frombuffer(content, np.int32, offset=height * width).reshape(height, width)
        return truth.image, (truth.classes, truth.instances), (classes, tracks)

    def draw(self, table: pa.Table, contract: Contract) -> bytes:
        """The timeline of the sequence as a PNG, from its contingency table and the frames that were kept."""
        found = timeline(table, contract)
        closeups = [close_up(switch, contract, self.look) for switch in worst_switches(found)]
        return png(draw_timeline(found, contract, closeups))


def write_timelines(timelines: Mapping[tuple[str, str], bytes], folder: Path) -> list[Path]:
    """Write `<dataset>/<sequence>.png` for each; a slash in a sequence's name becomes an underscore."""
    paths = []
    for (dataset, sequence), content in timelines.items():
        path = folder / dataset / f"{sequence.replace('/', '_')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        paths.append(path)
    return paths
