"""The labels of KITTI-STEP and MOTChallenge-STEP: RGB PNG, R = class, G*256 + B = instance."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from post_platform.datasets.files import decode_label_png
from post_platform.datasets.frame import FrameRef, Label
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, legal_classes, load_contract, thing_table
from post_platform.runs import distinct


def label(dataset: str, ref: FrameRef) -> Label:
    """The label of one frame: R is the class, G*256 + B the instance as it is.

    A thing with instance 0 is a crowd. Classes without instances in this dataset stay without.

    Raises: DataError for an unknown class or an unreadable file.
    """
    where = f"{dataset} {ref.key}"
    assert isinstance(ref.label, Path)
    values = decode_label_png(ref.label, where, "RGB")
    contract = load_contract(dataset)
    classes = np.ascontiguousarray(values[..., 0], dtype=np.uint8)
    present = distinct(classes)
    unknown = present[~legal_classes(contract)[present]]
    if unknown.size:
        last = contract.classes[-1].id
        raise DataError(f"{where}: label has class {int(unknown[0])}, must be 0..{last} or {VOID}")
    instances = values[..., 1].astype(np.uint16) * 256 + values[..., 2].astype(np.uint16)
    if int(instances.max()) == UNIDENTIFIED:
        raise DataError(f"{where}: instance {UNIDENTIFIED} cannot be stored, ids go to {UNIDENTIFIED - 1}")
    thing = thing_table(contract).take(classes)
    instances[thing & (instances == 0)] = UNIDENTIFIED
    instances[~thing] = 0
    objects = distinct(classes[thing].astype(np.uint32) << 16 | instances[thing]).tolist()
    ids = ((value >> 16, value & 0xFFFF) for value in objects)
    return Label(classes, instances, {f"{c}/{i}": i for c, i in ids if i != UNIDENTIFIED})
