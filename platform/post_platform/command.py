"""How every script in `pipelines/` ends: exit codes, and one clear line for a user's mistake."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from post_platform.errors import ConfigError, PostError


def check_folder(folder: Path, flag: str) -> None:
    """Make the folder that a flag names, and make sure that files can be written there, before any long work.

    Raises:
        ConfigError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"{flag} {folder}: cannot write there: {error.strerror}", f"name another: {flag} DIR"
        ) from error


def write_json(file: Path | str | None, content: object) -> None:
    """Write what a script found to the file that `--json` names; without one, nothing. Undefined numbers are None.

    Raises:
        PostError: the file cannot be written.
    """
    if file is None:
        return
    try:
        Path(file).write_text(json.dumps(content, indent=1, allow_nan=False, default=os.fspath) + "\n")
    except OSError as error:
        raise PostError(f"--json {file}: cannot write: {error.strerror}") from error


def image_size(text: str) -> tuple[int, int]:
    """Read `HxW`, as an argument's type.

    Raises: ValueError, which argparse turns into wrong usage.
    """
    height, width = (int(side) for side in text.lower().split("x"))
    if min(height, width) < 1:
        raise ValueError(text)
    return height, width


image_size.__name__ = "HxW"  # what argparse calls it: "invalid HxW value"


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; a PostError becomes `error: ...` (and its hint) on stderr and exit code 1.

    Wrong usage exits 2 (argparse); Ctrl-C exits 130 and a closed pipe 0, as shells expect. Anything else is a bug and
    keeps its traceback.
    """
    logging.basicConfig(level=os.environ.get("POST_LOG", "INFO"), format="%(message)s")
    try:
        main()
    except PostError as error:
        print(f"error: {error}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
