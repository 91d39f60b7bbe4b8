"""Annotation files with any part replaced by anything: every reader answers with labels or with one error."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import test_bdd100k_mots
import test_cityscapes_vps
import test_coco_panoptic
import test_mots20
import test_rob_mots
import test_vipseg
import test_youtube_vis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from post_platform.datasets import reader
from post_platform.errors import DataError

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["../../x", "/etc/passwd", "a/b/c", "\x00", "", "0", "1e400"]),
    st.lists(st.integers(-2, 9), max_size=4),
    st.dictionaries(st.sampled_from(["id", "counts", "size"]), st.integers(-2, 9), max_size=2),
)


def bdd(path):
    source = test_bdd100k_mots.write_source(path)
    test_bdd100k_mots.use_run_lengths(source, test_bdd100k_mots.scalabel())
    return source


JSONS = {
    "coco_panoptic": (test_coco_panoptic.write_source, "val", "annotations/panoptic_val2017.json"),
    "youtube_vis_2019": (lambda p: test_youtube_vis.write_source(p, "youtube_vis_2019"), "train", "train.json"),
    "bdd100k_mots": (bdd, "val", f"bdd100k/labels/seg_track_20/rles/val/{test_bdd100k_mots.VIDEO}.json"),
    "cityscapes_vps": (test_cityscapes_vps.write_source, "val", "panoptic_im_val_city_vps.json"),
}
TEXTS = {
    "mots20": (test_mots20.write_source, "train", "MOTS/train/MOTS20-02/gt/gt.txt"),
    "mots20 ini": (test_mots20.write_source, "train", "MOTS/train/MOTS20-02/seqinfo.ini"),
    "rob_mots": (test_rob_mots.write_source, "train", "data/gt/rob_mots/train/kitti_mots/data/0001.txt"),
    "rob_mots seqmap": (test_rob_mots.write_source, "train", "data/gt/rob_mots/train/kitti_mots/seqmap.txt"),
    "rob_mots clsmap": (test_rob_mots.write_source, "train", "data/gt/rob_mots/train/tao/clsmap.txt"),
    "vipseg": (test_vipseg.write_source, "val", "VIPSeg/val.txt"),
}
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Fixture -> its folder, written once."""
    made = {}

    def get(name, write):
        if name not in made:
            made[name] = write(tmp_path_factory.mktemp(name.replace(" ", "_")))
        return made[name]

    yield get
    for folder in made.values():
        shutil.rmtree(folder)


def places(node, path=()):
    """Every place in a JSON tree."""
    yield path
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield from places(node[key], (*path, key))


def replaced(content, path, value):
    """The tree with the node at `path` replaced, or left out where the value is `...`."""
    content = copy.deepcopy(content)
    if not path:
        return value
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return content


def outcome(dataset, split, source):
    """What a conversion would do with the source: None, or the message of its one error."""
    try:
        for ref in reader(dataset).frames(source, split):
            if ref.label is not None:
                reader(dataset).label(ref)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("dataset", JSONS)
@FEW
@given(data=st.data())
def test_json(sources, dataset, data):
    write, split, name = JSONS[dataset]
    source = sources(dataset, write)
    path = Path(source) / name
    original = path.read_text()
    content = json.loads(original)
    place = data.draw(st.sampled_from(list(places(content))))
    value = data.draw(JUNK if not place else st.one_of(JUNK, st.just(...)))
    try:
        path.write_text(json.dumps(replaced(content, place, value)))
        message = outcome(dataset, split, source)
    finally:
        path.write_text(original)
    assert message is None or message.startswith(dataset)
    assert message is None or "\n" not in message


@pytest.mark.parametrize("name", TEXTS)
@FEW
@given(data=st.data())
def test_text(sources, name, data):
    write, split, file = TEXTS[name]
    dataset, source = name.split()[0], sources(name, write)
    path = Path(source) / file
    original = path.read_text()
    start = data.draw(st.integers(0, len(original)))
    end = data.draw(st.integers(start, min(len(original), start + 12)))
    junk = data.draw(st.text(max_size=8) | st.sampled_from(["-1", "99999999999999999999", "nan", "1e9", "../x", "%s"]))
    try:
        path.write_text(original[:start] + junk + original[end:])
        message = outcome(dataset, split, source)
    finally:
        path.write_text(original)
    assert message is None or message.startswith(dataset)
    assert message is None or "\n" not in message
