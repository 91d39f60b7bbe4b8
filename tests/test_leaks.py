"""The leak guard: recordings that datasets share, found by their source, refused unless the user says so."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from post_platform.config import load_config
from post_platform.data.leaks import refuse_shared_videos
from post_platform.errors import DataError
from post_platform.shards.index import INDEX_SCHEMA, Split
from post_platform.shards.planning import plan_conversion
from post_platform.training.launch import prepare
from post_platform.training.splits import splits_of, trained_splits


def split(dataset, name, videos, unlabelled=()):
    rows = [
        {
            "sequence": video.replace("/", "-"),
            "frame": 0,
            "shard": "000000.tar",
            "offset": 0,
            "length": 0,
            "crc32": 0,
            "height": 1,
            "width": 1,
            "labelled": video not in unlabelled,
            "seconds_since_previous": None,
            "source_video": video,
        }
        for video in videos
    ]
    return Split(dataset, name, "", pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), {})


def test_the_same_recording_under_two_names_is_refused():
    train = [split("mots20", "train", ["motchallenge/02", "motchallenge/05"]), split("kitti_mots", "train", ["k/1"])]
    scored = [split("motchallenge_step", "val", ["motchallenge/02"]), split("kitti_mots", "val", ["k/2"])]
    with pytest.raises(DataError) as caught:
        refuse_shared_videos(train, scored, "data.allow_shared_videos=true")
    assert str(caught.value) == (
        "scored on videos that are trained on: motchallenge_step/val shares 1 of 1 videos with mots20/train: "
        "motchallenge/02"
    )
    assert caught.value.hint.endswith("if this is meant: data.allow_shared_videos=true")


def test_frames_without_a_label_are_not_scored_and_leak_nothing():
    train = [split("youtube_vis_2019", "train", ["youtube_vis/a", "youtube_vis/b"])]
    refuse_shared_videos(train, [split("youtube_vis_2021", "valid", ["youtube_vis/a"], ["youtube_vis/a"])], "")
    refuse_shared_videos(train, [split("youtube_vis_2021", "valid", ["youtube_vis/c"])], "")


def test_many_videos_are_counted_and_a_few_named():
    videos = [f"coco/{number}" for number in range(9)]
    with pytest.raises(
        DataError, match=r"shares 9 of 9 videos with coco_panoptic/train: coco/0, coco/1, coco/2, \.\.\.$"
    ):
        refuse_shared_videos([split("coco_panoptic", "train", videos)], [split("rob_mots", "val", videos)], "")


def test_a_run_is_refused_before_anything_starts(toy_shards, tmp_path):
    settings = [f"data.root={toy_shards}", "data.val_split=train", f"run.dir={tmp_path}", "run.name=leak"]
    with pytest.raises(DataError, match="kitti_mots/train shares 6 of 6 videos with kitti_mots/train"):
        prepare(load_config(None, settings))
    assert not (tmp_path / "leak").exists()
    job = prepare(load_config(None, [*settings, "data.allow_shared_videos=true"]))
    assert {one.split for one in job.val} == {"train"}


def test_datasets_without_a_labelled_validation_split_are_trained_and_named(toy_shards, tmp_path, caplog):
    root = tmp_path / "shards"
    root.mkdir()
    (root / "coco_panoptic").symlink_to(toy_shards / "coco_panoptic")
    (root / "kitti_mots").mkdir()
    (root / "kitti_mots/train").symlink_to(toy_shards / "kitti_mots/train")
    job = prepare(load_config(None, [f"data.root={root}", f"run.dir={tmp_path}", "run.name=some"]))
    assert [one.dataset for one in job.train] == ["coco_panoptic", "kitti_mots"]
    assert [one.dataset for one in job.val] == ["coco_panoptic"]
    assert "trained on, but not scored, without labels in a split 'val': kitti_mots" in caplog.text
    with pytest.raises(DataError, match=r"kitti_mots under .* has no split 'val'"):
        prepare(load_config(None, [f"data.root={root}", "data.datasets=kitti_mots", f"run.dir={tmp_path}"]))


def test_what_a_checkpoint_was_trained_on_is_found_where_it_lies_now(toy_shards, tmp_path):
    assert trained_splits(tmp_path, str(toy_shards)) == ()  # imported weights
    gone = 'data.root: "/nowhere"\\ndata.datasets: [kitti_mots]\\ndata.train_split: train\\n'
    (tmp_path / "state.json").write_text(f'{{"config": "{gone}"}}'.replace('"/nowhere"', "/nowhere"))
    (found,) = trained_splits(tmp_path, str(toy_shards))
    assert (found.dataset, found.split) == ("kitti_mots", "train")
    assert trained_splits(tmp_path, str(tmp_path)) is None
    with pytest.raises(DataError, match="kitti_mots/train shares"):
        refuse_shared_videos((found,), splits_of(str(toy_shards), ("kitti_mots",), "train"), "--allow-shared-videos")


def test_real_readers_agree_on_the_names_of_recordings(tmp_path):
    """KITTI-MOTS val 0002 and KITTI-STEP val 0002 are one recording."""
    for path, array in (
        ("mots/training/image_02/0002/000000.png", np.zeros((2, 2, 3), np.uint8)),
        ("mots/instances/0002/000000.png", np.zeros((2, 2), np.uint16)),
        ("step/images/val/0002/000000.png", np.zeros((2, 2, 3), np.uint8)),
        ("step/panoptic_maps/val/0002/000000.png", np.zeros((2, 2, 3), np.uint8)),
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / path)
    jobs = [
        plan_conversion(name, tmp_path / folder, tmp_path, "val")[0]
        for name, folder in (("kitti_mots", "mots"), ("kitti_step", "step"))
    ]
    assert len({job.shards[0].frames[0].source_video for job in jobs}) == 1
