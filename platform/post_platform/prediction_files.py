"""What a prediction leaves on disk, written as it comes: panoptic PNGs, tracks as MOTS text and COCO-VID JSON.

Whatever the moment of a kill, each JSON can be parsed and each text ends with a whole frame.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappush, heapreplace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from post_platform.datasets.masks import encode_mask
from post_platform.shards.pixels import encode_label

Ids = TypeVar("Ids", int, np.ndarray)
LONGEST = 10  # tracks that a summary names
MOST_IDS = 65_534  # of one class in the panoptic PNGs; further tracks begin again at 1
RETIRED = 64  # frames after which no tracker finds a track again


@dataclass(frozen=True)
class Category:
    """A class of the results, by its id in every file."""

    id: int
    name: str
    thing: bool


@dataclass(frozen=True)
class Segment:
    """A segment of one frame: its place in the map, its category, its track (0: stuff), score and box (y0, x0, y1, x1).

    `area` in pixels; box and score of objects only.
    """

    place: int
    category: Category
    track: int
    area: int
    score: float | None
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class FrameSegments:
    """All segments of a frame of a video. Shape: `places` (H, W), the value of `Segment.place`, 0 = void."""

    sequence: str
    number: int
    file: str
    seconds: float
    places: np.ndarray
    segments: Sequence[Segment]

    def mask(self, segment: Segment) -> np.ndarray:
        """The pixels of one segment."""
        found: np.ndarray = self.places == segment.place
        return found


def shown_id(track: Ids) -> Ids:
    """The track's number where there is room for 16 bits: its own up to `MOST_IDS`, then from 1 again."""
    return ((track - 1) % MOST_IDS + 1) * (track > 0)


class GrowingJson:
    """A JSON object with one list that grows; on disk it can be parsed at any moment."""

    def __init__(self, path: Path, name: str, head: Mapping[str, Any]) -> None:
        """Begin the file with the entries of `head`, then the list called `name`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._empty = open(path, "w+", encoding="utf-8"), True  # noqa: SIM115 - until `close`
        self._file.write("{" + "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items()))
        self._file.write(f"{json.dumps(name)}: [")
        self.add([])

    def add(self, entries: Iterable[Any]) -> None:
        """Append to the list."""
        for entry in entries:
            self._file.write(("\n" if self._empty else ",\n") + json.dumps(entry, separators=(",", ":")))
            self._empty = False
        place = self._file.tell()
        self._file.write("\n]}\n")
        self._file.flush()
        self._file.seek(place)

    def close(self, name: str = "", lines: Iterable[str] = (), **tail: Any) -> None:
        """End the object, with a further list, given as the JSON of its entries, and the entries of `tail`."""
        self._file.write("\n]")
        if name:
            self._file.write(f",\n{json.dumps(name)}: [")
            for place, line in enumerate(lines):
                self._file.write(("," if place else "") + "\n" + line.rstrip("\n"))
            self._file.write("\n]")
        for key, value in tail.items():
            self._file.write(f",\n{json.dumps(key)}: {json.dumps(value)}")
        self._file.write("}\n")
        self._file.truncate()
        self._file.close()


class PanopticFiles:
    """`panoptic/000000.png`, R + 256 G + 65536 B = segment id, and `panoptic.json`, which says what each one is.

    An id is (category + 1) * 65536 + track, so that an object keeps it; 0 is void. The format is COCO's.
    """

    def __init__(self, folder: Path, categories: Sequence[Category], several: bool) -> None:
        """Begin in an empty folder; of several videos, each gets a folder of its own."""
        self.folder, self.several = folder / "panoptic", several
        listed = [{"id": c.id, "name": c.name, "isthing": int(c.thing)} for c in categories]
        self.json = GrowingJson(folder / "panoptic.json", "annotations", {"categories": listed})

    def write(self, frame: FrameSegments) -> None:
        """Write the PNG of a frame, then its entry."""
        stem = f"{frame.sequence}/{frame.number:06d}" if self.several else f"{frame.number:06d}"
        ids = np.zeros(max((s.place for s in frame.segments), default=0) + 1, np.int32)
        infos = []
        for segment in frame.segments:
            ids[segment.place] = (segment.category.id + 1 << 16) + shown_id(segment.track)
            info: dict[str, Any] = {
                "id": int(ids[segment.place]), "category_id": segment.category.id, "area": segment.area,
                "isthing": int(segment.category.thing), "iscrowd": 0,
            }  # fmt: skip
            if segment.box is not None:
                info |= {"bbox": bbox(segment.box), "track": segment.track, "score": segment.score}
            infos.append(info)
        rgb = ids[np.where(frame.places < len(ids), frame.places, 0)].astype("<i4")[..., None].view(np.uint8)[..., :3]
        path = self.folder / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_label(np.ascontiguousarray(rgb)))
        self.json.add([{"image_id": stem, "file_name": f"{stem}.png", "source": frame.file, "segments_info": infos}])

    def close(self) -> None:
        """End the JSON."""
        self.json.close()


def bbox(box: tuple[int, int, int, int]) -> list[int]:
    """COCO's form of a box: (y0, x0, y1, x1) -> [x, y, width, height]."""
    y0, x0, y1, x1 = box
    return [x0, y0, x1 - x0, y1 - y0]


