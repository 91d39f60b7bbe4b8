"""A video file in, frame by frame, and an H.264 video out; the only importer of PyAV (FFmpeg).

Files are not trusted: no playlist is followed, nothing but the named file is opened, and sizes are capped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from post_platform.datasets.files import MAX_PIXELS
from post_platform.errors import DataError

logger = logging.getLogger(__name__)
Size = tuple[int, int]
"""(height, width)."""

CONTAINERS = (  # no playlists, which name other files, and none of the text formats that FFmpeg draws as pictures
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,h264,hevc,ivf,mjpeg,m4v,mxf"
)
UNKNOWN_FPS = 25.0
UNSPECIFIED = 2  # what FFmpeg says of colours that a video does not describe
HD_HEIGHT = 720  # from here on those are BT.709, below BT.601
TICKS = 90_000  # per second, of the video that is written: every usual frame rate, to within a microsecond
KEYFRAME_SECONDS = 2


class InputFrame(NamedTuple):
    """A frame to look at.

    Attributes:
        sequence: name of its video.
        number: its place in that video, from 0, also where frames are left out; of a split, its own frame number.
        image: (H, W, 3) uint8 RGB, upright, of square pixels.
        seconds: when it is shown, from the start of all that is read; later than the frame before.
        file: name of the image file, or "".
        first: True where nothing before it belongs to the same video.
        meta: of a split, the frame's meta.json.
    """

    sequence: str
    number: int
    image: np.ndarray
    seconds: float
    file: str = ""
    first: bool = False
    meta: dict[str, Any] | None = None


class VideoFile:
    """A video file, of which every `every`-th frame is read, once.

    Attributes:
        fps: frames per second of the file, on average.
        count: how many frames will be read, None where that cannot be known before.
    """

    def __init__(self, path: Path, every: int = 1, size: Size | None = None) -> None:
        """Open a file; `size` is what frames are brought to.

        Raises: DataError naming the file that is no video.
        """
        self.path, self.every, self.size = path, every, size
        self.container = _opened(path)
        self.stream = self.container.streams.video[0]
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.fps = float(rate) if rate else UNKNOWN_FPS
        length = self.container.duration / av.time_base if self.container.duration else 0.0
        self._listed = self.stream.frames  # asked now: once the container is closed, its streams are gone
        frames = self._listed or round(length * self.fps)
        self.count = -(-frames // every) or None
        self._damage: list[str] = []

    def frames(self) -> Iterator[InputFrame]:
        """The frames; damaged places are skipped, and a warning says so when all is read.

        Raises: DataError naming the file of which no frame can be decoded, or whose frames change in size.
        """
        number, start, last, shape = -1, None, -1.0, None
        with self.container:
            for number, frame in enumerate(self._decoded()):
                if number % self.every:
                    continue
                image = resized(_pixels(frame, self.stream), self.size)
                shape = shape or image.shape
                if image.shape != shape:
                    before, now = f"{shape[0]}x{shape[1]}", f"{image.shape[0]}x{image.shape[1]}"
                    raise DataError(
                        f"{self.path}: frame {number} is {now}, those before are {before}",
                        f"bring all to one size: --size {before}",
                    )
                time = number / self.fps if frame.time is None else float(frame.time)
                start = time if start is None else start
                last = max(time - start, last + 1 / TICKS)
                yield InputFrame(self.path.stem, number, image, last, first=number == 0)
        self._judge(number + 1)

    def _decoded(self) -> Iterator[VideoFrame]:
        packets = self.container.demux(self.stream)
        while True:
            packet = None
            try:
                packet = next(packets, None)  # the last one of a whole file is empty, and flushes the decoder
                yield from self.stream.decode(packet)
            except av.EOFError:
                return  # flushed
            except (av.FFmpegError, OSError) as error:
                self._damage.append(_reason(error))
            if packet is None:
                return

    def _judge(self, read: int) -> None:
        if not read:
            why = self._damage[0] if self._damage else "it is empty"
            raise DataError(f"{self.path}: no frame of it can be decoded: {why}", REPAIR)
        damage = f"{len(self._damage)} damaged places are skipped: {self._damage[0]}" if self._damage else ""
        if read < 0.98 * self._listed - 1:
            why = damage or "cut short?"
            logger.warning("%s: %d of its %d frames can be read: %s", self.path, read, self._listed, why)
        elif damage:
            logger.warning("%s: %s", self.path, damage)


REPAIR = "play it; one that was cut short may be repaired: ffmpeg -i IN -c copy OUT.mp4"


def _opened(path: Path) -> InputContainer:
    """A container with a video stream. Raises: DataError naming the file."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        container = av.open(f"file:{path.absolute()}", options=options)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path}: not a video, or cut short: {_reason(error)}", REPAIR) from error
    if not container.streams.video:
        container.close()
        raise DataError(f"{path}: has no picture, only {len(container.streams)} other streams", REPAIR)
    stream = container.streams.video[0]
    if stream.codec_context is None:
        container.close()
        raise DataError(f"{path}: the codec of its video is unknown here", "ffmpeg -i IN -c:v libx264 OUT.mp4")
    if stream.width * stream.height > MAX_PIXELS:
        container.close()
        raise DataError(f"{path}: frames are {stream.height}x{stream.width}, more than {MAX_PIXELS} pixels")
    stream.thread_type = "AUTO"
    return container


