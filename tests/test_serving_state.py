"""The state that travels with requests: read back to the last bit; of what others make of it nothing is believed."""

import base64
import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from served import encoded, frame, save_checkpoint

from post_model import tracker
from post_model.predictor import Predictor
from post_platform import serving_state
from post_platform.datasets.masks import decode_mask
from post_platform.errors import DataError
from post_platform.serving import Service
from post_platform.serving_state import pack, unpack


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "checkpoint"
    save_checkpoint(folder)
    return folder


def test_a_state_is_read_back_to_the_last_bit(checkpoint):
    predictor, state = Predictor.from_checkpoint(checkpoint), None
    for number in range(6):
        _, (state,) = predictor.step([frame(number)], [state])
        text = pack("m", b"the file", state.tracker)
        content, tracks = unpack(text, "m", 4)
        assert content == b"the file"
        for name, expected in state.tracker._asdict().items():
            found = getattr(tracks, name)
            assert found.dtype == expected.dtype, name
            assert torch.equal(found, expected), name
    assert len(state.tracker.ids) > 10
    assert len(text) < state.tracker.pixels.nbytes + state.tracker.full_pixels.nbytes
    content, tracks = unpack(pack("m", b"x", tracker.start()._replace(
        frame=torch.tensor(1), size=torch.tensor([4, 5]))), "m", 4)  # fmt: skip
    assert (content, len(tracks.ids)) == (b"x", 0)


def forged(text, change):
    """A state with other fields, and the checksum that belongs to them."""
    head, _, content = base64.b64decode(text).partition(b"\n")
    fields = load(content)
    change(fields)
    content = save(fields)
    version, model, _ = head.decode().split(" ")
    digest = hashlib.sha256(content).hexdigest()
    return base64.b64encode(f"{version} {model} {digest}\n".encode() + content).decode()


LATER = encoded(frame(3))


@pytest.fixture(scope="module")
def one_service(checkpoint):
    return Service.open(checkpoint)


@pytest.fixture(scope="module")
def honest(one_service):
    state = None
    for number in range(3):
        state = one_service.answer(encoded(frame(number)), state)["state"]
    return state


def test_an_unchanged_forgery_is_the_state(honest):
    assert forged(honest, lambda fields: None) == honest


@st.composite
def damage(draw):
    """What to do to one field of a state."""
    name = draw(st.sampled_from(sorted({*tracker.TrackerState._fields, "image"})))
    kind = draw(st.sampled_from(["value", "value", "value", "drop", "cut", "type", "shape"]))
    place, near = draw(st.integers(0, 1 << 16)), draw(st.integers(-2, 2))
    far, real = draw(st.one_of(st.none(), st.integers(-(1 << 63), (1 << 63) - 1))), draw(st.floats())
    dtype = draw(st.sampled_from([torch.int32, torch.int64, torch.uint8, torch.float64, torch.bool]))

    def change(fields):
        value = fields.pop(name).clone() if name in fields else torch.zeros(1)
        if kind == "value" and value.numel():
            flat = value.view(-1)
            if value.is_floating_point():
                flat[place % len(flat)] = real
            else:
                limits = torch.iinfo(value.dtype)
                wanted = int(flat[place % len(flat)]) + near if far is None else far
                flat[place % len(flat)] = min(max(wanted, limits.min), limits.max)
        elif kind == "cut" and value.ndim:
            value = value[: place % (len(value) + 1)].contiguous()
        elif kind == "type":
            value = value.to(dtype)
        elif kind == "shape":
            value = value.reshape(-1)[None].contiguous()
        if kind != "drop":
            fields[name] = value

    return change


@given(changes=st.lists(damage(), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_a_forged_state_is_refused_or_answered_and_nothing_else(honest, one_service, changes):
    text = forged(honest, lambda fields: [change(fields) for change in changes])
    try:
        answer = one_service.answer(LATER, text)
    except DataError as error:
        outcome = str(error)
    else:
        for segment in answer["segments"]:
            mask = decode_mask(segment["segmentation"], answer["height"], answer["width"], "answer")
            assert mask.sum() == segment["area"]
        outcome = "state: was as good as the true one"
    assert outcome.startswith(("state: ", "frame: "))
    assert "\n" not in outcome


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("pixels", lambda runs: runs.index_fill(0, torch.tensor([0]), 1 << 30), "pixels outside"),
        ("pixels", lambda runs: -runs, "pixels outside"),
        ("counts", lambda counts: counts + 1, "masks of another area"),
        ("counts", lambda counts: counts * 0 + (1 << 62), "counts out of range"),
        ("ids", lambda ids: ids * 0 + 1, "an id given twice"),
        ("ids", lambda ids: ids + 1000, "ids out of range"),
        ("classes", lambda classes: classes + 4, "classes out of range"),
        ("seen", lambda seen: seen + 1000, "seen out of range"),
        ("velocity", lambda velocity: velocity * float("nan"), "velocity out of range"),
        ("next_id", lambda number: number * 0 + (1 << 31), "impossible counts"),
        ("size", lambda size: size * 0, "an impossible size"),
        ("boxes", lambda boxes: boxes[:, :2].contiguous(), "boxes of another shape"),
        ("image", lambda image: image.float(), "a field of another type"),
    ],
)
def test_what_no_tracker_leaves_is_named(honest, one_service, name, value, reason):
    def change(fields):
        fields[name] = value(fields[name])

    with pytest.raises(DataError, match=f"^state: is none that this model made: {reason}$"):
        one_service.answer(LATER, forged(honest, change))


def test_a_state_that_would_unpack_to_gigabytes(honest, one_service):
    def change(fields):
        number = len(fields["ids"])
        area = int(fields["size"].prod())
        for masks, counts in (("pixels", "counts"), ("full_pixels", "full_counts")):
            fields[counts] = torch.full((number,), area)
            fields[masks] = torch.tensor([[0, area]], dtype=torch.int32).expand(number, 2).contiguous()
        assert number > serving_state.MOST_MASKS

    with pytest.raises(DataError, match="masks too large"):
        one_service.answer(LATER, forged(honest, change))
