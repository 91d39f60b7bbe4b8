"""The toy city's writers know nothing of the readers: what both make of one street must agree."""

import numpy as np
import pytest

from post_platform.datasets import reader
from post_platform.labels import UNIDENTIFIED, label_problem, load_contract
from post_platform.shards.planning import plan_conversion
from post_platform.toycity.layouts import write_all


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    return write_all(
        tmp_path_factory.mktemp("city"), seed=3, train_frames=4, val_frames=3, stills=4, height=64, width=128
    )


def labelled(dataset, source):
    read = reader(dataset)
    return {(split, ref.key): read.label(ref) for split in ("train", "val") for ref in read.frames(source, split)}


@pytest.mark.parametrize("dataset", ["kitti_mots", "kitti_step", "coco_panoptic"])
def test_every_label_is_legal_and_has_objects_somewhere(city, dataset):
    labels = labelled(dataset, city[dataset])
    problems = [label_problem(load_contract(dataset), label.classes, label.instances) for label in labels.values()]
    assert problems == [None] * len(labels)
    assert any(label.native_ids for label in labels.values())
    for label in labels.values():
        objects = (label.instances > 0) & (label.instances < UNIDENTIFIED)
        pairs = zip(label.classes[objects].tolist(), label.instances[objects].tolist(), strict=True)
        assert {f"{c}/{i}" for c, i in pairs} == label.native_ids.keys()


def test_kitti_mots_text_and_png_agree(city):
    source = city["kitti_mots"]
    from_png = labelled("kitti_mots", source)
    (source / "instances").rename(source / "set_aside")
    try:
        from_text = labelled("kitti_mots", source)
    finally:
        (source / "set_aside").rename(source / "instances")
    assert from_png.keys() == from_text.keys()
    for key, label in from_png.items():
        np.testing.assert_array_equal(label.classes, from_text[key].classes)
        np.testing.assert_array_equal(label.instances, from_text[key].instances)


def test_train_and_val_share_no_recording(city, tmp_path):
    for dataset, source in city.items():
        videos = {
            job.split: {ref.source_video for shard in job.shards for ref in shard.frames}
            for job in plan_conversion(dataset, source, tmp_path)
        }
        assert videos["train"].isdisjoint(videos["val"])
