"""Videos and folders that people really have: turned, uneven, odd, grey, cut short; and what is no video at all."""

import contextlib
import logging
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from post_platform.errors import DataError
from post_platform.footage import natural_order, open_source
from post_platform.video import VideoFile, VideoWriter

RED, GREEN, BLUE, GREY = (200, 30, 30), (30, 160, 30), (30, 30, 200), (128, 128, 128)


def corners(height=48, width=64):
    """Four quarters of different colours: red top left, green top right, blue bottom left, grey bottom right."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = RED, GREEN
    image[height // 2 :, : width // 2], image[height // 2 :, width // 2 :] = BLUE, GREY
    return image


def write_video(
    path, images, times=None, codec="libx264", pix_fmt="yuv420p", rotation=0, ratio=None, options=None, source="rgb24"
):
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        height, width = images[0].shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        if ratio:
            stream.codec_context.sample_aspect_ratio = ratio
        if rotation:
            stream.set_display_rotation(rotation)
        for place, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format=source)
            frame.pts, frame.time_base = times[place] if times else place * 40, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def seen(path, **settings):
    return list(open_source(str(path), **settings).frames)


def assert_corners(image, tolerance=12):
    height, width = image.shape[:2]
    for y, x, color in ((0, 0, RED), (0, 1, GREEN), (1, 0, BLUE), (1, 1, GREY)):
        found = image[height // 4 + y * height // 2, width // 4 + x * width // 2]
        assert np.abs(found.astype(int) - color).max() <= tolerance, (y, x, found, color)


def test_frames_in_order_at_their_times(tmp_path):
    images = [np.full((48, 64, 3), 20 * k, np.uint8) for k in range(9)]
    path = write_video(tmp_path / "ramp.mp4", images)
    source = open_source(str(path), every=4)
    assert (source.name, source.fps, source.count) == ("ramp", 25, 3)
    frames = list(source.frames)
    assert [frame.number for frame in frames] == [0, 4, 8]
    assert [round(frame.seconds, 3) for frame in frames] == [0, 0.16, 0.32]
    assert [abs(int(frame.image.mean()) - 20 * frame.number) <= 3 for frame in frames] == [True] * 3
    assert [frame.first for frame in frames] == [True, False, False]


def test_a_variable_rate_keeps_its_times(tmp_path):
    path = write_video(tmp_path / "phone.mp4", [corners()] * 5, times=[0, 40, 400, 440, 1000])
    assert [round(frame.seconds, 3) for frame in seen(path)] == [0, 0.04, 0.4, 0.44, 1.0]


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_a_phone_s_video_is_upright(tmp_path, degrees):
    """Stored turned, with a note for the player."""
    turned = np.ascontiguousarray(np.rot90(corners(), -degrees // 90))
    (frame, _) = seen(write_video(tmp_path / "phone.mp4", [turned] * 2, rotation=degrees))
    assert frame.image.shape == (48, 64, 3)
    assert_corners(frame.image)


def test_pixels_that_are_not_square_become_so(tmp_path):
    path = write_video(tmp_path / "tv.mp4", [corners(48, 64)], ratio=Fraction(3, 2))
    assert seen(path)[0].image.shape == (48, 96, 3)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("ten_bits.mp4", "libx264", "yuv420p10le"),
        ("full.mp4", "libx264", "yuv444p"),
        ("alpha.mov", "png", "rgba"),
        ("deep.mov", "png", "rgb48be"),
        ("web.webm", "libvpx-vp9", "yuv420p"),
        ("lossless.mkv", "ffv1", "bgr0"),
    ],
)
def test_other_pixels_and_containers(tmp_path, name, codec, pix_fmt):
    assert_corners(seen(write_video(tmp_path / name, [corners()] * 2, codec=codec, pix_fmt=pix_fmt))[1].image)


def test_grey_video(tmp_path):
    path = write_video(tmp_path / "thermal.mkv", [corners()], codec="ffv1", pix_fmt="gray")
    image = seen(path)[0].image
    assert image.shape == (48, 64, 3)
    assert (image[..., 0] == image[..., 2]).all()
    assert image[40, 50, 0] == pytest.approx(128, abs=3)


def noise(frames=60):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(frames)]


def test_a_truncated_video_gives_what_it_has_and_says_so(tmp_path, caplog):
    path = write_video(tmp_path / "cut.mp4", noise(), options={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        frames = seen(path)
    assert 10 < len(frames) < 50
    assert "cut.mp4" in caplog.text
    assert "of its 60 frames can be read: " in caplog.text


def test_a_closed_file_is_not_asked_anything(tmp_path, caplog):
    """FFmpeg frees the streams with the file: what they say afterwards is luck."""
    path = write_video(tmp_path / "cut.mp4", noise(), options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    file = VideoFile(path)

    class Closing(contextlib.closing):
        def __exit__(self, *_):
            self.thing.close()
            del file.stream

        def demux(self, stream):
            return self.thing.demux(stream)

    file.container = Closing(file.container)
    with caplog.at_level(logging.WARNING):
        assert len(list(file.frames())) > 10
    assert "of its 60 frames can be read: " in caplog.text


def test_damage_in_the_middle_is_skipped_and_counted(tmp_path, caplog):
    path = write_video(tmp_path / "scratched.mp4", noise())
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        frames = seen(path)
    assert 20 <= len(frames) < 60
    assert "scratched.mp4: " in caplog.text
    assert "damaged places are skipped: Invalid data" in caplog.text


@pytest.mark.parametrize("name", ["no_index.mp4", "text.mp4", "empty.mp4", "notes.txt", "list.m3u8"])
def test_what_is_no_video_is_one_line(tmp_path, name):
    path = tmp_path / name
    if name == "no_index.mp4":
        content = write_video(path, noise()).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif name == "list.m3u8":
        write_video(tmp_path / "other.ts", noise())
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.ts\n#EXT-X-ENDLIST\n")
    else:
        path.write_bytes(b"" if name == "empty.mp4" else b"hello, this is not a video\n" * 200)
    with pytest.raises(DataError, match=rf"{name}: not a video, or cut short: .+"):
        open_source(str(path))


def test_sound_alone_is_refused(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match=r"song\.mp4: has no picture"):
        open_source(str(tmp_path / "song.mp4"))


def test_what_is_not_there_and_what_is_elsewhere(tmp_path):
    with pytest.raises(DataError, match="nothing: not found"):
        open_source(str(tmp_path / "nothing"))


def save(folder, images):
    folder.mkdir()
    for name, image in images.items():
        Image.fromarray(image).save(folder / name)
    return folder


def test_a_folder_in_natural_order(tmp_path):
    images = {f"f{k}.png": np.full((8, 10, 3), k, np.uint8) for k in (10, 9, 100, 1)}
    folder = save(tmp_path / "frames", images)
    (folder / "._f5.png").write_bytes(b"junk")
    (folder / "notes.txt").write_text("not a frame")
    source = open_source(str(folder), every=2, fps=4)
    assert (source.name, source.count, source.fps) == ("frames", 2, 4)
    frames = list(source.frames)
    assert [(f.file, f.number, f.seconds, f.image[0, 0, 0]) for f in frames] == [
        ("f1.png", 0, 0.0, 1),
        ("f10.png", 2, 0.5, 10),
    ]
    names = [folder / name for name in ("10.jpg", "9.jpg", "000.jpg")]
    assert [path.name for path in natural_order(names)] == ["000.jpg", "9.jpg", "10.jpg"]


def test_mixed_sizes_name_both_files_or_are_brought_to_one(tmp_path):
    folder = save(tmp_path / "mix", {"1.png": corners(8, 10), "2.png": corners(8, 10), "3.png": corners(9, 10)})
    with pytest.raises(DataError, match=r"1\.png is 8x10, .*3\.png is 9x10") as error:
        open_source(str(folder))
    assert "--size 8x10" in error.value.hint
    assert {frame.image.shape for frame in seen(folder, size=(16, 20))} == {(16, 20, 3)}


def png_16(values):
    """A grey PNG of 16 bits."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", *values.shape[::-1], 16, 0, 0, 0, 0)),
              (b"IDAT", zlib.compress(rows)), (b"IEND", b""))  # fmt: skip
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_images_of_every_kind(tmp_path):
    rgb = corners(8, 10)
    alpha = np.dstack([rgb, np.full((8, 10), 7, np.uint8)])
    folder = save(tmp_path / "kinds", {"1.png": rgb, "2.png": rgb[..., 0], "3.png": alpha})
    (folder / "4.png").write_bytes(png_16(np.full((8, 10), 0x4FFF)))
    Image.fromarray(rgb).quantize(8).save(folder / "5.png", transparency=0)
    turned = Image.fromarray(np.rot90(rgb, 1))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    turned.save(folder / "6.png", exif=exif)
    found = [frame.image for frame in seen(folder)]
    assert {(image.shape, image.dtype) for image in found} == {((8, 10, 3), np.dtype(np.uint8))}
    assert found[1].tolist() == np.dstack([rgb[..., 0]] * 3).tolist()
    assert (found[2] == rgb).all()
    assert (found[3] == 0x4F).all()
    assert_corners(found[4], tolerance=2)
    assert (found[5] == rgb).all()


