import numpy as np
import pyarrow.compute as pc
import pytest
from evalset import EXPECTED, FRAMES, SEQUENCES, maps, table
from hypothesis import given, settings
from hypothesis import strategies as st

from post_platform.errors import ConfigError, DataError
from post_platform.labels import DATASETS, load_contract
from post_platform.metrics.contingency import frame_table, merge
from post_platform.metrics.protocols import PROTOCOLS, protocol_of
from post_platform.metrics.saved import SavedClass, SavedContract
from post_platform.metrics.score import flat, headline, score

STEP, MOTS, COCO = (load_contract(name) for name in ("kitti_step", "kitti_mots", "coco_panoptic"))
MOTS_KEYS = {f"{m}/{c}" for m in ("sMOTSA", "MOTSA", "MOTSP", "IDS") for c in ("car", "pedestrian")}


def official(name):
    """What the official tools say of a whole-dataset score on the evaluation set."""
    if name in ("STQ", "AQ", "STQ_SQ"):
        return EXPECTED["deeplab2"]["IoU" if name == "STQ_SQ" else name]
    if name in ("PQ", "SQ", "RQ"):
        return EXPECTED["panopticapi"]["All"][name.lower()]
    if name.startswith("PQ_"):
        return EXPECTED["panopticapi"][name[3:].capitalize()]["pq"]
    if name == "VPQ":
        return np.mean([window["All"]["pq"] for window in EXPECTED["vps"].values()])
    if name in ("HOTA", "DetA", "AssA", "IDF1"):
        return np.mean([EXPECTED["trackeval"][c]["all"][name] for c in ("car", "pedestrian")])
    return np.mean([EXPECTED["mots_tools"][c]["all"][name] for c in ("car", "pedestrian")])


def test_scores_of_a_complete_video_dataset_equal_the_official_tools():
    scores = flat(score(table(), STEP))
    over_time = ("sMOTSA", "MOTSA", "MOTSP", "HOTA", "DetA", "AssA", "IDF1", "VPQ")
    for name in ("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff", "STQ_SQ", *over_time):
        assert scores[name] == pytest.approx(official(name), abs=1e-9), name
    for name in ("STQ", "AQ"):
        assert scores[name] == pytest.approx(official(name), abs=1e-6), name
    assert scores["IDS/car"] == 8
    assert scores["PQ/rider"] is None
    assert headline(scores, STEP) == scores["STQ"]


def as_kitti_mots():
    """The evaluation set as KITTI-MOTS has it: stuff is background, crowd is ignored."""
    native = np.zeros(256, np.uint8)
    native[[13, 11, 255]] = 1, 2, 255
    tables = []
    for sequence in SEQUENCES:
        for frame in FRAMES:
            classes, instances, pred_classes, pred_tracks = maps(sequence, frame)
            truth = np.where(instances == 65535, 255, native[classes]).astype(np.uint8)
            pred = np.where(pred_classes == 255, 0, native[pred_classes]).astype(np.uint8)
            instances = np.where(truth == 255, 0, instances)
            tables.append(frame_table("kitti_mots", sequence, frame, truth, instances, pred, pred_tracks))
    return merge(tables)


def test_scores_of_a_dataset_with_background():
    assert set(score(as_kitti_mots(), MOTS)) == {"mots", "hota", "identity"}  # what the official tools have
    families = score(as_kitti_mots(), MOTS, partial=True)
    assert set(families) == {"pq", "miou", "mots", "hota", "identity"}
    assert families["pq"]["Stuff"] == {"pq": None, "sq": None, "rq": None, "n": 0}
    assert families["pq"]["All"] == families["pq"]["Things"]
    scores = flat(families)
    assert scores.keys() >= MOTS_KEYS
    for name in ("sMOTSA", "MOTSA", "MOTSP"):
        assert scores[name] == pytest.approx(official(name), abs=1e-9)
    for native, expected in EXPECTED["mots_tools"].items():
        assert scores[f"sMOTSA/{native}"] == pytest.approx(expected["all"]["sMOTSA"], abs=1e-9)
        assert scores[f"IDS/{native}"] == expected["all"]["id_switches"]
    assert headline(scores, MOTS) == scores["sMOTSA"]


def test_predictions_over_background_are_wrong_but_over_void_they_are_not():
    def predicted_on(native):
        truth = np.full((10, 10), native, np.uint8)
        truth[:5] = 1
        identities = (truth == 1).astype(np.uint16)
        pred = np.full((10, 10), 1, np.uint8)
        return flat(score(frame_table("kitti_mots", "s", 0, truth, identities, pred, 1 + (truth != 1)), MOTS))

    assert (predicted_on(0)["MOTSA/car"], predicted_on(255)["MOTSA/car"]) == (0.0, 1.0)


def test_stills_have_no_scores_over_time():
    empty = np.full((2, 2), 255, np.uint8)
    scores = flat(score(frame_table("coco_panoptic", "a", 0, empty, empty * 0, empty, empty * 0), COCO))
    assert not {name.split("/")[0] for name in scores} & {"sMOTSA", "STQ", "AQ"}
    assert set(scores.values()) == {None}
    assert headline(scores, COCO) is None


def test_rows_of_other_datasets_are_left_out():
    both = merge([table(), as_kitti_mots()])
    assert score(both, STEP) == score(table(), STEP)
    with pytest.raises(DataError, match="no frame of coco_panoptic"):
        score(both, COCO)


CLASSES = (SavedClass(0, "road", False), SavedClass(1, "car", True), SavedClass(2, "person", True))
TOY = SavedContract(CLASSES, "toy", persistent=True, video=True)


