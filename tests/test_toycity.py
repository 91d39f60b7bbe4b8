"""The toy city is the same for the same seed, and holds the traps of the datasets that it imitates."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from post_platform.toycity import World, write_all
from post_platform.toycity.canvas import SUPERSAMPLE, Canvas

PERSON, RIDER, CAR, TRUCK = 11, 12, 13, 14


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("toy"), train_frames=10, val_frames=6, stills=12)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def masks(world: World, t: int) -> dict[int, np.ndarray]:
    """The cars and persons of a frame, by track."""
    scene = world.render(t)
    tracked = np.where(np.isin(scene.classes, (PERSON, CAR)), scene.instances, 0)
    return {int(i): tracked == i for i in np.unique(tracked) if i}


def columns(mask: np.ndarray) -> tuple[float, int, bool]:
    """Middle and width of a mask, and whether the picture's side cuts it."""
    xs = np.nonzero(mask.any(0))[0]
    return (xs[0] + xs[-1]) / 2, xs[-1] - xs[0] + 1, bool(xs[0] == 0 or xs[-1] == mask.shape[1] - 1)


def steps(world: World) -> dict[int, list[tuple[float, int]]]:
    """For every track, (pixels moved, own width) of each pair of frames in which its mask is whole."""
    moved: dict[int, list[tuple[float, int]]] = {}
    before: dict[int, np.ndarray] = {}
    for t in range(world.frames):
        now = masks(world, t)
        for track in now.keys() & before.keys():
            (x0, w0, cut0), (x1, w1, cut1) = columns(before[track]), columns(now[track])
            if not cut0 and not cut1:
                moved.setdefault(track, []).append((abs(x1 - x0), max(w0, w1)))
        before = now
    return moved


def test_same_seed_same_bytes(tmp_path):
    sizes = {"train_frames": 2, "val_frames": 2, "stills": 4, "height": 64, "width": 128}
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        write_all(tmp_path / name, seed=seed, **sizes)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    images = [name for name in a if name.endswith(".jpg") or "/image_02/" in name or "/images/" in name]
    assert all(a[name] != c[name] for name in images)


def test_no_two_worlds_look_the_same(toy):
    first = [
        p
        for folder in ("training/image_02", "testing/image_02")
        for p in (toy["kitti_mots"] / folder).glob("*/000000.png")
    ]
    first += (toy["kitti_step"] / "images").glob("*/*/000000.png")
    first += toy["coco_panoptic"].glob("*2017/*.jpg")
    assert len({hashlib.sha256(p.read_bytes()).digest() for p in first}) == len(first) == 9 + 8 + 14


def test_frames_do_not_depend_on_the_order_of_rendering():
    one, other = World(3, 8), World(3, 8)
    other.render(7)
    a, b = one.render(2), other.render(2)
    assert (a.image == b.image).all()
    assert (a.classes == b.classes).all()
    assert (a.instances == b.instances).all()
    with pytest.raises(ValueError, match="frame 8 of a world of 8"):
        one.render(8)


def test_label_and_picture_agree_to_the_pixel():
    canvas = Canvas.blank(20, 30, 0)
    canvas.disc((14.2, 9.7), 6.3, 5.1, (255, 255, 255), 7)
    canvas.limb((2, 2), (27, 17), 2.5, (255, 255, 255), 7)
    picture, codes = canvas.finish()
    light = np.asarray(picture)[..., 0].astype(float) / 255
    sure = np.abs(light - 0.5) > 0.5 - 2 / SUPERSAMPLE**2  # all but at most two samples of the pixel agree
    assert ((light > 0.5) == (codes == 7))[sure].all()
    assert sure.mean() > 0.8


@pytest.mark.parametrize("style", ["train", "held_out"])
def test_a_third_of_the_tracks_outruns_its_own_width(style):
    total = fast = 0
    for seed in range(3):
        moved = steps(World(seed, 24, style=style))
        quick = [track for track, pairs in moved.items() if np.mean([step > width for step, width in pairs]) > 0.5]
        assert len(quick) >= 3
        total, fast = total + len(moved), fast + len(quick)
    assert 0.25 < fast / total < 0.6


