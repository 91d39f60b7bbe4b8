"""How many workers a cluster has room for, beside the tasks that read the data."""

from __future__ import annotations

from post_platform import cluster
from post_platform.config import RunConfig
from post_platform.config_values import WorkerRange
from post_platform.errors import ConfigError


def workers_of(config: RunConfig) -> tuple[int, bool]:
    """Number of training workers, and whether each has a GPU: one per GPU, or two on a machine without.

    Raises:
        ConfigError: Ray has no room for so many beside the data tasks; waiting for it would hang.
    """
    most, cpus, gpus = room(config, cluster.worker_cpus())
    wanted = config.train.workers
    workers = min(wanted.max, most) if isinstance(wanted, WorkerRange) else wanted or gpus or min(2, most)
    least = wanted.min if isinstance(wanted, WorkerRange) else 1
    if not max(1, least) <= workers <= most:
        fewer = f"ask for fewer: train.workers={most}"
        more = f"give Ray more CPUs: {data_cpus(config)} beside the workers' are for data"
        raise ConfigError(
            f"train.workers: Ray has room for {most} ({cpus:.0f} CPUs, {gpus} GPUs), "
            f"got {least if isinstance(wanted, WorkerRange) else workers}",
            fewer if most else more,
        )
    return workers, gpus >= workers


def room(config: RunConfig, worker_cpus: float) -> tuple[int, float, int]:
    """Workers that the cluster has room for beside the data tasks, its CPUs and its GPUs."""
    import ray

    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), int(total.get("GPU", 0))
    free = max(0, int((cpus - data_cpus(config)) / worker_cpus))
    return min(gpus, free) if gpus else free, cpus, gpus


def data_cpus(config: RunConfig) -> int:
    """CPUs that are left to Ray Data: for plan rows, and to decode."""
    return 2 if config.data.decode_on == "cluster" else 1
