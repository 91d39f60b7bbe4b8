"""One frame in a shard: exact bytes, any WebDataset reader, and every way a slice can be damaged."""

import io
import json
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from post_platform.datasets.frame import Label
from post_platform.errors import DataError
from post_platform.shards import record

CLASSES = np.array([[1, 2, 255], [0, 1, 2]], np.uint8)
INSTANCES = np.array([[1, 300, 0], [0, 65535, 65534]], np.uint16)
FACTS = {"sequence": "0002", "frame": 7}


def image_bytes(mode="RGB", kind="PNG", height=2, width=3):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    buffer = io.BytesIO()
    Image.fromarray(np.full(shape, 77, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def encoded(kind="JPEG", lossless=False):
    image = record.store_image(image_bytes(kind=kind), "here", lossless)
    return record.encode("0002/000007", image, Label(CLASSES, INSTANCES, {"1/1": 1000}), FACTS)


def tar_of(members):
    """A tar written by the standard library, as another tool would."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def members(**changes):
    whole = {f"0002/000007.{suffix}": content for suffix, content in record.split_members(encoded()).items()}
    whole.update({f"0002/000007.{name.replace('_', '.')}": content for name, content in changes.items()})
    return {name: content for name, content in whole.items() if content is not None}


def test_round_trip_by_hand():
    frame = record.decode(encoded())
    assert frame.key == "0002/000007"
    assert frame.classes.tolist() == [[1, 2, 255], [0, 1, 2]]
    assert frame.instances.tolist() == [[1, 300, 0], [0, 65535, 65534]]
    assert (frame.image.shape, frame.image.dtype) == ((2, 3, 3), np.uint8)
    assert frame.meta == {
        "sequence": "0002",
        "frame": 7,
        "height": 2,
        "width": 3,
        "labelled": True,
        "instances": {"1/1": 1000},
    }


def test_label_png_is_class_then_instance_high_and_low():
    label = np.array(Image.open(io.BytesIO(record.split_members(encoded())["label.png"])))
    assert label.tolist() == [
        [[1, 0, 1], [2, 1, 44], [255, 0, 0]],
        [[0, 0, 0], [1, 255, 255], [2, 255, 254]],
    ]


@settings(max_examples=25, deadline=None)
@given(arrays(np.uint8, (3, 4)), arrays(np.uint16, (3, 4)))
def test_any_label_survives(classes, instances):
    image = record.store_image(image_bytes(height=3, width=4), "here")
    frame = record.decode(record.encode("a/000000", image, Label(classes, instances), {}))
    assert frame.classes.tolist() == classes.tolist()
    assert frame.instances.tolist() == instances.tolist()


def test_unlabelled_frame_is_all_void():
    frame = record.decode(record.encode("a/000000", record.store_image(image_bytes(), "here"), None, {}))
    assert frame.classes.tolist() == [[255] * 3] * 2
    assert not frame.instances.any()
    assert frame.meta["labelled"] is False


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_kept_byte_for_byte_also_a_grey_one(mode):
    content = image_bytes(mode, "JPEG")
    image = record.store_image(content, "here")
    assert (image.content, image.suffix, image.height, image.width) == (content, "jpg", 2, 3)
    assert record.decode(record.encode("a/000000", image, None, {})).image.shape == (2, 3, 3)


def test_png_becomes_a_jpeg_without_chroma_subsampling_unless_lossless():
    source = np.zeros((16, 16, 3), np.uint8)
    source[:, ::2] = (255, 0, 0)  # red stripes one pixel wide: 4:2:0 would smear them
    buffer = io.BytesIO()
    Image.fromarray(source).save(buffer, "PNG")
    image = record.store_image(buffer.getvalue(), "here")
    assert image.suffix == "jpg"
    decoded = np.array(Image.open(io.BytesIO(image.content))).astype(int)
    assert np.abs(decoded - source).max() < 25
    assert record.store_image(buffer.getvalue(), "here", lossless=True).content == buffer.getvalue()


def test_bytes_are_deterministic_and_the_slice_is_a_tar():
    data = encoded()
    assert data == encoded()
    assert len(data) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        entries = archive.getmembers()
    assert [entry.name for entry in entries] == [f"0002/000007.{s}" for s in ("image.jpg", "label.png", "meta.json")]
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) for entry in entries} == {(0, 0, 0, "", 0o644)}
    assert data[257:263] == b"ustar\x00"


def test_a_foreign_reader_opens_it(tmp_path):
    (tmp_path / "0.tar").write_bytes(encoded() + bytes(1024))
    (sample,) = webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False)
    assert sample["__key__"] == "0002/000007"
    assert json.loads(sample["meta.json"])["frame"] == 7
    assert {"image.jpg", "label.png"} <= sample.keys()


def test_label_of_another_size_is_refused():
    image = record.store_image(image_bytes(height=4, width=3), "here")
    with pytest.raises(DataError, match="0002/000007: label is 2x3, image is 4x3"):
        record.encode("0002/000007", image, Label(CLASSES, INSTANCES), {})


def test_key_that_no_tar_header_holds():
    with pytest.raises(DataError, match="name does not fit a tar header"):
        record.encode("s" * 300 + "/000000", record.store_image(image_bytes(), "here"), None, {})


@pytest.mark.parametrize("content", [b"", b"not an image", image_bytes(height=64, width=64)[:60]])
def test_image_that_cannot_be_decoded(content):
    with pytest.raises(DataError, match="here: image cannot be read"):
        record.store_image(content, "here")


def test_size_is_capped_before_decoding(monkeypatch):
    whole = tar_of(members())
    monkeypatch.setattr(record, "MAX_PIXELS", 5)
    with pytest.raises(DataError, match="here: image is 2x3, more than 5 pixels"):
        record.store_image(image_bytes(), "here")
    with pytest.raises(DataError, match=r"image.jpg is 2x3, more than 5 pixels"):
        record.decode(whole)
    monkeypatch.setattr(record, "MAX_MEMBER_BYTES", 100)
    with pytest.raises(DataError, match="is not a file of at most 100 bytes"):
        record.decode(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_png": None}, "sample 0002/000007: label.png is missing"),
        ({"image_jpg": None}, "sample 0002/000007: image.jpg is missing"),
        ({"meta_json": b"{"}, "sample 0002/000007: meta.json is not JSON"),
        ({"label_png": image_bytes("L")}, "label.png has mode L, must be RGB"),
        ({"label_png": image_bytes(height=5)}, "sample 0002/000007: label is 5x3, image is 2x3"),
        ({"image_jpg": b"junk"}, "sample 0002/000007: image.jpg cannot be decoded"),
    ],
)
def test_damaged_members_are_named(changes, message):
    with pytest.raises(DataError, match=f"kitti_mots/train/000012.tar, .*{message}"):
        record.decode(tar_of(members(**changes)), "kitti_mots/train/000012.tar")


@pytest.mark.parametrize("cut", [0, 100, 512, 700, 2100, -600])
def test_truncated_slice_is_refused(cut):
    data = encoded()
    with pytest.raises(DataError, match=r"kitti_mots/train/000012.tar"):
        record.decode(data[:cut], "kitti_mots/train/000012.tar")


def test_a_slice_is_one_sample_of_regular_files():
    with pytest.raises(DataError, match="slice holds 2 samples"):
        record.decode(tar_of({**members(), "0002/000008.meta.json": b"{}"}))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("0002/000007.image.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "../../secret"
        archive.addfile(link)
    with pytest.raises(DataError, match="is not a file"):
        record.decode(buffer.getvalue())


def tagged(orientation, kind="JPEG", height=8, width=16):
    """A photograph whose left half is red, with a camera's orientation tag."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def red(stored):
    """Where the stored image is red, as every reader sees it: those that obey the tag and those that do not."""
    image = Image.open(io.BytesIO(stored.content))
    plain = np.array(image.convert("RGB"))[..., 0] > 125
    obedient = np.array(ImageOps.exif_transpose(image).convert("RGB"))[..., 0] > 125
    np.testing.assert_array_equal(plain, obedient)
    assert plain.shape == (stored.height, stored.width)
    return plain


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("lossless", [False, True])
def test_image_is_turned_only_if_the_label_fits_no_other_way(kind, lossless):
    content = tagged(6, kind)  # to be shown turned clockwise by a quarter
    as_stored = red(record.store_image(content, "here", lossless, (8, 16)))
    assert as_stored.shape == (8, 16)
    assert as_stored[:, :7].all()
    assert not as_stored[:, 9:].any()
    turned = red(record.store_image(content, "here", lossless, (16, 8)))
    assert turned.shape == (16, 8)
    assert turned[:7].all()
    assert not turned[9:].any()


@pytest.mark.parametrize("label_shape", [None, (8, 16)])
@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_orientation_tag_goes_and_the_pixels_of_a_jpeg_stay(orientation, label_shape):
    content = tagged(orientation)
    stored = record.store_image(content, "here", label_shape=label_shape)
    assert red(stored)[:, :7].all()
    start = content.index(b"\xff\xe1")
    length = int.from_bytes(content[start + 2 : start + 4], "big")
    assert stored.content == content[:start] + content[start + 2 + length :]


def test_jpeg_without_orientation_stays_byte_for_byte():
    for content in (image_bytes(kind="JPEG"), tagged(1)):
        assert record.store_image(content, "here", label_shape=(2, 3)).content == content


def test_xmp_orientation_and_fill_bytes():
    jpeg = image_bytes(kind="JPEG")
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + b'<x tiff:Orientation="6"/>'
    segment = b"\xff\xff\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp  # two fill bytes in front
    stored = record.store_image(jpeg[:2] + segment + jpeg[2:], "here")
    assert Image.open(io.BytesIO(stored.content)).getexif().get(0x0112, 1) == 1
    assert stored.content == jpeg


def test_whole_masks_of_overlapping_objects_are_kept():
    label = Label(CLASSES, INSTANCES, {"1/1": 17}, {"1/1": "02"})
    frame = record.decode(record.encode("0002/000007", record.store_image(image_bytes(), "here"), label, FACTS))
    assert frame.meta["masks"] == {"1/1": {"size": [2, 3], "counts": "02"}}
