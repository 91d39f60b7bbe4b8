"""Frames per second of the mixture, beside webdataset, a torch DataLoader and Megatron-Energon, from the same shards.

Three datasets in equal shares, two workers each on the same two cores. A frame counts once its image (3, H, W),
classes and instances have reached the consumer as arrays; ours come as pairs, of which a frame without a predecessor
counts once. Contenders run in processes of their own, rounds are interleaved, medians are printed, and the first batch
of each run is compared, frame by frame, with a plain decoding of the same bytes.

"start" is the seconds from opening the loader to its first batch in a process that has imported everything (ours: in a
Ray Train worker), "process" those from starting the process. Megatron-Energon 7.4 lives in an environment of its own:
ENERGON_PYTHON=<its python>; without, it is left out. `benchmarks/frames.py` says where a frame's milliseconds go.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "model")]

from frames import DATASETS, before, digest, make_shards, plain_decode, require_equal, tensors

SIZES = {(256, 512): (3072, 16), (1024, 2048): (256, 4)}  # height and width: frames timed per round, frames per batch
TIMES = ("rate", "start", "process")
WARM = 8  # batches of each worker before the clock starts: more than ours has before Ray Data runs
Part = tuple[list[str], Any, Any, Any]  # keys, image, classes, instances of some frames of a batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "post-benchmark", help="cache")
    parser.add_argument("--size", help="256x512 or 1024x2048; default: both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="decoding threads of each of our workers (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--samples", type=int, help="frames of one long round, with the consumers' memory")
    parser.add_argument("--plot", type=Path, help="with --samples: the memory as a figure")
    parser.add_argument("--s3", action="store_true", help="ours alone, from moto's S3, without and with latency")
    parser.add_argument("--latency", type=float, default=20, help="of the store, in ms (%(default)s)")
    parser.add_argument("--step", type=float, default=0, help="ms of other work per batch, as a GPU's (%(default)s)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        task = json.loads(options.part)
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
        print(json.dumps({**CONTENDERS, "serve": serve}[task["name"]](task)))
        return
    sizes = [size for size in SIZES if options.size in (None, f"{size[0]}x{size[1]}")]
    for size in sizes:
        root = make_shards(options.data, size)
        if options.s3:
            from_s3(root, size, options)
        else:
            compare(root, size, options)


def compare(root: Path, size: tuple[int, int], options: argparse.Namespace) -> None:
    """Interleaved rounds of every contender, as a table."""
    energon = os.environ.get("ENERGON_PYTHON", "")
    names = [name for name in options.only if name != "energon" or energon]
    if "energon" in names:
        prepare_energon(root, energon)
    elif "energon" in options.only:
        print("energon is left out: ENERGON_PYTHON names no interpreter that has it")
    frames = options.samples or SIZES[size][0]
    rounds = 1 if options.samples else options.rounds
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            result = run(name, root, size, frames, options, memory=bool(options.samples))
            require_equal(root, size, result["digests"])
            found[name].append(result)
    print(f"\n{size[0]}x{size[1]}, {frames} frames a round, batches of {SIZES[size][1]}; medians of {rounds} rounds")
    print(f"{'':14}{'frames/s':>10}{'ours / it':>11}{'start':>9}{'process':>9}")
    medians = {name: {key: statistics.median(r[key] for r in rs) for key in TIMES} for name, rs in found.items()}
    for name, one in medians.items():
        ratio = f"{medians['ours']['rate'] / one['rate']:.2f}" if "ours" in medians else ""
        print(f"{name:14}{one['rate']:10.1f}{ratio:>11}{one['start']:8.2f}s{one['process']:8.2f}s", flush=True)
    if options.samples:
        plot_memory({name: results[0]["memory"] for name, results in found.items()}, frames, options.plot)


def run(
    name: str, root: Path | str, size: tuple[int, int], frames: int, options: argparse.Namespace, memory: bool = False
) -> dict[str, Any]:
    """One round of one contender in a process of its own."""
    python = os.environ["ENERGON_PYTHON"] if name == "energon" else sys.executable
    task = {"name": name, "root": str(root), "size": size, "frames": frames, "batch": SIZES[size][1]}
    task |= {"threads": options.threads, "memory": memory, "step": options.step / 1000, "started": time.time()}
    done = subprocess.run([python, __file__, "--part", json.dumps(task)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-4000:]}")
    consumers = json.loads(done.stdout.splitlines()[-1])
    seconds = max(one["end"] for one in consumers) - min(one["begin"] for one in consumers)
    return {
        "rate": sum(one["frames"] for one in consumers) / seconds,
        "start": max(one["first"] - one["opened"] for one in consumers),
        "process": max(one["first"] for one in consumers) - task["started"],
        "digests": {key: digest for one in consumers for key, digest in one["digests"].items()},
        "memory": [sum(values) for values in zip(*(one["memory"] for one in consumers), strict=False)],
    }


def consume(batches: Iterator[list[Part]], count: int, warm: int, opened: float, task: Any) -> dict[str, Any]:
    """Take `count` batches after `warm` ones; times are of the host's clock, which all processes share."""
    found: dict[str, Any] = {"opened": opened, "memory": []}
    frames = 0
    for number in range(warm + count):
        batch = next(batches)
        if number == 0:
            found["first"] = time.time()
            found["digests"] = {
                keys[k]: digest(image[k], classes[k], instances[k])
                for keys, image, classes, instances in batch
                for k in range(len(keys))
                if keys[k]
            }
        if number >= warm:
            frames += sum(len(keys) for keys, *_ in batch)
        if number == warm - 1:
            found["begin"] = time.time()
        time.sleep(task["step"])
        if task["memory"] and number % max(1, (warm + count) // 200) == 0:
            found["memory"].append(resident())
    return {**found, "end": time.time(), "frames": frames}


def ours(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Plan rows through Ray Data into two workers of Ray Train, as a training run reads them."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from post_platform import cluster
    from post_platform.data.augment import Augmentation
    from post_platform.data.load import ClipLoader
    from post_platform.data.plan import Plan
    from post_platform.data.stream import data_config, local_batches, stream
    from post_platform.shards.index import read_split

    plan = Plan([read_split(task["root"], name, "train") for name in DATASETS], task["batch"])
    rules = Augmentation(tuple(task["size"]), flip=False, photometric=False, still_motion=False)
    loader = ClipLoader(plan, rules, threads=task["threads"])
    decode_on: Any = "cluster" if task["name"] == "ours-cluster" else "trainer"
    count = task["frames"] // task["batch"] // 2

    def worker(settings: dict[str, Any]) -> None:
        import ray.train

        seen = []

        def parts() -> Iterator[list[Part]]:
            rank, shard = ray.train.get_context().get_world_rank(), ray.train.get_dataset_shard("train")
            for samples in local_batches(shard, loader, range(WARM + count), rank, 2):
                seen.append(samples.position)
                keys = [key.partition("/")[2] for key in samples.key]
                yield [
                    (keys, samples.image, samples.classes, samples.instances),
                    ([before(key) for key in keys], samples.prev_image, samples.prev_classes, samples.prev_instances),
                ]

        found = consume(parts(), count, WARM, time.time(), task)
        found["frames"] -= plan.rows(np.concatenate(seen[WARM:]))["prev_shard"].null_count
        Path(settings["out"], f"{ray.train.get_context().get_world_rank()}.json").write_text(json.dumps(found))

    cluster.connect()
    stored = ray.put(loader)
    with tempfile.TemporaryDirectory() as out:
        TorchTrainer(
            worker,
            train_loop_config={"out": out},
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": cluster.worker_cpus()}),
            datasets={"train": lambda: stream(stored, 0, WARM + count, 2, decode_on)},
            dataset_config=data_config(decode_on),
            run_config=RunConfig(name="benchmark", storage_path=f"{out}/ray"),
        ).fit()
        return [json.loads(file.read_text()) for file in sorted(Path(out).glob("*.json"))]


def with_webdataset(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The library's own pipeline: shards drawn with replacement, a shuffle buffer, its decoder, RandomMix."""
    import webdataset as wds

    opened = time.time()
    mixed = wds.RandomMix(
        [
            wds.WebDataset(shards(task["root"], name), resampled=True, shardshuffle=False)
            .shuffle(100)
            .decode("rgb8")
            .map(lambda members: tensors(members["__key__"], members["image.jpg"], members["label.png"]))
            for name in DATASETS
        ],
        probs=[1.0] * len(DATASETS),
    )
    return drain(wds.WebLoader(mixed, batch_size=task["batch"], num_workers=2), task, opened)


def with_torch(task: dict[str, Any]) -> list[dict[str, Any]]:
    """A map-style dataset over the index: open, seek, read, decode."""
    import pyarrow.parquet as pq
    from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

    opened = time.time()
    rows, weights = [], []
    for name in DATASETS:
        folder = Path(task["root"], name, "train")
        table = pq.read_table(folder / "index.parquet", columns=["sequence", "frame", "shard", "offset", "length"])
        rows += [(folder / row["shard"], row) for row in table.to_pylist()]
        weights += [1 / len(table)] * len(table)

    class Frames(Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, k: int) -> dict[str, Any]:
            return tensors(f"{rows[k][1]['sequence']}/{rows[k][1]['frame']:06d}", *plain_decode(*rows[k]))

    sampler = WeightedRandomSampler(weights, task["frames"] + (2 * WARM + 8) * task["batch"])
    return drain(DataLoader(Frames(), batch_size=task["batch"], sampler=sampler, num_workers=2), task, opened)


def with_energon(task: dict[str, Any]) -> list[dict[str, Any]]:
    """A blend of three crude datasets, decoded by its own decoder; without the checkpoints of its savable loader."""
    import dataclasses

    import torch
    from megatron import energon

    fields = [(name, torch.Tensor) for name in ("image", "classes", "instances")]
    sample_type = dataclasses.make_dataclass("FrameSample", fields, bases=(energon.Sample,), kw_only=True)

    @energon.stateless
    def cook(members: dict[str, Any]) -> Any:
        found = tensors(members["__key__"], members["image.jpg"], members["label.png"])
        return sample_type(**energon.basic_sample_keys(members), **{name: found[name] for name, _ in fields})

    class Encoder(energon.DefaultTaskEncoder):
        decoder = energon.SampleDecoder(image_decode="rgb8")
        cookers = (energon.Cooker(cook),)

        @energon.stateless
        def batch(self, samples: list[Any]) -> dict[str, Any]:
            stacked = {name: torch.stack([getattr(sample, name) for sample in samples]) for name, _ in fields}
            return {"key": [sample.__key__ for sample in samples], **stacked}

    opened = time.time()
    dataset = energon.get_train_dataset(
        Path(task["root"]) / "energon" / "blend.yaml", batch_size=task["batch"], shuffle_buffer_size=100,
        max_samples_per_sequence=100, task_encoder=Encoder(),
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=2),
    )  # fmt: skip
    return drain(energon.get_loader(dataset), task, opened)


CONTENDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ours": ours,
    "ours-cluster": ours,
    "webdataset": with_webdataset,
    "torch": with_torch,
    "energon": with_energon,
}


def drain(loader: Iterable[dict[str, Any]], task: dict[str, Any], opened: float) -> list[dict[str, Any]]:
    """Consume a loader of collated frames, whose two workers are its own processes."""
    batches = ([([stem(k) for k in b["key"]], b["image"], b["classes"], b["instances"])] for b in loader)
    return [consume(batches, task["frames"] // task["batch"], 2 * WARM, opened, task)]


def stem(key: str) -> str:
    """<sequence>/<frame>; Energon's keys begin with the shard."""
    return "/".join(key.rsplit("/", 2)[-2:])


def shards(root: str, name: str) -> list[str]:
    return [str(path) for path in sorted(Path(root, name, "train").glob("*.tar"))]


def resident() -> float:
    """Memory of this process and its children in MB, shared pages divided among those that share them."""
    total, waiting = 0, [os.getpid()]
    while waiting:
        process = Path("/proc", str(waiting.pop()))
        try:
            rollup = (process / "smaps_rollup").read_text()
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
    return total / 1024


def prepare_energon(root: Path, python: str) -> None:
    """Links to the shards, Energon's own index of them, and a blend in equal shares; kept from call to call."""
    if (blend := root / "energon" / "blend.yaml").exists():
        return
    for name in DATASETS:
        folder = root / "energon" / name
        folder.mkdir(parents=True, exist_ok=True)
        for shard in shards(str(root), name):
            (folder / Path(shard).name).hardlink_to(shard)
        flags = ["--non-interactive", "--no-progress", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset"]
        command = [str(Path(python).with_name("energon")), "prepare", str(folder), *flags]
        subprocess.run(command, check=True, capture_output=True)
    lines = ["__module__: megatron.energon", "__class__: MetadatasetV2", "splits:", "  train:", "    blend:"]
    blend.write_text("\n".join([*lines, *(f"      - {{weight: 1, path: ./{name}}}" for name in DATASETS)]))


def from_s3(root: Path, size: tuple[int, int], options: argparse.Namespace) -> None:
    """Ours from local files, from moto's S3 over HTTP, and from the same with latency: interleaved, medians."""
    from post_platform import storage

    task = json.dumps({"name": "serve", "latency": options.latency / 1000})
    command = [sys.executable, __file__, "--part", task]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout is not None
    urls = json.loads(server.stdout.readline())
    os.environ.update(AWS_ACCESS_KEY_ID="AKIDEXAMPLE", AWS_SECRET_ACCESS_KEY="not-a-secret", AWS_REGION="us-east-1")
    os.environ["AWS_ENDPOINT_URL"] = urls["S3"]
    urllib.request.urlopen(urllib.request.Request(f"{urls['S3']}/benchmark", method="PUT"))
    for name in DATASETS:
        for file in sorted((root / name / "train").iterdir()):
            storage.upload_file(file, f"s3://benchmark/{name}/train/{file.name}")
    rates: dict[str, list[float]] = {"local": [], **{name: [] for name in urls}}
    for _ in range(options.rounds):
        for name, found in rates.items():
            os.environ["AWS_ENDPOINT_URL"] = urls.get(name, urls["S3"])
            place = "s3://benchmark" if name in urls else root
            found.append(run("ours", place, size, SIZES[size][0], options)["rate"])
    server.terminate()
    medians = {name: statistics.median(found) for name, found in rates.items()}
    paced = f", {options.step:.0f} ms of other work a batch" if options.step else ""
    print(f"\n{size[0]}x{size[1]}, ours, {options.threads} threads{paced}; medians of {options.rounds} rounds")
    for name, rate in medians.items():
        print(f"{name:22}{rate:8.1f} frames/s{100 * rate / medians['local']:7.0f} %", flush=True)


def serve(task: dict[str, Any]) -> None:
    """moto's S3, straight and behind a proxy that holds each request back; prints their addresses and stays."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
        while data := await reader.read(1 << 20):
            await asyncio.sleep(delay)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_upstream = await asyncio.open_connection(host, port)
        both = copy(reader, to_upstream, task["latency"]), copy(upstream, writer, 0)
        await asyncio.gather(*both, return_exceptions=True)

    async def proxy() -> None:
        listener = await asyncio.start_server(connected, "127.0.0.1", 0)
        slow = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        print(json.dumps({"S3": f"http://{host}:{port}", f"S3 + {1000 * task['latency']:.0f} ms": slow}), flush=True)
        await listener.serve_forever()

    asyncio.run(proxy())


def plot_memory(series: dict[str, list[float]], frames: int, file: Path | None) -> None:
    """Print, and draw, the consumers' memory over the frames that they took."""
    for name, values in series.items():
        half = len(values) // 2
        print(f"{name:14} {values[half]:.0f} MB half way, {values[-1]:.0f} MB at the end, {max(values):.0f} MB at most")
    if file:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        for name, values in series.items():
            axes.plot(np.linspace(0, frames, len(values)), values, label=name)
        axes.set(xlabel="frames", ylabel="memory of the consumers, MB", ylim=(0, None))
        axes.legend()
        figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
