import numpy as np
import pytest
import torch

from post_model.network import Post, Predictions
from post_model.predictor import Predictor, Segment
from post_model.taxonomy import Projection, identity
from post_model.weights import save_model

SIZE = (16, 48)
TWO = Projection(("road", "car"), (False, True), ((0,), (1, 2)))  # both of the stub's thing classes are cars
REST = Projection(("car",), (True,), ((1, 2),), background=True)


class Stub(torch.nn.Module):
    """A network that knows the answer: classes 1 and 2 of 3 are a 6x6 box whose x is the image's first pixel."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.arguments = {"num_classes": 3, "branches": ["semantic", "center", "offset", "prev_offset"]}
        self.encoded, self.previous = 0, None

    def features(self, images):
        self.encoded += len(images)
        return {"x": images[:, 0, 0, 0].int()}

    def heads(self, features, prev_features, size):
        self.previous = prev_features["x"].tolist() if prev_features else None
        yy, xx = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
        x = features["x"][:, None, None]
        box = (yy >= 5) & (yy < 11) & (xx >= x) & (xx < x + 6)
        semantic = torch.stack([~box, box, box], 1).float() * 8  # classes 1 and 2 are equally likely on it
        center = ((yy == 7) & (xx == x + 2))[:, None] * 0.9  # where the mask's mean is, truncated
        offset = torch.stack([(7 - yy).expand_as(box), x + 2 - xx], 1).float()
        return Predictions(semantic, center, offset, offset if prev_features else None)


def image(x):
    return torch.full((3, *SIZE), x, dtype=torch.uint8)


def test_a_video_is_tracked_and_every_frame_encoded_once():
    stub = Stub()
    predictor = Predictor(stub, TWO)
    assert predictor.tracking == "prev_offset"
    for number, x in enumerate([4, 16, 28], start=1):
        result = predictor(image(x))
        assert stub.encoded == number
        assert result.tracks[8, x : x + 6].tolist() == [1] * 6
        assert (result.tracks > 0).sum() == (result.classes == 1).sum() == 36
        road, car = result.segments
        assert road == Segment(1, 0, "road", False, 0, None, 16 * 48 - 36, None)
        assert car == Segment(2, 1, "car", True, 1, pytest.approx(0.9, abs=0.01), 36, (5, x, 11, x + 6))
        assert torch.equal(result.panoptic, result.classes + 1)


def test_a_state_is_made_again_from_the_last_frame_and_its_tracks():
    predictor = Predictor(Stub(), TWO)
    _, (state,) = predictor.step([image(4)], [None])
    again = predictor.recall(image(4), state.tracker)
    assert again.features["x"].tolist() == state.features["x"].tolist() == [4]
    (kept,), _ = predictor.step([image(16)], [state])
    (made,), _ = predictor.step([image(16)], [again])
    assert kept.segments == made.segments
    assert made.segments[1].track == 1
    with pytest.raises(ValueError, match=r"the frame is \(8, 9\), the video's frames are \(16, 48\)"):
        predictor.recall(torch.zeros(3, 8, 9, dtype=torch.uint8), state.tracker)


def test_panoptic_ids_are_the_segments_and_void_is_0():
    result = Predictor(Stub(), TWO, min_stuff=1.0)(image(4))
    assert [segment.name for segment in result.segments] == ["car"]
    assert result.panoptic.unique().tolist() == [0, 1]
    assert (result.panoptic == 1).sum() == 36
    assert result.classes.unique().tolist() == [-1, 1]


def test_without_motion_a_fast_object_gets_a_new_track():
    for tracking, expected in {"iou": [1, 2], "none": [1, 1], "prev_offset": [1, 1]}.items():
        predictor = Predictor(Stub(), REST, tracking)
        assert [predictor(image(x)).segments[1].track for x in (4, 16)] == expected


def test_background_is_the_rest_and_comes_last():
    result = Predictor(Stub(), REST)(image(4))
    assert result.classes.unique().tolist() == [0, 1]
    assert [(segment.name, segment.thing) for segment in result.segments] == [("background", False), ("car", True)]
    assert result.classes[0, 0] == 1
    assert result.tracks[0, 0] == 0


def test_probabilities_are_added_before_deciding():
    """Two classes of .3 make one of .6, which beats .4."""
    logits = torch.tensor([0.4, 0.3, 0.3]).log().view(1, 3, 1, 1).expand(2, 3, 2, 5)
    found = Predictor(Stub(), TWO).class_probabilities(logits)
    torch.testing.assert_close(found[1, :, 0, 0], torch.tensor([0.4, 0.6]))
    found = Predictor(Stub(), REST).class_probabilities(logits)
    torch.testing.assert_close(found[1, :, 1, 4], torch.tensor([0.6, 0.4]))


def test_videos_run_side_by_side_under_their_names():
    predictor, alone = Predictor(Stub(), REST), Predictor(Stub(), REST)
    for a, b in ((4, 20), (5, 34), (6, 10)):
        expected = alone(image(a))
        result, _ = predictor(image(a), video="a"), predictor(image(b), video="b")
        assert torch.equal(result.tracks, expected.tracks)
        assert result.segments == expected.segments
    predictor.forget("a")
    assert predictor(image(40), video="a").segments[1].track == 1
    assert predictor(image(11), video="b").segments[1].track == 1, "the other video goes on"


def test_several_videos_in_one_batch_are_as_each_alone():
    """The last one starts later than the others, and gets no motion in its first frame."""
    positions = {"a": [4, 16, 28], "b": [30, 20, 9], "late": [8, 20]}
    alone = Predictor(Stub(), REST)
    expected = {name: [alone(image(x), video=name) for x in row] for name, row in positions.items()}
    stub, states = Stub(), dict.fromkeys(positions)
    predictor = Predictor(stub, REST)
    for number in range(3):
        chosen = {name: number - (name == "late") for name in positions if name != "late" or number}
        frames = [image(positions[name][frame]) for name, frame in chosen.items()]
        results, following = predictor.step(frames, [states[name] for name in chosen])
        for (name, frame), result, state in zip(chosen.items(), results, following, strict=True):
            states[name] = state
            assert torch.equal(result.panoptic, expected[name][frame].panoptic)
            assert torch.equal(result.tracks, expected[name][frame].tracks)
            assert result.segments == expected[name][frame].segments
        before = {name: positions[name][max(0, frame - 1)] for name, frame in chosen.items()}
        assert stub.previous == (list(before.values()) if number else None), "motion is from each video's own past"
    assert stub.encoded == 8


def test_a_real_network_takes_frames_of_any_size():
    torch.manual_seed(0)
    model = Post(3, "small", norm="group").train()
    predictor = Predictor(model, identity("abc", (False, True, True)), threshold=-1.0, min_score=-9.0)
    for _ in range(3):
        result = predictor(torch.randint(0, 256, (3, 37, 50), dtype=torch.uint8))
        assert result.panoptic.shape == result.tracks.shape == result.classes.shape == (37, 50)
        numbers = result.panoptic.unique().tolist()
        assert [segment.id for segment in result.segments] == [number for number in numbers if number]
        assert [segment.area for segment in result.segments] == [
            (result.panoptic == segment.id).sum().item() for segment in result.segments
        ]
    assert not model.training


def test_a_checkpoint_is_opened_in_its_own_classes_or_a_dataset_s(tmp_path):
    torch.manual_seed(0)
    model = Post(3, "small", norm="group")
    own = ("road", "car", "van")
    save_model(tmp_path, model, own, (False, True, True), {"street": TWO, "mots": REST})
    settings = {"threshold": -1.0, "min_score": -1.0, "min_stuff": 0.0, "top_k": 3}
    array = np.random.RandomState(0).randint(0, 256, (32, 48, 3), np.uint8)
    for dataset, names in {
        None: ("road", "car", "van"),
        "street": ("road", "car"),
        "mots": ("car", "background"),
    }.items():
        predictor = Predictor.from_checkpoint(tmp_path, dataset, **settings)
        assert predictor.names == names
        results = [predictor(array) for _ in range(2)]
        assert results[1].panoptic.shape == results[1].tracks.shape == (32, 48)
        assert {segment.name for segment in results[1].segments} <= set(names)
        assert torch.equal(results[1].panoptic, predictor(torch.from_numpy(array).permute(2, 0, 1)).panoptic)
    with pytest.raises(ValueError, match=r"has no classes of a dataset 'moon'; it knows: mots, street"):
        Predictor.from_checkpoint(tmp_path, "moon")
    with pytest.raises(ValueError, match=r"model\.json: cannot be read"):
        Predictor.from_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"the frame is float32; expected uint8 RGB"),
        (torch.zeros(3, 8, 8), r"the frame is torch\.float32; expected uint8 RGB"),
        (np.zeros((3, 8, 8), np.uint8), r"the frame is \(3, 8, 8\); expected \(H, W, 3\), as an array"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"the frame is \(8, 8, 3\); expected \(3, H, W\), as a tensor"),
        (np.zeros((8, 8), np.uint8), r"the frame is \(8, 8\); expected"),
        (np.zeros((8, 8, 4), np.uint8), r"the frame is \(8, 8, 4\); expected"),
        (np.zeros((0, 8, 3), np.uint8), r"the frame is \(0, 8, 3\); expected"),
    ],
)
def test_a_wrong_frame_is_named(frame, message):
    with pytest.raises(ValueError, match=message):
        Predictor(Stub(), REST)(frame)


@pytest.mark.parametrize("tracking", ["prev_offset", "iou", "none"])
def test_a_change_of_size_is_refused_and_loses_nothing(tracking):
    predictor = Predictor(Stub(), REST, tracking)
    predictor(image(4))
    with pytest.raises(ValueError, match=r"frame 1 is \(8, 8\), the video's frames are \(16, 48\)"):
        predictor(np.zeros((8, 8, 3), np.uint8))
    assert predictor(image(5)).segments[1].track == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projection": identity("abcd", [True] * 4)}, r"a projection names class 3 of a model with 3 classes"),
        ({"tracking": "flow"}, "unknown tracking 'flow'; expected one of prev_offset, iou, none"),
        ({"branches": ("semantic", "center", "offset")}, "the network lacks the branch prev_offset"),
        ({"branches": (), "tracking": None}, "the network lacks the branch semantic, center, offset"),
    ],
)
def test_wrong_use_is_named(change, message):
    branches = change.pop("branches", ("semantic", "center", "offset", "prev_offset"))
    model = Post(3, "small", branches=branches, norm="group")
    with pytest.raises(ValueError, match=message):
        Predictor(model, **{"projection": identity("abc", [True] * 3), "tracking": "prev_offset", **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("a", "b"), (True,), ((0,), (1,))), "got 2 names, 1 thing flags and 2 sets"),
        ((("a", "b"), (True, True), ((0, 1), (1,))), "names a class of the model twice"),
    ],
)
def test_a_wrong_projection_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Projection(*arguments)