@st.composite
def toy_videos(draw):
    """Two sequences of three frames, 6x8, each (truth classes, truth instances), with void and crowd."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frames = []
    for number in range(6):
        classes = random.choice(np.array([0, 0, 1, 2, 255], np.uint8), (6, 8))
        instances = np.where(np.isin(classes, (1, 2)), random.choice([1, 2, 65535], (6, 8)), 0).astype(np.uint16)
        frames.append(("ab"[number // 3], number % 3, classes, instances))
    return frames


def toy_table(frames, predict):
    return merge([frame_table("toy", s, f, c, i, *predict(c, i)) for s, f, c, i in frames])


def perfect(classes, instances):
    return classes, instances.astype(np.int32)


@settings(max_examples=40, deadline=None)
@given(toy_videos())
def test_a_perfect_prediction_scores_one(frames):
    scores = flat(score(toy_table(frames, perfect), TOY))
    for name, value in scores.items():
        assert value in ((0.0,) if name.startswith("IDS") else (1.0, None)), name
    assert scores["PQ"] == scores["STQ"] == scores["sMOTSA"] == 1.0


@settings(max_examples=40, deadline=None)
@given(toy_videos(), st.permutations(range(1, 6)), st.randoms(use_true_random=False))
def test_names_of_tracks_and_order_of_frames_do_not_matter(frames, names, random):
    noise = np.random.default_rng(7)
    flip = {id(frame): noise.random((6, 8)) < 0.3 for frame in frames}

    def noisy(frame, rename):
        _, _, classes, instances = frame
        pred = np.where(flip[id(frame)] & (classes != 255), 1, classes).astype(np.uint8)
        tracks = np.where(np.isin(pred, (1, 2)), instances.astype(np.int32) % 3 + 1, 0)
        return frame_table("toy", *frame, pred, rename[tracks])

    before = [noisy(frame, np.arange(6)) for frame in frames]
    after = [noisy(frame, np.array([0, *names])) for frame in frames]
    random.shuffle(after)
    expected, found = (flat(score(merge(tables), TOY)) for tables in (before, after))
    assert found == {
        name: value if value is None else pytest.approx(value, abs=1e-12) for name, value in expected.items()
    }


@settings(max_examples=40, deadline=None)
@given(toy_videos(), st.integers(1, 5))
def test_concatenation_is_merging(frames, cut):
    whole = toy_table(frames, perfect)
    assert merge([toy_table(frames[:cut], perfect), toy_table(frames[cut:], perfect)]).equals(whole)


def test_a_frame_counted_in_parts_scores_the_same():
    """Rows of one pair may come from several tables, for instance from tiles of a frame."""
    left, right = ([array[:, part] for array in maps("0002", 3)] for part in (slice(0, 600), slice(600, None)))
    whole = frame_table("kitti_step", "0002", 3, *maps("0002", 3))
    parts = merge([frame_table("kitti_step", "0002", 3, *side) for side in (left, right)])
    assert parts.num_rows > whole.num_rows
    assert pc.sum(parts["pixels"]) == pc.sum(whole["pixels"])
    assert score(parts, STEP) == score(whole, STEP)


def test_confidences_give_ap():
    """Two cars found, a third invented: at recall 2/2 precision is 1 as long as the invented one ranks last."""
    truth = np.zeros((12, 12), np.int32)
    truth[:4, :4], truth[6:10, 6:10] = 1, 2
    pred = truth.copy()
    pred[:4, 8:] = 3
    classes, found = (truth > 0).astype(np.uint8), (pred > 0).astype(np.uint8)
    for scores, expected in (
        ({(1, 1): 0.9, (1, 2): 0.8, (1, 3): 0.1}, 1.0),
        ({(1, 1): 0.5, (1, 2): 0.5, (1, 3): 0.9}, 2 / 3),
    ):
        counted = frame_table("toy", "s", 0, classes, truth.astype(np.uint16), found, pred, scores)
        assert score(counted, TOY)["ap"]["AP"] == pytest.approx(expected, abs=1e-9)
    assert "ap" not in score(frame_table("toy", "s", 0, classes, truth.astype(np.uint16), found, pred), TOY)


def test_the_protocol_decides_at_an_iou_of_one_half():
    """The prediction is half of the car: no match for mots_tools, a match for TrackEval."""
    truth = np.zeros((10, 10), np.uint16)
    truth[:4] = 1
    pred = np.zeros((10, 10), np.int32)
    pred[:2] = 7
    counted = frame_table("kitti_mots", "s", 0, truth.astype(np.uint8), truth, (pred > 0).astype(np.uint8), pred)
    by_default, chosen = (score(counted, MOTS, protocol_of("kitti_mots", name)) for name in (None, "trackeval"))
    assert [found["mots"]["car"]["MOTSA"] for found in (by_default, chosen)] == [-1.0, 1.0]


def test_every_dataset_has_a_protocol_of_its_own():
    assert protocol_of("kitti_mots").name == "mots_tools"
    assert protocol_of("vipseg").vpq_windows == (1, 2, 4, 6, 8)
    assert protocol_of("coco_panoptic").pq_crowd == "last"
    assert all(protocol_of(dataset) in PROTOCOLS.values() for dataset in DATASETS)
    with pytest.raises(ConfigError, match="--protocol vps: kitti_mots has no such protocol") as error:
        protocol_of("kitti_mots", "vps")
    assert error.value.hint == "its protocols, its own first: mots_tools, trackeval"