def test_overlap_alone_hands_identities_down_the_express_lane():
    world, stolen = World(0, 24), 0
    for t in range(1, world.frames):
        before, now = masks(world, t - 1), masks(world, t)
        for track, mask in now.items():
            others = [(old & mask).sum() / (old | mask).sum() for other, old in before.items() if other != track]
            stolen += max(others, default=0) > 0.5
    assert stolen >= 10


def test_motion_is_smooth():
    for track in World(1, 24).tracks:
        x = np.array([track.at(t)[0] for t in range(24)])
        assert np.abs(np.diff(x, 2)).max() < 3.0  # pixels per frame, per frame


@pytest.mark.parametrize("frames", [10, 16, 24])
def test_someone_leaves_and_returns(frames):
    world = World(2, frames)
    seen: dict[int, list[int]] = {}
    for t in range(frames):
        for track in masks(world, t):
            seen.setdefault(track, []).append(t)
    assert any(np.diff(times).max() >= 3 for times in seen.values() if len(times) > 1)


def test_objects_are_few_and_large_enough():
    counts, widths, heights = [], [], []
    for t in range(0, 24, 4):
        scene = World(6, 24).render(t)
        assert set(np.unique(scene.classes)) <= {0, 1, 2, 5, 8, 10, 11, 12, 13, 14, 18}
        whole = [(m, columns(m)) for m in masks(World(6, 24), t).values()]
        counts.append(len(whole))
        widths += [c[1] for m, c in whole if not c[2] and scene.classes[m][0] == CAR]
        heights += [np.ptp(np.nonzero(m.any(1))[0]) + 1 for m, c in whole if not c[2] and scene.classes[m][0] == PERSON]
    assert 4 <= np.mean(counts) <= 12
    assert 14 <= np.median(widths) <= 50
    assert 12 <= np.median(heights) <= 40


def test_held_out_worlds_are_faster_and_painted_otherwise():
    def pace(style):
        return np.median(
            [max(abs(k.speed) for k in World(s, 4, style=style).tracks if k.kind == "car") for s in range(8)]
        )

    assert 1.05 < pace("held_out") / pace("train") < 1.2
    assert (World(1, 1).render(0).image != World(1, 1, style="held_out").render(0).image).mean() > 0.5


