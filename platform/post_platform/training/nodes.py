"""What each node of the cluster has: asked of every one at once, without taking any of its CPUs."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from post_platform.errors import PostError

PACKAGES = ("ray", "torch", "numpy")
SHM = Path("/dev/shm")
WITHIN = 60  # seconds for every node's answer: an idle one starts a process first


@dataclass(frozen=True)
class NodeFacts:
    """One node. Sizes in bytes: of /dev/shm, and of Ray's object store; `missing`: files that it does not see."""

    address: str
    versions: str
    shm: int
    object_store: int
    missing: tuple[str, ...]


def node_facts(files: Sequence[str]) -> list[NodeFacts]:
    """Ask every node of the cluster that this process has joined.

    Args:
        files: absolute paths of files that every node should see.

    Raises:
        PostError: a node did not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    task = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)).remote(list(files)): name
        for name in nodes
    }
    _, late = ray.wait(list(asked), num_returns=len(asked), timeout=WITHIN)
    if late:
        address = nodes[asked[late[0]]]["NodeManagerAddress"]
        raise PostError(f"node {address} did not answer within {WITHIN} s", "look at it: ray status, ray logs")
    facts = []
    for answer, name in asked.items():
        versions, shm, missing = ray.get(answer)
        node = nodes[name]
        store = int(node["Resources"].get("object_store_memory", 0))
        facts.append(NodeFacts(node["NodeManagerAddress"], versions, store if shm is None else shm, store, missing))
    return facts


def _look(files: list[str]) -> tuple[str, int | None, tuple[str, ...]]:
    """Versions, the size of /dev/shm (None where a system has none), and which files are not there."""
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)])
    shm = shutil.disk_usage(SHM).total if SHM.is_dir() else None
    return versions, shm, tuple(file for file in files if not Path(file).exists())
