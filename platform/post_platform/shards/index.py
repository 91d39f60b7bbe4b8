"""What lies in a converted split: one index row per frame, and the manifest without which the split does not exist."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from post_platform import storage
from post_platform.errors import ConfigError, DataError, nearest
from post_platform.labels import available, load_contract

FORMAT = "post-shards/1"
MAX_SLICE_BYTES = 1 << 29  # of one frame
INDEX_SCHEMA = pa.schema(
    [
        ("sequence", pa.string()),
        ("frame", pa.int32()),
        ("shard", pa.string()),
        ("offset", pa.int64()),  # of the first member's header
        ("length", pa.int64()),  # whole blocks, padding included
        ("crc32", pa.uint32()),  # of the slice
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("labelled", pa.bool_()),
        ("seconds_since_previous", pa.float64()),  # null for the first frame of a sequence
        ("source_video", pa.string()),
    ]
)


@dataclass(frozen=True)
class Split:
    """A converted split: where it lies, its index in storage order, its manifest."""

    dataset: str
    split: str
    folder: str
    index: pa.Table
    manifest: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, but for the folder that it was converted from."""
        facts = {name: value for name, value in self.manifest.items() if name != "source"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def convert_command(dataset: str, split: str, root: storage.Location, source: str = "") -> str:
    """The command that writes this split again."""
    known = shlex.quote(source) if source else "<folder>"
    where = shlex.quote(str(root))
    return f"write it again: python pipelines/convert.py {dataset} --source {known} --out {where} --split {split}"


def encode_index(index: pa.Table) -> bytes:
    """The index as Parquet; the same table gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(index, buffer, compression="zstd")
    return buffer.getvalue()


def read_split(root: storage.Location, dataset: str, split: str) -> Split:
    """A converted split, its index verified against the manifest, its manifest against the label contract.

    Raises: DataError when there is none, it was only half written, or it belongs to another contract or format.
    """
    folder = storage.join(storage.absolute(root), dataset, split)
    where = f"{dataset}/{split}"
    again = convert_command(dataset, split, root)
    contract = load_contract(dataset)
    if not storage.exists(storage.join(folder, "manifest.json")):
        others = ", ".join(converted(root).get(dataset, [])) or "no split"
        raise DataError(f"{where}: not converted under {root}; converted: {others}", hint=again)
    try:
        manifest = json.loads(storage.read_bytes(storage.join(folder, "manifest.json")))
        if not isinstance(manifest, dict):
            raise DataError(f"{where}: manifest.json is not a JSON object", hint=again)
        if manifest["format"] != FORMAT:
            raise DataError(f"{where}: format is {manifest['format']!r}, this version reads {FORMAT!r}", hint=again)
        if manifest["contract"] != contract.native_hash():
            raise DataError(
                f"{where}: was written with other native classes than labels/{dataset}.yaml has", hint=again
            )
        parquet = storage.read_bytes(storage.join(folder, "index.parquet"))
        if hashlib.sha256(parquet).hexdigest() != manifest["index_sha256"]:
            raise DataError(f"{where}: index.parquet is damaged: its SHA-256 is not the manifest's", hint=again)
        file = pq.ParquetFile(io.BytesIO(parquet))
        if file.metadata.num_rows != manifest["frames"]:  # before a small file may become a large table
            raise DataError(
                f"{where}: index.parquet has {file.metadata.num_rows} rows, the manifest says {manifest['frames']}",
                hint=again,
            )
        found = Split(dataset, split, folder, file.read().cast(INDEX_SCHEMA), manifest)
        _require_possible_sequences(found, again)
        _require_possible_ranges(found, again)
    except (KeyError, TypeError, ValueError, RecursionError, OSError, pa.ArrowException) as error:
        raise DataError(f"{where}: manifest.json or index.parquet is malformed: {error!r}", hint=again) from error
    return found


def _require_possible_sequences(found: Split, again: str) -> None:
    """Raises: DataError for a sequence whose name, as a path, would lead out of the folder that results go to."""
    for name in pc.unique(found.index["sequence"]).to_pylist():
        if not name or not name.isprintable() or {"", ".", ".."} & set(name.split("/")):
            raise DataError(f"{found.dataset}/{found.split}: index.parquet names the sequence {name!a}", hint=again)


def _require_possible_ranges(found: Split, again: str) -> None:
    """Raises: DataError for a row whose range is negative, no slice, or of a file outside the split."""
    shards = {str(shard["name"]): int(shard["size"]) for shard in found.manifest["shards"]}
    names = found.index["shard"].combine_chunks().dictionary_encode()
    foreign = [name for name in names.dictionary.to_pylist() if name not in shards or "/" in name]
    if foreign:
        raise DataError(f"{found.dataset}/{found.split}: index.parquet names the unknown shard {foreign[0]!r}", again)
    sizes = np.array([shards[name] for name in names.dictionary.to_pylist()], np.int64)
    offset, length = (found.index[name].to_numpy() for name in ("offset", "length"))
    ends = sizes[names.indices.to_numpy()] if len(sizes) else offset
    wrong = np.flatnonzero((offset < 0) | (length < 1) | (length > MAX_SLICE_BYTES) | (offset > ends - length))
    if wrong.size:
        row = int(wrong[0])
        raise DataError(
            f"{found.dataset}/{found.split}: index.parquet, row {row}: bytes {offset[row]} to "
            f"{offset[row] + length[row]} of {found.index['shard'][row].as_py()} cannot be a frame",
            hint=again,
        )


def converted(root: storage.Location) -> dict[str, list[str]]:
    """Dataset -> its converted splits under a root, both sorted; half-written splits do not count.

    Raises: DataError when there is no converted split at all.
    """
    found: dict[str, list[str]] = {}
    for dataset in storage.list_names(root):
        if dataset not in available():
            continue
        folder = storage.join(root, dataset)
        splits = [s for s in storage.list_names(folder) if storage.exists(storage.join(folder, s, "manifest.json"))]
        if splits:
            found[dataset] = splits
    if not found:
        command = f"python pipelines/convert.py DATASET --source <folder> --out {shlex.quote(str(root))}"
        raise DataError(f"no converted dataset under {root}", hint=f"{command}; or see it work first: make quickstart")
    return found


def locate(path: str, split: str | None = None) -> tuple[str, str, list[str]]:
    """Take `ROOT/DATASET` or `ROOT/DATASET/SPLIT` apart: root, dataset, the converted splits meant.

    Raises: ConfigError when no dataset is named there, DataError when the split is not converted.
    """
    parts = storage.absolute(path).rsplit("/", 2)
    known = available()
    if parts[-1] not in known and len(parts) == 3 and parts[-2] in known:
        root, dataset, split = parts[0], parts[1], split or parts[2]
    else:
        root, dataset = "/".join(parts[:-1]), parts[-1]
    if dataset not in known:
        raise ConfigError(f"{path} does not end in a dataset's name{nearest(dataset, known)}")
    splits = converted(root).get(dataset, [])
    if not splits or (split is not None and split not in splits):
        wanted = f"{dataset}/{split}" if split else dataset
        raise DataError(
            f"{wanted}: not converted under {root}; converted: {', '.join(splits) or 'no split'}",
            hint=convert_command(dataset, split or "train", root),
        )
    return root, dataset, [split] if split else splits
