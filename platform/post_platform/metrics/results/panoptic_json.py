"""The panoptic format that several datasets share: a JSON of segments, and PNGs of R + 256*G + 65536*B = segment id.

No dataset is named here: each has a file of its own, which says where JSON and PNGs lie and what images are called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from post_platform.datasets import zips
from post_platform.datasets.files import decode_label_png, is_junk
from post_platform.datasets.frame import Label
from post_platform.errors import DataError
from post_platform.labels import UNIDENTIFIED, VOID, Contract, legal_classes, thing_table
from post_platform.metrics.contingency import OVERLOOKED_CROWD
from post_platform.metrics.results.pair import (
    FramePair,
    ResultFrame,
    Results,
    choose,
    require_plain,
    require_size,
)
from post_platform.metrics.saved import SavedClass, SavedContract
from post_platform.metrics.score import ScoredContract
from post_platform.runs import distinct

T = TypeVar("T")
Segment = tuple[int, int, int]  # id, category, what stands for it if it is crowd (else 0)
Maps = tuple[np.ndarray, np.ndarray]  # classes and instances
Listed = dict[str, dict[int, T]]  # sequence -> frame -> what is known of it
Decoder = Callable[[Iterable[T]], Callable[[T], Maps]]  # all frames of a sequence -> what decodes one of them
NO_RESULT = "score fewer with `--sequences NAME ...`"


@dataclass(frozen=True)
class Annotation:
    """The PNG of one image and the segments that the JSON lists for it."""

    png: Path
    segments: tuple[Segment, ...]


def locate(path: Path) -> tuple[Path, Path]:
    """JSON and folder of PNGs. `path` is either of them, of one name, or a folder that holds one JSON and the PNGs.

    The PNGs of a JSON lie in the folder of its name; or, if it is in `annotations`, beside that folder, as the tools
    that train on COCO want it; or in a zip beside the JSON, as COCO is downloaded; or right beside the JSON.
    """
    beside = path.with_name(f"{path.name}.json")
    if path.suffix != ".json" and path.is_dir() and not beside.is_file():
        inside = [file for file in sorted(path.glob("*.json")) if not is_junk(file.name)]
        inside = [file for file in inside if file.with_suffix("").is_dir()] or inside
        path = inside[0] if len(inside) == 1 else path
    if path.suffix != ".json":
        return beside, path
    own, above, zipped = path.with_suffix(""), path.parent.parent / path.stem, path.with_suffix(".zip")
    places = [place for place in (own, above) if place.is_dir()] + [zipped] * zipped.is_file()
    places += [path.parent] * any(path.parent.glob("*.png"))
    return path, places[0] if places else own


def submission(path: Path) -> Path | None:
    """The folder of `pred.json` and `pan_pred` that is meant by itself or by its JSON; None for any other JSON."""
    file, pngs = locate(path)
    if file.name == "pred.json":
        return file.parent if (file.parent / "pan_pred").is_dir() or not pngs.is_dir() else None
    return None if path.suffix == ".json" or file.is_file() else path


def load(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises: DataError naming it when there is none."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{file}: is not JSON ({error})") from error
    except RecursionError as error:
        raise DataError(f"{file}: is not JSON of annotations (nested too deeply)") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: is not a JSON object")
    return content


def listed_classes(file: Path) -> tuple[SavedClass, ...] | None:
    """The categories in a truth's JSON; None where it lists none.

    Raises: DataError when they are malformed, or two have one id.
    """
    entries = load(file).get("categories")
    if not entries:
        return None
    try:
        listed = [SavedClass(int(entry["id"]), str(entry["name"]), bool(entry["isthing"])) for entry in entries]
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(f"{file}: malformed categories ({error!r})") from error
    ids = [entry.id for entry in listed]
    if len(set(ids)) < len(ids) or not all(0 <= number < VOID for number in ids):
        raise DataError(f"{file}: category ids must be different and in 0..{VOID - 1}")
    return tuple(listed)


def contract_of(contract: Contract, file: Path) -> ScoredContract:
    """The dataset's contract, unless the truth's JSON lists other classes, which are then scored as official tools do.

    Names are the contract's where ids and thing flags agree.
    """
    listed = listed_classes(file)
    known = {entry.id: entry.has_instances for entry in contract.classes}
    if listed is None or {entry.id: entry.has_instances for entry in listed} == known:
        return contract
    return SavedContract(
        listed, contract.dataset, None, contract.persistent, contract.video, headline=contract.headline
    )


def read_annotations(
    file: Path, entries: Any, folder: Path, categories: Collection[int], named_by_id: bool = False
) -> dict[str, Annotation]:
    """Image id (as text) -> its annotation, out of the list in `file`; PNGs lie in `folder`.

    A PNG has the name that the list gives, or under `named_by_id` that of the image.

    Raises: DataError naming file and image: an id twice, an unknown category, a name that leaves the folder.
    """
    found: dict[str, Annotation] = {}
    try:
        for entry in entries:
            image = str(entry["image_id"])
            name = f"{image}.png" if named_by_id else str(entry["file_name"])
            listed = entry["segments_info"]
            segments = _segments([(int(s["id"]), int(s["category_id"]), bool(s.get("iscrowd", 0))) for s in listed])
            if image in found:
                raise DataError(f"{file}: image {image} is annotated twice")
            require_plain(name, f"{file}, image {image}")
            ids = [segment for segment, _, _ in segments]
            for segment in ids:
                if not 0 < segment < 1 << 24 or ids.count(segment) > 1:
                    problem = "is listed twice" if ids.count(segment) > 1 else "must be in 1..16777215"
                    raise DataError(f"{file}, image {image}: segment {segment} {problem}")
            for segment, category, _ in segments:
                if category not in categories:
                    known = f"known are {min(categories)}..{max(categories)}"
                    raise DataError(
                        f"{file}, image {image}: segment {segment} has unknown category {category}; {known}"
                    )
            found[image] = Annotation(folder / name, segments)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(f"{file}: malformed annotations ({error!r})") from error
    return found


def _segments(listed: list[tuple[int, int, bool]]) -> tuple[Segment, ...]:
    """Segments by ascending id; of several crowd segments of a class, panopticapi sees the last of the list alone."""
    last = {category: number for number, category, crowd in listed if crowd}
    return tuple(
        (number, category, (UNIDENTIFIED if last[category] == number else OVERLOOKED_CROWD) if crowd else 0)
        for number, category, crowd in sorted(listed)
    )


def with_image_ids(file: Path, entries: Any, folder: Path) -> Any:
    """The entries of a list; where none has an image id, they belong to the PNGs of `folder`, in the order of names.

    The official tools write such lists, and never look at an id.

    Raises: DataError when there are more or fewer PNGs than entries.
    """
    if not isinstance(entries, list) or any(not isinstance(entry, dict) or "image_id" in entry for entry in entries):
        return entries
    names = sorted(path.stem for path in folder.glob("*.png") if not is_junk(path.name))
    if len(names) != len(entries):
        raise DataError(f"{file}: lists {len(entries)} images without image_id, {folder} has {len(names)} PNGs")
    return [{"file_name": f"{name}.png", **entry, "image_id": name} for name, entry in zip(names, entries, strict=True)]


def by_sequence(file: Path, found: Mapping[str, Annotation], name: re.Pattern[str]) -> Listed[Annotation]:
    """Annotations by sequence and frame, which are the two groups of the pattern that image ids must match.

    Raises: DataError naming the image whose id does not, or two of one frame.
    """
    listed: Listed[Annotation] = {}
    for image, annotation in found.items():
        match = name.fullmatch(image)
        if match is None:
            raise DataError(f"{file}: image id {image!r} does not tell sequence and frame")
        if listed.setdefault(match[1], {}).setdefault(int(match[2]), annotation) is not annotation:
            raise DataError(f"{file}: {match[1]}/{int(match[2]):06d} is annotated twice")
    return listed


def results(
    contract: ScoredContract,
    truth: Listed[T],
    decoder: Decoder[T],
    found: Listed[Annotation],
    sequences: Iterable[str] | None,
    predictions: Path,
) -> Results:
    """Pairs of the true frames with their predictions.

    Raises: DataError when a frame has no truth or no prediction, or JSON and PNG of an image disagree on its segments.
    """
    names = choose(list(truth), list(found), None if sequences is None else list(sequences), predictions)
    for name in names:
        lacking, unasked = sorted(truth[name].keys() - found[name]), sorted(found[name].keys() - truth[name])
        if lacking:
            raise DataError(
                f"{predictions}: no result for {name}/{lacking[0]:06d} ({len(lacking)} such frames)", hint=NO_RESULT
            )
        if unasked:
            raise DataError(f"{predictions}: {name}/{unasked[0]:06d} has no truth ({len(unasked)} such frames)")
    counts = {name: len(truth[name]) for name in names}
    return Results(contract, counts, lambda chosen: _pairs(chosen, truth, decoder, found))


def _pairs(
    names: Iterable[str], truth: Listed[T], decoder: Decoder[T], found: Listed[Annotation]
) -> Iterator[FramePair]:
    for name in names:
        true_maps, pred_maps = decoder(truth[name].values()), numbered(found[name].values())
        for frame, true in sorted(truth[name].items(), key=lambda item: item[0]):
            classes, instances = true_maps(true)
            pred_classes, pred_tracks = pred_maps(found[name][frame])
            where = str(found[name][frame].png)
            require_size(pred_classes.shape, classes.shape, where)
            yield FramePair(name, frame, classes, instances, pred_classes, pred_tracks, where=where)


def labels(decode: Callable[[T], Label]) -> Decoder[T]:
    """What decodes frames whose truth is a label in the dataset's own format."""

    def maps(item: T) -> Maps:
        label = decode(item)
        return label.classes, label.instances

    return lambda frames: maps


