"""BDD100K MOTS in its official layout, written here byte by byte; the expected arrays are typed, not computed."""

import json

import numpy as np
import pytest
from official_bytes import compressed, photograph, run_lengths, save, through_a_shard

from post_platform.datasets import bdd100k_mots
from post_platform.errors import DataError
from post_platform.metrics.results import read_results

VIDEO = "b1c66a42-6f7d68ca"
NONE = (0, 0, 0, 0)
# R class, G truncated 8, occluded 4, crowd 2, ignored 1, B*256 + A id. Car 300 is 1*256 + 44; bus 512 has alpha 0.
CAR, TRUNCATED, OCCLUDED, CROWD, IGNORED, BUS = (
    (3, 0, 1, 44), (3, 8, 0, 7), (1, 4, 0, 8), (1, 2, 0, 9), (4, 1, 0, 10), (5, 12, 2, 0),
)  # fmt: skip
PIXELS = [[CAR, CAR, TRUNCATED, NONE], [OCCLUDED, CROWD, CROWD, NONE], [IGNORED, BUS, BUS, NONE]]
CLASSES = [[3, 3, 3, 0], [1, 255, 255, 0], [255, 5, 5, 0]]
INSTANCES = [[300, 300, 7, 0], [8, 0, 0, 0], [0, 512, 512, 0]]
IDS = {"3/7": 7, "3/300": 300, "1/8": 8, "5/512": 512}


def write_source(tmp_path):
    root = tmp_path / "bdd100k"
    for split in ("val", "test"):
        for frame in (1, 2, 3):
            photograph(root / f"images/seg_track_20/{split}/{VIDEO}/{VIDEO}-{frame:07d}.jpg", 3, 4)
    for frame, pixels in ((1, PIXELS), (2, np.zeros((3, 4, 4))), (3, PIXELS)):
        path = root / f"labels/seg_track_20/bitmasks/val/{VIDEO}/{VIDEO}-{frame:07d}.png"
        save(path, np.array(pixels, np.uint8))
    (root / f"images/seg_track_20/val/{VIDEO}/._{VIDEO}-0000001.jpg").write_bytes(b"junk")
    return tmp_path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path)


def scalabel():
    """The same labels as a Scalabel file, with older names, a distractor, and frames counted from 0."""
    listed = [
        ("car", "300", CAR, {}, compressed),
        ("car", "7", TRUNCATED, {"truncated": True}, compressed),
        ("person", "8", OCCLUDED, {"occluded": True}, lambda mask: run_lengths(mask)["counts"]),
        ("pedestrian", "9", CROWD, {"crowd": True}, compressed),
        ("trailer", "10", IGNORED, {}, compressed),
        ("bus", "512", BUS, {"crowd": False, "ignored": False}, compressed),
    ]
    labels = [
        {
            "id": number,
            "category": name,
            "attributes": attributes,
            "rle": {"size": [3, 4], "counts": write((np.array(PIXELS) == color).all(-1))},
        }
        for name, number, color, attributes, write in listed
    ]
    frames = [(0, labels), (1, None), (2, labels)]
    return [
        {"name": f"{VIDEO}-{index + 1:07d}.jpg", "videoName": VIDEO, "frameIndex": index, "labels": shown}
        for index, shown in frames
    ]


def use_run_lengths(source, content):
    folder = source / "bdd100k/labels/seg_track_20"
    (folder / "bitmasks").rename(folder / "aside")
    (folder / "rles/val").mkdir(parents=True)
    (folder / f"rles/val/{VIDEO}.json").write_text(json.dumps(content))


def test_frames(source):
    refs = bdd100k_mots.frames(source, "val")
    assert [ref.key for ref in refs] == [f"{VIDEO}/000001", f"{VIDEO}/000002", f"{VIDEO}/000003"]
    assert [ref.seconds_since_previous for ref in refs] == [None, 0.2, 0.2]
    assert refs[0].source_video == f"bdd100k/{VIDEO}"
    assert {ref.label for ref in bdd100k_mots.frames(source / "bdd100k", "test")} == {None}


@pytest.mark.parametrize("wrapped", [None, False, True])
def test_through_a_shard(source, wrapped):
    """As bitmasks, as a JSON list of frames, and as `{"frames": [...]}`."""
    if wrapped is not None:
        use_run_lengths(source, {"frames": scalabel()} if wrapped else scalabel())
    frames = through_a_shard("bdd100k_mots", "val", source)
    for key in (f"{VIDEO}/000001", f"{VIDEO}/000003"):
        assert frames[key].classes.tolist() == CLASSES
        assert frames[key].instances.tolist() == INSTANCES
        assert frames[key].meta["instances"] == IDS
    assert not frames[f"{VIDEO}/000002"].classes.any()
    assert frames[f"{VIDEO}/000002"].meta["labelled"]


