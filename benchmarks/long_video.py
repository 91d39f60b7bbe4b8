"""Memory of predict.py on a long video: the process is looked at every second until it ends.

The video is toy city's streets one after the other (PyAV, H.264), so that objects come and go all the time. A row
is a tenth of the frames, with the most memory that the process had meanwhile.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT / "platform"), str(ROOT / "model")]

from post_platform.toycity.world import World

FPS = 25
STREET = 100  # frames of a street before the next one


def write_video(path: Path, hours: float, height: int, width: int) -> int:
    """Write the video; returns its number of frames."""
    frames = round(hours * 3600 * FPS)
    streets = [[World(seed, 16, height, width).render(number).image for number in range(16)] for seed in range(20)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            street = streets[number // STREET % len(streets)]
            image = street[number % len(street)]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return frames


def megabytes(process: int) -> float:
    """Resident memory of a process; 0 once it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: benchmarks/long_video.py --checkpoint C")
    parser.add_argument("--checkpoint", required=True, help="as for predict.py")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--every", type=int, default=20, help="frames of which one is predicted")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 192), metavar=("H", "W"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        frames = write_video(Path(folder, "video.mp4"), arguments.hours, *arguments.size)
        print(f"{arguments.hours:g} hours, {frames} frames, written in {time.perf_counter() - began:.0f} s", flush=True)
        command = [
            sys.executable, ROOT / "pipelines/predict.py", f"{folder}/video.mp4", "--checkpoint", arguments.checkpoint,
            "--every", str(arguments.every), "--out", f"{folder}/out", "--json", f"{folder}/said.json",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        seen = []
        while process.poll() is None:
            done = sum(1 for _ in Path(folder, "out/panoptic").glob("**/*.png"))
            seen.append((done, megabytes(process.pid)))
            time.sleep(1)
        if process.returncode:
            raise SystemExit(f"predict.py ended with {process.returncode}")
        said = json.loads(Path(folder, "said.json").read_text())
        size = sum(file.stat().st_size for file in Path(folder, "out").rglob("*") if file.is_file()) / 1e6
    total = said["frames"]
    print(f"{total} frames predicted, {size:.0f} MB written")
    print("| frames | MB |\n| --- | --- |")
    for tenth in range(1, 11):
        held = [memory for done, memory in seen if (tenth - 1) * total < 10 * done <= tenth * total]
        print(f"| {tenth * total // 10} | {max(held):.0f} |" if held else f"| {tenth * total // 10} | - |")


if __name__ == "__main__":
    main()
