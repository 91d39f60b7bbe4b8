import pytest
import torch

from post_model.network import Post, Predictions
from post_model.predictor import Predictor

SIZE = (16, 48)


class Stub(torch.nn.Module):
    """A network that knows the answer: class 1 of 3 is a 6x6 box whose x is the image's first pixel."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.arguments = {"num_classes": 3, "branches": ["semantic", "center", "offset", "prev_offset"]}
        self.encoded = 0

    def features(self, image):
        self.encoded += 1
        return {"x": int(image[0, 0, 0, 0])}

    def heads(self, features, prev_features, size):
        yy, xx = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
        x = features["x"]
        box = (yy >= 5) & (yy < 11) & (xx >= x) & (xx < x + 6)
        semantic = torch.stack([~box, box, box]).float()[None] * 8  # classes 1 and 2 are equally likely on it
        center = torch.zeros(1, 1, *size)
        center[0, 0, 7, x + 2] = 0.9  # where the mask's mean is, truncated
        offset = torch.stack([7 - yy, x + 2 - xx])[None].float()
        return Predictions(semantic, center, offset, offset if prev_features else None)


def image(x):
    return torch.full((3, *SIZE), x, dtype=torch.uint8)


def run(predictor, positions):
    state, results = None, []
    for x in positions:
        result, state = predictor.step(image(x), state)
        results.append(result)
    return results


def test_a_video_is_tracked_and_every_frame_encoded_once():
    stub = Stub()
    projection = torch.tensor([[True, False, False], [False, True, True]])
    results = run(Predictor(stub, projection, torch.tensor([False, True])), [4, 16, 28])
    assert stub.encoded == 3
    for result, x in zip(results, [4, 16, 28], strict=True):
        assert result.tracks[8, x : x + 6].tolist() == [1] * 6
        assert (result.tracks > 0).sum() == (result.classes == 1).sum() == 36
        assert result.track_classes == {1: 1}
        assert result.scores[1] == pytest.approx(0.9, abs=0.01)


def test_without_motion_a_fast_object_gets_a_new_track():
    projection, thing = torch.tensor([[False, True, True]]), torch.tensor([True])
    results = run(Predictor(Stub(), projection, thing, background=True, tracking="iou"), [4, 16])
    assert results[1].track_classes == {2: 0}
    results = run(Predictor(Stub(), projection, thing, background=True, tracking="none"), [4, 16])
    assert results[1].track_classes == {1: 0}


def test_background_is_the_rest_and_comes_last():
    predictor = Predictor(Stub(), torch.tensor([[False, True, True]]), torch.tensor([True]), background=True)
    result, _ = predictor.step(image(4))
    assert result.classes.unique().tolist() == [0, 1]
    assert result.classes[0, 0] == 1
    assert result.tracks[0, 0] == 0


def test_probabilities_are_added_before_deciding():
    """Two classes of .3 make one of .6, which beats .4."""
    predictor = Predictor(
        Stub(), torch.tensor([[True, False, False], [False, True, True]]), torch.tensor([False, True])
    )
    logits = torch.tensor([0.4, 0.3, 0.3]).log().view(3, 1, 1).expand(3, 2, 5)
    torch.testing.assert_close(predictor.class_scores(logits)[:, 0, 0], torch.tensor([0.4, 0.6]))


def test_videos_run_side_by_side():
    predictor = Predictor(Stub(), torch.tensor([[False, True, True]]), torch.tensor([True]), background=True)
    _, one = predictor.step(image(4))
    _, two = predictor.step(image(20))
    first, _ = predictor.step(image(5), one)
    second, _ = predictor.step(image(22), two)
    assert first.track_classes == second.track_classes == {1: 0}


def test_a_real_network_runs_and_a_change_of_size_is_refused():
    torch.manual_seed(0)
    model = Post(3, "small", norm="group")
    predictor = Predictor(model, torch.eye(3, dtype=torch.bool), torch.tensor([False, True, True]), threshold=-1.0)
    result, state = predictor.step(torch.zeros(3, 20, 30, dtype=torch.uint8))
    result, state = predictor.step(torch.zeros(3, 20, 30, dtype=torch.uint8), state)
    assert result.classes.shape == result.tracks.shape == (20, 30)
    assert not model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projection": torch.ones(2, 4)}, r"projection is \(2, 4\), expected \(2, 3\)"),
        ({"tracking": "flow"}, "unknown tracking 'flow'; expected one of prev_offset, iou, none"),
        ({"branches": ("semantic", "center", "offset")}, "the network lacks the branch prev_offset"),
    ],
)
def test_wrong_use_is_named(change, message):
    branches = change.pop("branches", ("semantic", "center", "offset", "prev_offset"))
    model = Post(3, "small", branches=branches, norm="group")
    with pytest.raises(ValueError, match=message):
        Predictor(model, **{"projection": torch.ones(2, 3), "thing": torch.ones(2, dtype=torch.bool), **change})