def test_kitti_mots_has_its_traps(toy):
    root = toy["kitti_mots"]
    labels = {p: read(p) for p in sorted((root / "instances").glob("*/*.png"))}
    values = set(np.unique(np.concatenate([code.ravel() for code in labels.values()])).tolist())
    assert {0, 1000, 1001, 2001, 10000} <= values
    assert {value // 1000 for value in values} == {0, 1, 2, 10}
    assert all(code.dtype == np.uint16 for code in labels.values())
    assert len({code.shape for code in labels.values()}) == 2
    empty = labels[root / "instances" / "0006" / "000000.png"]
    assert not np.isin(empty // 1000, (1, 2)).any()
    for path, code in labels.items():
        assert code.shape == read(root / "training" / "image_02" / path.parent.name / path.name).shape[:2]
    assert (root / "train.seqmap").read_text().splitlines()[1] == "0001 empty 000000 000009"
    assert [line[:4] for line in (root / "val.seqmap").read_text().splitlines()] == ["0002", "0006"]
    both = [root / kind / "image_02" / "0000" / "000000.png" for kind in ("training", "testing")]
    assert both[0].read_bytes() != both[1].read_bytes()


def test_kitti_mots_text_and_png_are_equal(toy):
    root = toy["kitti_mots"]
    for text in sorted((root / "instances_txt").glob("*.txt")):
        drawn = [np.zeros_like(read(p)) for p in sorted((root / "instances" / text.stem).glob("*.png"))]
        for line in text.read_text().splitlines():
            t, value, kind, height, width, counts = line.split(" ")
            mask = rle.decode({"size": [int(height), int(width)], "counts": counts}).astype(bool)
            assert int(kind) == int(value) // 1000
            assert not drawn[int(t)][mask].any()  # masks never overlap
            drawn[int(t)][mask] = int(value)
        for t, code in enumerate(drawn):
            assert (code == read(root / "instances" / text.stem / f"{t:06d}.png")).all()


def test_kitti_step_has_its_traps(toy):
    root = toy["kitti_step"]
    labels = [read(p).astype(int) for p in sorted((root / "panoptic_maps").glob("*/*/*.png"))]
    classes = np.concatenate([label[..., 0].ravel() for label in labels])
    instances = np.concatenate([(label[..., 1] * 256 + label[..., 2]).ravel() for label in labels])
    assert set(np.unique(classes)) <= {*range(19), 255}
    assert {RIDER, TRUCK} <= set(np.unique(classes))
    assert set(np.unique(classes[instances > 0])) == {PERSON, CAR}
    assert ((classes == PERSON) & (instances == 0)).any()
    assert instances.max() >= 300
    assert 1 in instances[classes == CAR]
    for label in labels:  # the ring: no object touches a labelled pixel outside any object
        objects = label[..., 1] * 256 + label[..., 2] > 0
        outside = ~objects & (label[..., 0] != 255)
        assert not (objects[1:] & outside[:-1]).any()
        assert not (objects[:, 1:] & outside[:, :-1]).any()
    assert sorted(p.name for p in (root / "images" / "val").iterdir()) == ["0002", "0006"]


def coco_labels(root: Path, split: str) -> dict[str, np.ndarray]:
    if split == "train":
        return {p.name: read(p).astype(int) for p in (root / "annotations" / "panoptic_train2017").iterdir()}
    assert not (root / "annotations" / "panoptic_val2017").exists()
    with zipfile.ZipFile(root / "annotations" / "panoptic_val2017.zip") as archive:
        names = archive.namelist()
        assert any(name.startswith("__MACOSX/") for name in names)
        return {
            Path(name).name: np.array(Image.open(io.BytesIO(archive.read(name)))).astype(int)
            for name in names
            if name.startswith("panoptic_val2017/")
        }


def test_coco_panoptic_has_its_traps(toy):
    root = toy["coco_panoptic"]
    used, crowds, modes, largest, void = set(), 0, set(), 0, 0
    for split in ("train", "val"):
        content = json.loads((root / "annotations" / f"panoptic_{split}2017.json").read_text())
        isthing = {c["id"]: c["isthing"] for c in content["categories"]}
        labels = coco_labels(root, split)
        assert len(labels) == len(content["annotations"]) == len(content["images"])
        for image, entry in zip(content["images"], content["annotations"], strict=True):
            with Image.open(root / f"{split}2017" / image["file_name"]) as picture:
                modes.add(picture.mode)
                assert picture.size == (image["width"], image["height"])
            ids = labels[entry["file_name"]] @ np.array([1, 256, 65536])
            assert set(np.unique(ids)) - {0} == {s["id"] for s in entry["segments_info"]}
            stuff = [s["category_id"] for s in entry["segments_info"] if not isthing[s["category_id"]]]
            assert len(stuff) == len(set(stuff))
            for segment in entry["segments_info"]:
                x, y, w, h = segment["bbox"]
                assert (
                    segment["area"]
                    == (ids == segment["id"]).sum()
                    == (ids[y : y + h, x : x + w] == segment["id"]).sum()
                )
                assert isthing[segment["category_id"]] or not segment["iscrowd"]
                crowds += segment["iscrowd"]
                used.add(segment["category_id"])
            largest, void = max(largest, ids.max()), void + (ids == 0).sum()
    assert {1, 3, 149, 184, 187, 191, 197, 200} <= used
    assert modes == {"L", "RGB"}
    assert crowds
    assert void
    assert largest >= 65536