def numbered(frames: Iterable[Annotation]) -> Callable[[Annotation], Maps]:
    """What decodes the images of a sequence: classes, and segments numbered from 1 by ascending id, or crowd.

    A number means one id in all of them. Stuff is numbered too, so that no two segments are merged.

    Raises: DataError, also later when decoding, for more ids than there are numbers, or when JSON and PNG disagree.
    """
    listed = list(frames)
    ids = np.unique([segment for annotation in listed for segment, _, _ in annotation.segments]).astype(np.int64)
    if len(ids) >= UNIDENTIFIED:
        raise DataError(f"{listed[0].png}: {len(ids)} segment ids in its sequence, must be fewer than {UNIDENTIFIED}")
    return lambda annotation: _maps(annotation, ids)


def _maps(annotation: Annotation, ids: np.ndarray) -> Maps:
    png, segments = annotation.png, annotation.segments
    rgb = decode_label_png(_content(png), str(png), "RGB").astype(np.int32)
    values = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    own = np.array([segment for segment, _, _ in segments], np.int64)
    table = np.zeros(1 << 24, np.uint16)  # a table over all ids is mapped lazily: cheaper than sorting pixels
    table[own] = np.arange(1, len(own) + 1)
    place = table[values]
    foreign = values[(place == 0) & (values != 0)]
    if foreign.size:
        raise DataError(f"{png}: segment {foreign[0]} is not in the JSON")
    drawn = np.bincount(place.reshape(-1), minlength=len(own) + 1)[1:] > 0
    if not drawn.all():
        raise DataError(f"{png}: has no pixel of segment {own[drawn.argmin()]}, which the JSON lists")
    classes = np.array([VOID, *(category for _, category, _ in segments)], np.uint8)
    crowd = np.array([0, *(crowd for _, _, crowd in segments)])
    numbers = np.concatenate([[0], np.searchsorted(ids, own) + 1])
    return classes[place], np.where(crowd, crowd, numbers).astype(np.int32)[place]


