"""Say what would stop or spoil a training, and the remedy, before any GPU is taken."""

import argparse
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

import _paths  # noqa: F401
from post_platform.command import run, write_json
from post_platform.config import load_config
from post_platform.errors import ConfigError

STYLE = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python pipelines/doctor.py --config my.yaml train.workers=8"
    )
    parser.add_argument("--config", type=Path, metavar="F.yaml", help="a training's configuration (default: defaults)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="single values of it")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)  # itself the first check: one line if it is wrong

    from post_platform.training.doctor import examine

    console, findings = Console(highlight=False, soft_wrap=True), []
    for finding in examine(config):
        findings.append(finding)
        console.print(
            Text(f"{finding.state:7}", STYLE[finding.state]), f"{finding.what:14}", finding.found, markup=False
        )
        if finding.remedy:
            console.print(f"{'':22} -> {finding.remedy}", markup=False)
    write_json(arguments.json, [asdict(finding) for finding in findings])
    failed = [finding.what for finding in findings if finding.state == "failed"]
    if failed:
        raise ConfigError(f"a training would not start: {', '.join(failed)}")


if __name__ == "__main__":
    run(main)