def test_folders_that_are_no_video(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"no image in it .*folders in it: a"):
        open_source(str(tmp_path))
    folder = save(tmp_path / "twice", {"1.png": corners(), "1.jpg": corners()})
    with pytest.raises(DataError, match=r"1\.jpg and 1\.png are the same frame"):
        open_source(str(folder))
    broken = save(tmp_path / "broken", {"1.png": corners()})
    (broken / "2.png").write_bytes((broken / "1.png").read_bytes()[:90])
    source = open_source(str(broken))
    next(source.frames)
    with pytest.raises(DataError, match=r"2\.png: image cannot be read"):
        next(source.frames)


def test_a_split_is_read_sequence_by_sequence(toy_shards):
    source = open_source(str(toy_shards / "kitti_mots" / "val"))
    frames = list(source.frames)
    assert (source.name, source.dataset, len(frames)) == ("kitti_mots/val", "kitti_mots", source.count)
    starts = [place for place, frame in enumerate(frames) if frame.first]
    assert len(starts) == len({frame.sequence for frame in frames})
    assert (np.diff([frame.seconds for frame in frames]) > 0).all()
    assert open_source(str(toy_shards / "kitti_mots")).name == "kitti_mots/val"


def test_the_written_video_plays_everywhere(tmp_path):
    with VideoWriter(tmp_path / "out.mp4", 25) as video:
        for seconds in (0, 0.04, 0.5):
            video.write(corners(47, 63), seconds)
        video.write(corners(94, 63), 0.6)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert (stream.width, stream.height) == (64, 48)
    assert [round(frame.time, 3) for frame in frames] == [0, 0.04, 0.5, 0.6]
    found = [frame.image for frame in seen(tmp_path / "out.mp4")]
    assert found[3][:, :14].max() < 20, "another shape is fitted in, on black"
    path = tmp_path / "hd.mp4"
    with VideoWriter(path, 25) as video:
        video.write(corners(720, 1280), 0)
    assert_corners(seen(path)[0].image, tolerance=4)


def test_an_unfinished_video_can_be_played_as_far_as_it_has_come(tmp_path):
    video = VideoWriter(tmp_path / "live.mp4", 5)
    for place, image in enumerate(noise(80)):
        video.write(image, place / 5)
    copy = tmp_path / "killed.mp4"
    copy.write_bytes((tmp_path / "live.mp4").read_bytes())
    assert len(list(VideoFile(copy).frames())) >= 20
    video.close()
    assert len(seen(tmp_path / "live.mp4")) == 80


def test_no_frame_no_file(tmp_path):
    with VideoWriter(tmp_path / "none.mp4", 25):
        pass
    assert not (tmp_path / "none.mp4").exists()
