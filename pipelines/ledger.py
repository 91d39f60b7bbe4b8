"""Say whether two runs trained on the same samples in the same order, or at which step they part."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import _paths  # noqa: F401
from post_platform.command import run, write_json
from post_platform.training.ledger import compare, find


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__ + " A ledger holds what entered the network, not what was planned.",
        epilog="example: python pipelines/ledger.py runs/first runs/second; exit code 0: the same, 1: they part",
    )
    parser.add_argument("run_a", metavar="RUN_A", help="a run's folder or s3:// address, its ledger.jsonl, or its name")
    parser.add_argument("run_b", metavar="RUN_B")
    parser.add_argument("--dir", default="runs", metavar="DIR", help="where names are looked up")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison")
    options = parser.parse_args()
    files = [find(name, options.dir) for name in (options.run_a, options.run_b)]
    found = compare(*files)
    write_json(options.json, {**asdict(found), "same": found.parting is None})
    a, b = found.steps
    if found.parting is not None:
        print(f"the runs part at step {found.parting}: {found.reason}")
        sys.exit(1)
    print(f"the same data over {min(a, b)} steps" + (f"; one run has {max(a, b) - min(a, b)} more" if a != b else ""))


if __name__ == "__main__":
    run(main)