@pytest.mark.parametrize(
    ("pixel", "message"),
    [
        ((9, 0, 0, 1), "class 9 with flags 0, must be 1..8"),
        ((3, 16, 0, 1), "class 3 with flags 16"),
        ((3, 0, 0, 0), "an object of class 3 has the id 0"),
        ((0, 0, 0, 255), "class 0 with flags 0"),  # an opaque background: a tool has rewritten the file
        ((3, 0, 255, 255), "an object of class 3 has the id 65535"),
    ],
)
def test_illegal_pixels(source, pixel, message):
    path = source / f"bdd100k/labels/seg_track_20/bitmasks/val/{VIDEO}/{VIDEO}-0000001.png"
    save(path, np.full((3, 4, 4), pixel, np.uint8))
    with pytest.raises(DataError, match=f"^bdd100k_mots {VIDEO}/000001: {message}"):
        bdd100k_mots.label(bdd100k_mots.frames(source, "val")[0])


def test_bitmask_that_lost_its_alpha(source):
    path = source / f"bdd100k/labels/seg_track_20/bitmasks/val/{VIDEO}/{VIDEO}-0000001.png"
    save(path, np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(DataError, match="label is a PNG of mode RGB, must be RGBA"):
        bdd100k_mots.label(bdd100k_mots.frames(source, "val")[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda frames: frames[0]["labels"][0].update(category="ship"),
            f"{VIDEO}/000001 of .*json: unknown category 'ship'",
        ),
        (lambda frames: frames[0]["labels"][0].update(id="x"), "malformed"),
        (lambda frames: frames[0].update(labels=3), "malformed"),
        (lambda frames: frames.pop(), f"{VIDEO}/000003: has no label"),
        (lambda frames: frames[0].update(frameIndex=9), f"{VIDEO}/000001: has no label"),
        (
            lambda frames: frames[0]["labels"].append({**frames[0]["labels"][0], "id": "11"}),
            "object 11 overlaps another",
        ),
        (lambda frames: frames[0]["labels"].append(frames[0]["labels"][0]), "of .*json: object .* is listed twice"),
        (lambda frames: frames[1].update(frameIndex=0), f"{VIDEO}/000001: is listed twice"),
        (lambda frames: frames[0].update(frameIndex=0.5), "malformed"),
        (lambda frames: frames[0].update(frameIndex=float("inf")), "malformed"),
        (lambda frames: frames[0]["labels"][0].update(id=float("inf")), "malformed"),
        (lambda frames: frames[0]["labels"][0]["rle"].update(size=[4, 3]), r"the mask is \[4, 3\], must be 3x4"),
    ],
)
def test_wrong_json(source, change, message):
    content = scalabel()
    change(content)
    use_run_lengths(source, content)
    with pytest.raises(DataError, match=f"^bdd100k_mots .*{message}"):
        [bdd100k_mots.label(ref) for ref in bdd100k_mots.frames(source, "val")]


def test_ids_that_do_not_fit_are_counted_over_the_video(source):
    """The toolkit's run lengths keep the annotation's own ids, which are larger than what a bitmask holds."""
    content = scalabel()
    for frame in (0, 2):
        content[frame]["labels"] = [{**shown} for shown in content[frame]["labels"]]
        content[frame]["labels"][0]["id"] = "00091078"
        content[frame]["labels"][4]["id"] = "99999999"  # is ignored, so it needs no number
    content[2]["labels"][2]["id"] = "0"
    use_run_lengths(source, content)
    frames = through_a_shard("bdd100k_mots", "val", source)
    assert frames[f"{VIDEO}/000001"].meta["instances"] == {"3/5": 91078, "3/2": 7, "1/3": 8, "5/4": 512}
    assert frames[f"{VIDEO}/000003"].meta["instances"] == {"3/5": 91078, "3/2": 7, "1/1": 0, "5/4": 512}
    assert frames[f"{VIDEO}/000001"].instances.tolist() == [[5, 5, 2, 0], [3, 0, 0, 0], [0, 4, 4, 0]]


def test_two_files_of_one_frame(source):
    photograph(source / f"bdd100k/images/seg_track_20/val/{VIDEO}/{VIDEO}-0000001.png", 3, 4)
    with pytest.raises(DataError, match=rf"{VIDEO}-0000001.jpg and {VIDEO}-0000001.png are the same frame"):
        bdd100k_mots.frames(source, "val")


@pytest.mark.parametrize("size", [["x", 3], 3, [3], [3, 4, 5], [-3, 4], [10**7, 10**7], [10**30, 3], {"a": 1}])
def test_results_of_impossible_size(source, size):
    content = scalabel()
    content[0]["labels"][0]["rle"]["size"] = size
    use_run_lengths(source, content)
    folder = source / "bdd100k/labels/seg_track_20/rles/val"
    (folder / f"._{VIDEO}.json").write_text("junk")
    with pytest.raises(DataError, match=rf"{VIDEO}\.json, frame 1: .*size"):
        list(read_results("bdd100k_mots", folder, folder).frames)


def test_missing_labels(source):
    (source / "bdd100k/labels/seg_track_20/bitmasks").rename(source / "aside")
    with pytest.raises(DataError, match=f"bdd100k_mots {VIDEO}: no label: neither bitmasks/val"):
        bdd100k_mots.frames(source, "val")
