"""DAVIS in its official layout, written here byte by byte; the expected arrays are typed, not computed."""

import numpy as np
import pytest
from official_bytes import photograph, through_a_shard, write
from PIL import Image

from post_platform.datasets import davis_unsup
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import DataError
from post_platform.metrics.results import ResultFrame, read_results, write_results

FIRST = [[0, 2, 2, 255], [0, 2, 0, 255], [0, 0, 0, 0]]  # object 1 is not there yet
LATER = [[1, 2, 2, 254], [1, 0, 0, 0], [1, 0, 0, 0]]
CLASSES = {0: [[0, 1, 1, 255], [0, 1, 0, 255], [0, 0, 0, 0]], 1: [[1, 1, 1, 255], [1, 0, 0, 0], [1, 0, 0, 0]]}
INSTANCES = {0: [[0, 2, 2, 0], [0, 2, 0, 0], [0, 0, 0, 0]], 1: [[1, 2, 2, 0], [1, 0, 0, 0], [1, 0, 0, 0]]}


def palette(path, indices, bits=8):
    """A palette PNG whose colours are anything but the indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(indices, np.uint8), "P")
    image.putpalette([channel for index in range(256) for channel in (255 - index, index // 2, 77)])
    image.save(path, bits=bits)


def write_source(tmp_path):
    root = tmp_path / "DAVIS"
    for sequence in ("dog", "camel"):
        for frame in range(3):
            photograph(root / f"JPEGImages/480p/{sequence}/{frame:05d}.jpg", 3, 4)
            palette(root / f"Annotations_unsupervised/480p/{sequence}/{frame:05d}.png", LATER if frame else FIRST)
            palette(root / f"Annotations/480p/{sequence}/{frame:05d}.png", np.full((3, 4), 9))
    photograph(root / "JPEGImages/480p/rally/00000.jpg", 3, 4)
    write(root / "ImageSets/2017/val.txt", "dog\ncamel\n")
    write(root / "ImageSets/2017/train.txt", "bear\n")
    write(root / "ImageSets/2019/test-dev.txt", "rally\n")
    return tmp_path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path)


def test_frames_follow_the_list(source):
    refs = davis_unsup.frames(source, "val")
    assert [ref.key for ref in refs] == [f"{name}/00000{frame}" for name in ("dog", "camel") for frame in range(3)]
    assert refs[1].seconds_since_previous == 0.041667
    assert refs[0].source_video == "davis/dog"
    assert [ref.label for ref in davis_unsup.frames(source / "DAVIS", "test_dev")] == [None]


def test_through_a_shard(source):
    frames = through_a_shard("davis_unsup", "val", source)
    for frame in (0, 1):
        assert frames[f"dog/00000{frame}"].classes.tolist() == CLASSES[frame]
        assert frames[f"dog/00000{frame}"].instances.tolist() == INSTANCES[frame]
    assert frames["dog/000000"].meta["instances"] == {"1/2": 2}


def test_palette_of_two_bits(source):
    palette(source / "DAVIS/Annotations_unsupervised/480p/dog/00001.png", np.minimum(LATER, 2), bits=2)
    frame = through_a_shard("davis_unsup", "val", source)["dog/000001"]
    assert frame.instances.tolist() == [[1, 2, 2, 2], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_frame_without_a_label_is_unlabelled_not_empty(source, caplog):
    (source / "DAVIS/Annotations_unsupervised/480p/dog/00002.png").unlink()
    assert [ref.label is None for ref in davis_unsup.frames(source, "val")] == [False, False, True, False, False, False]
    assert "davis_unsup val: 1 of 6 frames have no label in Annotations_unsupervised/480p" in caplog.text


def test_only_labelled_splits_miss_labels(source, caplog):
    davis_unsup.frames(source, "val")
    davis_unsup.frames(source, "test_dev")
    assert not caplog.text


def test_colours_instead_of_a_palette(source):
    path = source / "DAVIS/Annotations_unsupervised/480p/dog/00000.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(DataError, match="davis_unsup dog/000000: label is a PNG of mode RGB, must be P"):
        davis_unsup.label(davis_unsup.frames(source, "val")[0])


def test_full_resolution_and_missing_sequences(source, caplog):
    root = source / "DAVIS"
    for folder in ("JPEGImages", "Annotations_unsupervised"):
        (root / folder / "480p").rename(root / folder / "Full-Resolution")
    write(root / "ImageSets/2017/val.txt", "dog\ncamel\ngoat\n")
    assert len(davis_unsup.frames(source, "val")) == 6
    assert "davis_unsup val: 1 of the 3 listed sequences are not there" in caplog.text
    with pytest.raises(MissingSplit, match="davis_unsup train: nothing found"):
        davis_unsup.frames(source, "train")
    write(root / "ImageSets/2017/train.txt", "../dog\n")
    with pytest.raises(DataError, match=r"lists '../dog', which is no sequence's name"):
        davis_unsup.frames(source, "train")
    (root / "JPEGImages/Full-Resolution/dog/00002.jpg").unlink()
    with pytest.raises(DataError, match="davis_unsup dog/000002: has a label but no image"):
        davis_unsup.frames(source, "val")


def test_more_than_twenty_proposals_are_refused(source, tmp_path):
    """12 in the first frame are legal, and so are 12 in each sequence; 24 over the frames of one are not."""
    for sequence, step in (("camel", 0), ("dog", 12)):
        for frame in range(3):
            numbers = 1 + step * frame + np.arange(12).reshape(3, 4)
            palette(tmp_path / f"results/{sequence}/{frame:05d}.png", numbers)
    results = read_results("davis_unsup", source / "DAVIS/Annotations_unsupervised/480p", tmp_path / "results")
    frames = results.frames
    assert [next(frames).sequence for _ in range(4)] == ["camel", "camel", "camel", "dog"]
    with pytest.raises(DataError, match=r"results/dog: more than 20 proposals"):
        next(frames)
    with pytest.raises(DataError, match=r"results/dog: more than 20 proposals"):
        results.further()


def test_twenty_largest_tracks_are_written(tmp_path, caplog):
    """22 tracks of one pixel, of which 100 and 121 have another one in the next frame; 65535 is no track."""
    first = np.append(np.arange(100, 122), [0, 65535]).reshape(4, 6)
    second = np.zeros((4, 6), int)
    second[0, :2] = 121, 100
    classes = np.where(first > 0, 1, 0).astype(np.uint8)
    frames = [ResultFrame("dog", frame, classes, tracks, {}) for frame, tracks in ((0, first), (7, second))]
    write_results("davis_unsup", frames, tmp_path)
    assert "davis_unsup dog: 20 of 22 tracks written, the largest" in caplog.text
    image = Image.open(tmp_path / "dog/00000.png")
    assert image.mode == "P"
    assert len(np.unique(image)) == 21
    assert np.asarray(image)[3].tolist()[-2:] == [0, 0]
    assert np.asarray(Image.open(tmp_path / "dog/00007.png"))[0].tolist() == [20, 1, 0, 0, 0, 0]