def _content(png: Path) -> Path | bytes:
    """A PNG file as it is; of one in a zip, its bytes."""
    if png.parent.suffix != ".zip":
        return png
    listed = zips.members(png.parent)
    if png.name not in listed:
        raise DataError(f"{png.parent}: has no {png.name}")
    return zips.read_member(png.parent, listed[png.name], str(png.parent))


def write_images(
    frames: Iterable[ResultFrame],
    file: Path,
    folder: Path,
    contract: Contract,
    name: Callable[[ResultFrame], tuple[int | str, str]],
) -> None:
    """Write one list of images, in the order of their names, to `file`, and PNGs to `folder`.

    `name` says the image id and the name of the PNG, without `.png`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed: dict[str, dict[str, Any]] = {}
    for frame in frames:
        image, stem = name(frame)
        listed[stem] = write_image(frame, image, folder, stem, contract)
    save(file, [listed[stem] for stem in sorted(listed)])


def write_image(frame: ResultFrame, image: int | str, folder: Path, stem: str, contract: Contract) -> dict[str, Any]:
    """Write the PNG of one frame; returns its entry in the JSON.

    Segment id = (class + 1) * 65536 + track, so an object keeps its id through a video. Void is 0. Pixels of a thing
    without identity are one segment of their class, of which the scores that know crowd take no notice.

    Raises: DataError naming the frame for a class or track that has no id, or a name that leaves the folder.
    """
    where = f"{contract.dataset} {frame.sequence}/{frame.frame:06d}"
    require_plain(f"{stem}.png", where)
    classes = frame.classes.astype(np.int32)
    tracks = np.where(thing_table(contract)[classes], frame.tracks, 0).astype(np.int64)
    if tracks.size and not 0 <= tracks.min() <= tracks.max() <= UNIDENTIFIED:
        raise DataError(f"{where}: track {tracks.max()}, must be 0..{UNIDENTIFIED}")
    values = np.where(classes == VOID, 0, (classes + 1 << 16) | tracks)
    segments = [{"id": value, "category_id": (value >> 16) - 1} for value in distinct(values).tolist() if value]
    legal = legal_classes(contract)
    for segment in segments:
        if not legal[segment["category_id"]]:
            raise DataError(f"{where}: class {segment['category_id']} is not in the contract of {contract.dataset}")
    rgb = np.stack([values & 255, values >> 8 & 255, values >> 16], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(folder / f"{stem}.png")
    return {"image_id": image, "file_name": f"{stem}.png", "segments_info": segments}


def save(file: Path, entries: list[dict[str, Any]]) -> None:
    """Write the JSON of results."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"annotations": entries}))
