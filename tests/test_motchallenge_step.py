"""MOTChallenge-STEP in its official layouts, written here byte by byte; the expected arrays are typed, not computed."""

import numpy as np
import pytest
from official_bytes import photograph, save, through_a_shard

from post_platform.datasets import motchallenge_step
from post_platform.errors import DataError

# R = class, G*256 + B = instance: person 258 (needs G), one without identity, rider and bicycle, a car that is void.
PIXELS = [[(4, 1, 2), (4, 1, 2), (4, 0, 0), (255, 0, 0)], [(0, 0, 0), (5, 0, 0), (6, 0, 0), (3, 0, 0)]]
CLASSES = [[4, 4, 4, 255], [0, 5, 6, 3]]
INSTANCES = [[258, 258, 65535, 0], [0, 0, 0, 0]]


def write_source(tmp_path):
    """As the authors' instructions have it: both labelled videos in `train`."""
    for split, sequence in (("train", "0002"), ("train", "0009"), ("test", "0001"), ("test", "0007")):
        for frame in (1, 2, 3):
            photograph(tmp_path / f"images/{split}/{sequence}/{frame:06d}.jpg", 2, 4)
            if split == "train":
                path = tmp_path / f"motchallenge-step/panoptic_maps/{split}/{sequence}/{frame:06d}.png"
                save(path, np.array(PIXELS, np.uint8))
    return tmp_path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path)


def test_the_two_labelled_videos_are_train_and_val(source):
    for split, sequence in (("train", "0009"), ("val", "0002")):
        refs = motchallenge_step.frames(source, split)
        assert [ref.key for ref in refs] == [f"{sequence}/{frame:06d}" for frame in (1, 2, 3)]
        assert [ref.seconds_since_previous for ref in refs] == [None, 0.033333, 0.033333]
        assert refs[0].source_video == f"motchallenge/{sequence[2:]}"  # as in MOTS20
    assert {ref.label for ref in motchallenge_step.frames(source, "test")} == {None}
    assert {ref.sequence for ref in motchallenge_step.frames(source, "test")} == {"0001", "0007"}


def test_folders_that_the_user_sorted_are_the_splits(source):
    maps = source / "motchallenge-step/panoptic_maps"
    (maps / "val").mkdir()
    (maps / "train/0009").rename(maps / "val/0009")
    assert {ref.sequence for ref in motchallenge_step.frames(source, "train")} == {"0002"}
    assert {ref.sequence for ref in motchallenge_step.frames(source, "val")} == {"0009"}


def test_through_a_shard(source):
    frame = through_a_shard("motchallenge_step", "val", source)["0002/000001"]
    assert frame.classes.tolist() == CLASSES
    assert frame.instances.tolist() == INSTANCES
    assert frame.meta["instances"] == {"4/258": 258}


@pytest.mark.parametrize("name", ["MOTS20-{}", "MOT17-{}-FRCNN", "STEP-ICCV21-{}"])
def test_images_in_the_tree_of_mots20(source, name):
    for split, number in (("train", "02"), ("train", "09"), ("test", "01"), ("test", "07")):
        new = source / "MOTS" / split / name.format(number) / "img1"
        new.parent.mkdir(parents=True)
        (source / f"images/{split}/00{number}").rename(new)
    frames = through_a_shard("motchallenge_step", "train", source)
    assert frames["0009/000002"].classes.tolist() == CLASSES
    assert len(motchallenge_step.frames(source, "test")) == 6


def test_missing_parts(source):
    (source / "images/train/0009/000003.jpg").unlink()
    with pytest.raises(DataError, match="motchallenge_step 0009/000003: has no image file"):
        motchallenge_step.frames(source, "train")
    (source / "images/train/0009/000001.jpg").unlink()
    with pytest.raises(DataError, match=r"0009: 1 images \(000002 to 000002\) in .*expected 1"):
        motchallenge_step.frames(source, "train")
    (source / "images/train/0002").rename(source / "aside")
    with pytest.raises(DataError, match="motchallenge_step val: sequence 0002 has labels but no images"):
        motchallenge_step.frames(source, "val")
    save(source / "motchallenge-step/panoptic_maps/train/0002/000001.png", np.full((2, 4, 3), (7, 0, 0), np.uint8))
    (source / "aside").rename(source / "images/train/0002")
    with pytest.raises(DataError, match=r"0002/000001: label has class 7, must be 0..6 or 255"):
        motchallenge_step.label(motchallenge_step.frames(source, "val")[0])
