"""Pictures keep a track's colour, show the label they are given, and can be read back."""

import numpy as np
import pytest
from PIL import Image

from post_platform import render
from post_platform.labels import available, load_contract, taxonomy

PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[1], PALETTE[2] = (200, 0, 0), (0, 0, 200)
THING = np.zeros(256, bool)
THING[2] = True
GREY = np.full((4, 6, 3), 100, np.uint8)


def test_overlay_by_hand():
    classes = np.array([[1, 1, 0, 255, 2, 2]] * 4, np.uint8)
    instances = np.array([[0, 0, 0, 0, 65535, 65535]] * 4, np.uint16)
    painted = render.overlay(GREY, classes, instances, PALETTE, THING, alpha=0.5)
    assert painted[0].tolist() == [
        [150, 50, 50], [150, 50, 50],  # stuff: half the picture, half its class's colour
        [70, 70, 70], [70, 70, 70],  # background and void are dimmed
        [50, 50, 150], [50, 50, 150],  # an object without identity keeps its class's colour
    ]  # fmt: skip


def test_track_keeps_its_colour_whatever_else_is_in_the_frame():
    image = np.full((9, 20, 3), 90, np.uint8)
    classes, first, second = np.full((9, 20), 2, np.uint8), np.zeros((9, 20), np.uint16), np.zeros((9, 20), np.uint16)
    first[2:7, 2:7] = 41
    second[2:7, 12:17] = 41
    second[2:7, 2:7] = 7
    a = render.overlay(image, classes, first, PALETTE, THING)
    b = render.overlay(image, classes, second, PALETTE, THING)
    assert (a[4, 4] == b[4, 14]).all()
    assert (a[4, 4] != b[4, 4]).any()
    assert (a[2, 2] > a[4, 4]).any()  # the outline is lighter than the inside
    assert (a[4, 10] == b[4, 10]).all()


def test_nearby_track_numbers_get_colours_that_differ():
    colors = np.array([render.track_color(2, k) for k in range(12)], int)
    apart = np.abs(colors[:, None] - colors[None]).sum(-1)[~np.eye(12, dtype=bool)]
    assert apart.min() > 40
    assert colors.max(1).min() >= 200  # vivid, never dark
    assert render.track_color(1, 5) != render.track_color(2, 5)


def test_overlay_refuses_labels_of_another_size():
    with pytest.raises(ValueError, match="differ in size"):
        render.overlay(GREY, np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint16), PALETTE, THING)


@pytest.mark.parametrize("name", available())
def test_palette_takes_the_unified_colours(name):
    contract = load_contract(name)
    colors = render.palette(contract)
    unified = taxonomy()
    assert colors.shape == (256, 3)
    assert colors[255].tolist() == [0, 0, 0]
    for native in contract.classes:
        assert tuple(colors[native.id]) == unified.colors[unified.names.index(native.unified[0])]


def test_contact_sheet_places_images_of_different_sizes():
    red, blue = np.zeros((20, 40, 3), np.uint8), np.zeros((30, 60, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    bare = render.contact_sheet([[red, blue], [blue]])
    assert bare.shape == (30 + 30 + 3 * 6, 60 + 60 + 3 * 6, 3)
    assert bare[6, 6].tolist() == [255, 0, 0]
    assert bare[6 + 30 + 6, 6].tolist() == [0, 0, 255]
    texts = render.contact_sheet(
        [[red, blue], [blue]], titles=["now", "before"], captions=[["0001/000004", "x"], ["y"]]
    )
    assert texts.shape[0] > bare.shape[0]
    assert texts.shape[1] == bare.shape[1]
    assert render.contact_sheet([[red]], scale=3).shape == (60 + 12, 120 + 12, 3)
    with pytest.raises(ValueError, match="no image"):
        render.contact_sheet([])


def test_strip_joins_in_a_row_or_a_column():
    small, large = np.zeros((2, 3, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)
    assert render.strip(small, large, gap=1).shape == (4, 9, 3)
    assert render.strip(small, large, gap=1, vertical=True).shape == (7, 5, 3)
    with pytest.raises(ValueError, match="no image"):
        render.strip()


def test_triptych_shows_what_there_is():
    labels = (np.ones((32, 64), np.uint8), np.zeros((32, 64), np.uint16))
    image = np.full((32, 64, 3), 50, np.uint8)
    three = render.triptych(image, labels, labels, PALETTE, THING, scale=2)
    two = render.triptych(image, None, labels, PALETTE, THING, scale=2)
    assert three.shape[1] - two.shape[1] == 64 * 2 + 6
    assert three.shape[0] == two.shape[0] > 64


def test_gif_keeps_frames_and_speed(tmp_path):
    frames = []
    for k in range(5):
        frame = np.full((16, 24, 3), 30, np.uint8)
        frame[4:8, 4 * k : 4 * k + 4] = (255, 120, 0)
        frames.append(frame)
    path = render.save_gif(tmp_path / "new" / "a.gif", frames, fps=10)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.info["duration"]) == (5, 100)
        gif.seek(3)
        shown = np.array(gif.convert("RGB")).astype(int)
    assert np.abs(shown - frames[3]).max() <= 8
    with pytest.raises(ValueError, match="no frame"):
        render.save_gif(tmp_path / "b.gif", [])
