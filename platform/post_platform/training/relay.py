"""What the workers of a run on S3 tell its driver: they share no folder, so an actor beside it writes its files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Relay:
    """Writes to the files in a folder of the driver's machine what any machine sends; it ends with the driver."""

    def __init__(self, folder: Path) -> None:
        """Write to files in `folder`."""
        self.folder = folder

    def append(self, name: str, text: str) -> None:
        """Add to a file."""
        with (self.folder / name).open("a") as file:
            file.write(text)

    def replace(self, name: str, text: str) -> None:
        """Write a file anew."""
        (self.folder / name).write_text(text)


class RelayHandler(logging.Handler):
    """Sends log lines to a file of the driver's; nobody waits for it, nor misses it where the driver is gone."""

    def __init__(self, relay: Any, name: str) -> None:
        """Send to the file `name` of `relay`."""
        super().__init__()
        self.relay, self.file = relay, name

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line."""
        self.relay.append.remote(self.file, self.format(record) + "\n")


def beside_driver(folder: Path) -> Any:
    """A `Relay` on the machine of this process, to send to from any."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Relay).remote(folder)  # type: ignore[call-overload]