def _pixels(frame: VideoFrame, stream: VideoStream) -> np.ndarray:
    """RGB pixels as a player shows them: square, upright, in their colours; alpha is dropped."""
    ratio = stream.sample_aspect_ratio
    width = round(frame.width * ratio) if ratio and 0.1 < ratio < 10 else frame.width
    described = frame.colorspace != UNSPECIFIED or frame.height < HD_HEIGHT or not frame.format.name.startswith("yuv")
    image: np.ndarray = frame.to_ndarray(
        format="rgb24", width=width, height=frame.height, src_colorspace=None if described else "ITU709"
    )
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def resized(image: np.ndarray, size: Size | None) -> np.ndarray:
    """The image at that size, smoothly. Shape: (H, W, 3) uint8."""
    if size is None or image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


class VideoWriter:
    """Writes an H.264 video that every player takes (yuv420p, even sides), each frame at its own time.

    While it is written it plays as far as it has come, also after a kill; closed, it is an ordinary MP4. The first
    frame decides its size; a frame of another one is fitted into it, on black. Without a frame there is no file.
    """

    def __init__(self, path: Path, fps: float) -> None:
        """Prepare to write; `fps` is for players, and the last frame's length."""
        self.path, self.fps = path, fps
        self._container: OutputContainer | None = None

    def write(self, image: np.ndarray, seconds: float) -> None:
        """Append a frame. Shape: (H, W, 3) uint8 RGB."""
        if self._container is None:
            self._container = self._open(image.shape[0] + image.shape[0] % 2, image.shape[1] + image.shape[1] % 2)
        stream = self._container.streams.video[0]
        fitted = np.ascontiguousarray(_fitted(image, stream.height, stream.width))
        frame = VideoFrame.from_ndarray(fitted, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = round(seconds * TICKS), Fraction(1, TICKS)
        frame.duration = round(TICKS / self.fps)
        self._container.mux(stream.encode(frame))

    def close(self) -> None:
        """Finish the file."""
        if self._container is not None:
            self._container.mux(self._container.streams.video[0].encode(None))
            self._container.close()
            self._container = None

    def __enter__(self) -> VideoWriter:
        """Nothing is written before the first frame."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file, whatever happened."""
        self.close()

    def _open(self, height: int, width: int) -> OutputContainer:
        options = {"movflags": "+hybrid_fragmented", "flush_packets": "1"}
        container = av.open(str(self.path), "w", format="mp4", options=options)
        rate = Fraction(self.fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, TICKS)
        context.max_b_frames = 0  # else the first frame would not be at 0
        context.gop_size = max(1, round(KEYFRAME_SECONDS * self.fps))
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1  # BT.709, limited
        return container


def _fitted(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image on a canvas: its last row or column repeated where one is missing, else scaled to fit, on black."""
    high, wide = image.shape[:2]
    if 0 <= height - high <= 1 and 0 <= width - wide <= 1:
        return np.pad(image, ((0, height - high), (0, width - wide), (0, 0)), "edge")
    scale = min(height / high, width / wide)
    inner = max(1, round(high * scale)), max(1, round(wide * scale))
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas[top : top + inner[0], left : left + inner[1]] = resized(image, inner)
    return canvas