class TrackFiles:
    """`tracks.txt`, of several videos `tracks/<video>.txt`: MOTS lines; and `tracks.json`, COCO-VID.

    A line is `frame id class height width rle`. The JSON has an annotation per object and frame, with `instance_id`
    for its track, so that it can be written as it comes; a list of tracks with a place for every frame could not.
    """

    def __init__(self, folder: Path, categories: Sequence[Category], several: bool) -> None:
        """Begin in an empty folder."""
        self.folder, self.several = folder, several
        listed = [{"id": c.id, "name": c.name} for c in categories if c.thing]
        self.json = GrowingJson(folder / "tracks.json", "annotations", {"categories": listed})
        self._images = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - they go behind the annotations
        self.videos: list[dict[str, Any]] = []
        self._text: Any = None
        self._given = self._seen = 0

    def write(self, frame: FrameSegments) -> None:
        """Append what is in a frame."""
        height, width = frame.places.shape
        if not self.videos or self.videos[-1]["name"] != frame.sequence:
            self._begin(frame.sequence, height, width)
        video = self.videos[-1]
        video["length"] += 1
        self._seen += 1
        image = {
            "id": self._seen, "video_id": video["id"], "frame_id": frame.number, "file_name": frame.file,
            "seconds": round(frame.seconds, 6), "height": height, "width": width,
        }  # fmt: skip
        lines, entries = [], []
        for segment in (s for s in frame.segments if s.track):
            rle = encode_mask(frame.mask(segment))
            lines.append(f"{frame.number} {segment.track} {segment.category.id} {height} {width} {rle}\n")
            assert segment.box is not None
            self._given += 1
            entries.append({
                "id": self._given, "image_id": self._seen, "video_id": video["id"], "instance_id": segment.track,
                "category_id": segment.category.id, "score": segment.score, "area": segment.area, "iscrowd": 0,
                "bbox": bbox(segment.box), "segmentation": {"size": [height, width], "counts": rle},
            })  # fmt: skip
        self._text.write("".join(lines))
        self._text.flush()
        self._images.write(json.dumps(image, separators=(",", ":")) + "\n")
        self.json.add(entries)

    def close(self) -> None:
        """End the files."""
        self._images.seek(0)
        self.json.close("images", self._images, videos=self.videos)
        self._images.close()
        if self._text is not None:
            self._text.close()

    def _begin(self, sequence: str, height: int, width: int) -> None:
        if self._text is not None:
            self._text.close()
        path = self.folder / "tracks" / f"{sequence}.txt" if self.several else self.folder / "tracks.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._text = open(path, "w", encoding="utf-8")  # noqa: SIM115 - until the video ends
        number = len(self.videos) + 1
        self.videos.append({"id": number, "name": sequence, "height": height, "width": width, "length": 0})


class TrackCount:
    """Counts tracks by class and keeps the longest, in memory that does not grow with the video."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.tracks: Counter[str] = Counter()
        self._live: dict[tuple[str, int], list[Any]] = {}  # class, frames, first number, last number, last turn
        self._longest: list[tuple[int, int, dict[str, Any]]] = []
        self._turn = self._retired = 0

    def add(self, frame: FrameSegments) -> None:
        """Take note of a frame's tracks."""
        self._turn += 1
        for segment in frame.segments:
            if segment.track:
                key = (frame.sequence, segment.track)
                if key not in self._live:
                    self.tracks[segment.category.name] += 1
                    self._live[key] = [segment.category.name, 0, frame.number, 0, 0]
                found = self._live[key]
                found[1], found[3], found[4] = found[1] + 1, frame.number, self._turn
        if self._turn % RETIRED == 0:
            self._retire(self._turn - RETIRED)

    def longest(self) -> list[dict[str, Any]]:
        """The tracks that were seen in most frames, the longest first."""
        self._retire(self._turn)
        return [found for _, _, found in sorted(self._longest, key=lambda entry: (-entry[0], -entry[1]))]

    def _retire(self, last: int) -> None:
        for (sequence, track), (name, frames, start, stop, turn) in list(self._live.items()):
            if turn <= last:
                del self._live[sequence, track]
                entry = {"video": sequence, "track": track, "class": name, "frames": frames, "first": start,
                         "last": stop}  # fmt: skip
                self._retired += 1
                item = (frames, -self._retired, entry)
                if len(self._longest) < LONGEST:
                    heappush(self._longest, item)
                elif item > self._longest[0]:
                    heapreplace(self._longest, item)
