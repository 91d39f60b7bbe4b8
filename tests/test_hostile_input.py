"""Files made to harm: whatever they say, the answer is one error that names them, in little memory and little time."""

import hashlib
import io
import json
import os
import resource
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from post_platform.config import load_config
from post_platform.datasets import coco_panoptic
from post_platform.datasets.files import decode_label_png, image_size, read_json, read_lines
from post_platform.datasets.frame import Label
from post_platform.errors import ConfigError, DataError, PostError
from post_platform.labels import load_contract
from post_platform.labels.contract import load_contract_file
from post_platform.shards import record
from post_platform.shards.index import FORMAT, INDEX_SCHEMA, encode_index, read_split

ROOT = Path(__file__).resolve().parent.parent
KEY = "0002/000007"


def picture(kind="PNG", array=None):
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 3, 3), 77, np.uint8) if array is None else array).save(buffer, kind)
    return buffer.getvalue()


def whole_slice():
    label = Label(np.array([[1, 2, 255], [0, 1, 2]], np.uint8), np.array([[1, 2, 0], [0, 1, 2]], np.uint16))
    return record.encode(KEY, record.store_image(picture(), "here"), label, {"sequence": "0002", "frame": 7})


def png(width, height, bits=8, color=2, data=b"", before=b""):
    """A PNG written chunk by chunk, whose header may promise anything."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def jpeg(width, height):
    """A small JPEG that claims another size."""
    content = bytearray(picture("JPEG"))
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(content)


# --- tars -----------------------------------------------------------------------------------------------------------


def tar_entry(name, content=b"", kind=tarfile.REGTYPE, link="", size=None, fmt=tarfile.GNU_FORMAT, pax=None):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, len(content) if size is None else size
    entry.pax_headers = pax or {}
    return entry.tobuf(fmt) + content + bytes(-len(content) % 512)


GOOD = {f"{KEY}.{suffix}": content for suffix, content in record.split_members(whole_slice()).items()}


def tar_with(*extra, leave_out=()):
    members = [tar_entry(name, content) for name, content in GOOD.items() if name not in leave_out]
    return b"".join([*extra, *members])


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (tar_entry("/etc/000007.meta.json", b"{}"), "is no name of ours"),
        (tar_entry("../0002/000007.meta.json", b"{}"), "is no name of ours"),
        (tar_entry("0002/../../000007.meta.json", b"{}"), "is no name of ours"),
        (tar_entry("000007.meta.json", b"{}"), "is no name of ours"),
        (tar_entry("0002/.json", b"{}"), "is no name of ours"),
        (tar_entry(f"{KEY}.other", kind=tarfile.SYMTYPE, link="/etc/passwd"), "is not a file"),
        (tar_entry(f"{KEY}.other", kind=tarfile.LNKTYPE, link=f"{KEY}.meta.json"), "is not a file"),
        (tar_entry(f"{KEY}.other", kind=tarfile.CHRTYPE), "is not a file"),
        (tar_entry(f"{KEY}.other", kind=tarfile.BLKTYPE), "is not a file"),
        (tar_entry(f"{KEY}.other", kind=tarfile.FIFOTYPE), "is not a file"),
        (tar_entry(f"{KEY}.other", kind=tarfile.DIRTYPE), "is not a file"),
        (tar_entry(f"{KEY}.other", kind=tarfile.GNUTYPE_SPARSE), "is not a file"),
        (tar_entry(f"{KEY}.other", size=10 << 30), "is not a file of at most"),
        (tar_entry(f"{KEY}.other", fmt=tarfile.PAX_FORMAT, pax={"size": str(10 << 30)}), "is not a file of at most"),
        (
            tar_entry(
                f"{KEY}.other", fmt=tarfile.PAX_FORMAT, pax={"GNU.sparse.size": str(1 << 27), "GNU.sparse.map": ""}
            ),
            "is not a file of at most|not a whole tar slice",
        ),
        (tar_entry(f"{KEY}.meta.json", b"{}"), "is there twice"),
        (tar_entry("0002/000008.meta.json", b"{}"), "slice holds 2 samples"),
        (tar_entry("n" * 90 + "/../000007.meta.json", b"{}"), "is no name of ours"),
    ],
)
def test_hostile_members(entry, reason):
    with pytest.raises(DataError, match=f"^kitti_mots/train/000012.tar: .*({reason})"):
        record.decode(tar_with(entry), "kitti_mots/train/000012.tar")


def test_interleaved_samples():
    other = {name.replace("000007", "000008"): content for name, content in GOOD.items()}
    mixed = [tar_entry(*member) for pair in zip(GOOD.items(), other.items(), strict=True) for member in pair]
    with pytest.raises(DataError, match="slice holds 2 samples"):
        record.decode(b"".join(mixed))


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_damaged_slice_gives_anything_but_a_frame_or_one_error(data):
    content = bytearray(whole_slice())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        action = data.draw(st.sampled_from(["flip", "cut", "insert", "zero", "swap"]))
        if action == "flip":
            content[place] ^= data.draw(st.integers(1, 255))
        elif action == "cut":
            del content[place : place + data.draw(st.integers(1, 700))]
        elif action == "insert":
            content[place:place] = data.draw(st.binary(max_size=40))
        elif action == "zero":
            content[place : place + 64] = bytes(len(content[place : place + 64]))
        else:
            block = place // 512 * 512
            content[block : block + 512], content[:512] = content[:512], content[block : block + 512]
        if not content:
            return
    try:
        frame = record.decode(bytes(content), "here")
    except DataError as error:
        outcome = str(error)
    else:
        outcome = "here" if frame.image.shape[:2] == frame.classes.shape == frame.instances.shape else "?"
    assert "here" in outcome
    assert "\n" not in outcome


# --- images ---------------------------------------------------------------------------------------------------------

BOMB = r"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from pathlib import Path
from post_platform.datasets.files import decode_label_png, image_size
from post_platform.errors import DataError
from post_platform.shards import record
for path in sys.argv[1:]:
    content = Path(path).read_bytes()
    for attempt in (
        lambda: record.store_image(content, "here"),
        lambda: decode_label_png(Path(path), "here", "RGB", "I;16", "L"),
        lambda: record._pixels(content, "here", "RGB"),
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            attempt()
            print(path, "was decoded")
        except DataError as error:
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            if "here" not in str(error) or grown > 200_000:
                print(path, error, grown)
"""


