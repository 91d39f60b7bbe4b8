"""Who writes an MLflow run: tags that tell a later process whether the run's own one still lives."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

HOST, PROCESS, SPOOL = "post.host", "post.process", "post.spool"


def host() -> str:
    """Name this machine, or this container: two that share the machine's name do not see each other's processes."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def process_tags() -> dict[str, str]:
    """Return what identifies this process until the machine forgets it: its number is given to others later."""
    return {HOST: host(), PROCESS: f"{os.getpid()} {_started(os.getpid())}"}


def is_gone(tags: Mapping[str, str]) -> bool:
    """Whether the process of `process_tags` has ended; False where only another machine could know."""
    if tags.get(HOST) != host() or PROCESS not in tags:
        return False
    number, _, started = tags[PROCESS].partition(" ")
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, so it lives
    return _started(int(number)) != started


def commit_tags() -> dict[str, str]:
    """Return the commit of this checkout, and whether its files differ from it; nothing where git cannot say."""
    root = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        tags = {"mlflow.source.git.commit": git("rev-parse", "HEAD")}
        if git("status", "--porcelain", "--untracked-files=no"):
            tags["git.changed"] = "true"
    except (OSError, subprocess.SubprocessError):
        return {}
    return tags


def _started(number: int) -> str:
    """When a process began, in clock ticks since boot; nothing where there is no /proc, or no such process alive."""
    try:
        # Counted from behind the program's name, which may hold spaces and brackets.
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]  # Z: killed, and its parent has not asked for the exit code yet
