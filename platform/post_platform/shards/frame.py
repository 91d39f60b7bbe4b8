"""One frame in its official form -> its slice of a shard and its row of the index."""

from __future__ import annotations

import zlib
from typing import Any

from post_platform.datasets import reader
from post_platform.datasets.files import read_image_file
from post_platform.datasets.frame import FrameRef
from post_platform.errors import DataError
from post_platform.labels import VOID, label_problem, load_contract
from post_platform.runs import distinct
from post_platform.shards import record


def encode_frame(dataset: str, split: str, ref: FrameRef, lossless: bool) -> tuple[bytes, dict[str, Any], list[int]]:
    """Read one frame in its official form: its slice of a tar, its index row (without place), its classes.

    Raises: DataError naming dataset, split and key: unreadable image or label, sizes that differ, illegal label.
    """
    where = f"{dataset}/{split} {ref.key}"
    label = None if ref.label is None else reader(dataset).label(ref)
    shape = None if label is None else label.classes.shape
    image = record.store_image(read_image_file(ref.image, where), where, lossless, shape)
    facts = {
        "dataset": dataset,
        "split": split,
        "sequence": ref.sequence,
        "frame": ref.frame,
        "seconds_since_previous": ref.seconds_since_previous,
        "source_video": ref.source_video,
        "source_image": ref.image.name,
        "native": ref.native,
    }
    try:
        data = record.encode(ref.key, image, label, facts)
    except DataError as error:
        raise DataError(f"{dataset}/{split} {error}", error.hint) from error
    present: list[int] = []
    if label is not None:
        problem = label_problem(load_contract(dataset), label.classes, label.instances)
        if problem:
            raise DataError(f"{where}: {problem}")
        present = [value for value in distinct(label.classes).tolist() if value != VOID]
    row = {
        "sequence": ref.sequence,
        "frame": ref.frame,
        "length": len(data),
        "crc32": zlib.crc32(data),
        "height": image.height,
        "width": image.width,
        "labelled": label is not None,
        "seconds_since_previous": ref.seconds_since_previous,
        "source_video": ref.source_video,
    }
    return data, row, present