def test_bombs_are_refused_from_their_header(tmp_path):
    bombs = {
        "wide.png": png(1 << 30, 1 << 30, data=b"x"),
        "square.png": png(60_000, 60_000, data=bytes(1 << 20)),
        "deep.png": png(60_000, 60_000, 16, 0, data=bytes(1 << 20)),
        "palette.png": png(60_000, 60_000, 1, 3, data=bytes(1 << 20)),
        "claims.jpg": jpeg(65_000, 65_000),
        "chunk.png": png(2, 2, data=bytes(14), before=b"\xff\xff\xff\xf0IDAT"),
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
    path = os.pathsep.join(str(ROOT / name) for name in ("platform", "model"))
    done = subprocess.run(
        [sys.executable, "-c", BOMB, *(str(tmp_path / name) for name in bombs)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_text_chunk_that_unpacks_to_a_gigabyte():
    bomb = b"bomb\0\0" + zlib.compress(bytes(1 << 28), 9)
    chunk = struct.pack(">I", len(bomb)) + b"zTXt" + bomb + struct.pack(">I", zlib.crc32(b"zTXt" + bomb))
    content = png(2, 2, data=bytes(14), before=chunk)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="here: image cannot be read"):
        record.store_image(content, "here")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    ("content", "modes", "reason"),
    [
        (png(2, 2, 16, 2, bytes(2 * 13)), ("RGB",), "mode RGB, 16 bits per channel, must be RGB"),
        (png(2, 2, 16, 6, bytes(2 * 17)), ("RGBA",), "16 bits per channel"),
        (png(2, 2, 8, 0, bytes(6)), ("I;16",), "mode L, must be I;16"),
        (png(2, 2, 16, 0, bytes(10)), ("L", "P"), "must be L or P"),
        (picture("JPEG"), ("RGB",), "label cannot be read"),
        (b"GIF89a" + bytes(50), ("RGB",), "label cannot be read"),
        (b"", ("RGB",), "label cannot be read"),
    ],
)
def test_labels_of_another_kind(content, modes, reason):
    with pytest.raises(DataError, match=f"^here: .*{reason}"):
        decode_label_png(content, "here", *modes)


def test_sixteen_bits_where_eight_are_due_in_a_shard():
    deep = png(3, 2, 16, 2, bytes(2 * 19))
    with pytest.raises(DataError, match=r"label.png has 16 bits per channel, must be 8"):
        record.decode(tar_with(tar_entry(f"{KEY}.label.png", deep), leave_out=[f"{KEY}.label.png"]))
    for content in (deep, png(3, 2, 16, 0, bytes(2 * 7))):
        with pytest.raises(DataError, match="here: image has 16 bits per channel, must be 8"):
            record.store_image(content, "here")


def test_label_that_is_no_png():
    lossy = picture("JPEG")
    with pytest.raises(DataError, match=r"label.png is a JPEG, must be a PNG"):
        record.decode(tar_with(tar_entry(f"{KEY}.label.png", lossy), leave_out=[f"{KEY}.label.png"]))


@given(st.binary(max_size=80), st.integers(0, 200), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_label_or_one_error(tail, place, value):
    content = bytearray(png(5, 4, 8, 2, bytes(4 * 16)) + tail)
    content[min(place, len(content) - 1)] = value
    try:
        outcome = decode_label_png(bytes(content), "here", "RGB").shape
    except DataError as error:
        outcome = str(error).startswith("here: ")
    assert outcome


def test_wrong_magic_of_a_photograph(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"%PDF-1.7" + bytes(100))
    with pytest.raises(DataError, match="here: image cannot be read"):
        image_size(tmp_path / "a.jpg", "here")


# --- text -----------------------------------------------------------------------------------------------------------

DEEP = "[" * 200_000


def test_json_of_absurd_depth(tmp_path):
    (tmp_path / "a.json").write_text(DEEP)
    with pytest.raises(DataError, match="its JSON is nested too deeply"):
        read_json(tmp_path / "a.json", "here")
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/panoptic_val2017.json").write_text('{"images": ' + DEEP)
    with pytest.raises(DataError, match=r"coco_panoptic val: .*nested too deeply"):
        coco_panoptic.frames(tmp_path, "val")
    with pytest.raises(DataError, match=f"sample {KEY}: meta.json is not JSON"):
        record.decode(tar_with(tar_entry(f"{KEY}.meta.json", DEEP.encode()), leave_out=[f"{KEY}.meta.json"]))


def test_text_files_without_end_are_refused_by_their_size(tmp_path):
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(1 << 42)  # a hole: takes no room
    for read in (read_json, read_lines):
        with pytest.raises(DataError, match="is larger than"):
            read(tmp_path / "a.txt", "here")


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os"]
)
def test_yaml_tags_run_nothing(tmp_path, tag):
    flag = tmp_path / "flag"
    (tmp_path / "kitti_mots.yaml").write_text(f'dataset: {tag} ["touch {flag}"]\n')
    with pytest.raises(ConfigError, match=r"label contract kitti_mots.yaml: could not determine a constructor"):
        load_contract_file(tmp_path / "kitti_mots.yaml")
    (tmp_path / "run.yaml").write_text(f'run.name: {tag} ["touch {flag}"]\n')
    with pytest.raises(ConfigError, match=r"run.yaml"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match=r"run.name"):
        load_config(None, [f'run.name={tag} ["touch {flag}"]'])
    assert not flag.exists()


def test_yaml_of_absurd_depth(tmp_path):
    (tmp_path / "kitti_mots.yaml").write_text("[" * 5000)
    with pytest.raises(ConfigError, match=r"kitti_mots.yaml"):
        load_contract_file(tmp_path / "kitti_mots.yaml")
    with pytest.raises(ConfigError):
        load_config(None, ["run.name=" + "[" * 5000])


# --- index and manifest ---------------------------------------------------------------------------------------------


def hostile_split(root, row, **manifest):
    folder = root / "kitti_mots/val"
    folder.mkdir(parents=True)
    rows = [
        {
            "sequence": "0002",
            "frame": 0,
            "shard": "000000.tar",
            "offset": 0,
            "length": 512,
            "crc32": 0,
            "height": 1,
            "width": 1,
            "labelled": True,
            "seconds_since_previous": None,
            "source_video": "v",
            **row,
        }
    ]
    parquet = encode_index(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    content = {
        "format": FORMAT,
        "contract": load_contract("kitti_mots").native_hash(),
        "frames": 1,
        "shards": [{"name": "000000.tar", "size": 2048, "sha256": "0", "frames": 1}],
        "index_sha256": hashlib.sha256(parquet).hexdigest(),
        **manifest,
    }
    (folder / "index.parquet").write_bytes(parquet)
    (folder / "manifest.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("row", "manifest", "reason"),
    [
        ({"length": 10 << 30}, {}, "row 0: bytes 0 to 10737418240 of 000000.tar cannot be a frame"),
        ({"length": 0}, {}, "row 0: bytes 0 to 0"),
        ({"offset": -512}, {}, "row 0: bytes -512 to 0"),
        ({"offset": 1792}, {}, "row 0: bytes 1792 to 2304"),
        *(
            ({"sequence": name}, {}, "names the sequence ")
            for name in ("../../etc", "/etc/cron.d", "a/../../b", "a//b", "a/", ".", "", "a\0b", "a\nb", None)
        ),
        ({"shard": "../../other.tar"}, {}, "names the unknown shard '../../other.tar'"),
        ({"shard": "../x.tar"}, {"shards": [{"name": "../x.tar", "size": 2048}]}, "names the unknown shard '../x.tar'"),
        ({}, {"frames": 2}, "index.parquet has 1 rows, the manifest says 2"),
        ({}, {"shards": 3}, "malformed"),
        ({}, {"shards": [{"name": "000000.tar", "size": "x"}]}, "malformed"),
    ],
)
def test_hostile_index(tmp_path, row, manifest, reason):
    hostile_split(tmp_path, row, **manifest)
    with pytest.raises(DataError, match=f"^kitti_mots/val: .*{reason}"):
        read_split(tmp_path, "kitti_mots", "val")


@pytest.mark.parametrize("content", ["[]", "3", "null", DEEP, "{", '{"format": []}'])
def test_hostile_manifest(tmp_path, content):
    hostile_split(tmp_path, {})
    (tmp_path / "kitti_mots/val/manifest.json").write_text(content)
    with pytest.raises(PostError, match=r"^kitti_mots/val: "):
        read_split(tmp_path, "kitti_mots", "val")
