"""The stream deals the plan: every rank gets its part of every batch in order, at any world size and restart."""

import pytest
from test_plan import split

from post_platform import cluster
from post_platform.data.plan import Plan
from post_platform.data.stream import BATCHES_PER_BLOCK, data_config, local_rows, plan_rows


@pytest.fixture(scope="module")
def ray():
    import ray

    cluster.connect()
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def plan():
    return Plan([split("a", [7, 4]), split("b", [5])], global_batch=6, seed=1)


def positions(ray, plan, start, steps, world_size):
    """Positions as each rank's consumer sees them, read at different speeds."""
    [*shards] = plan_rows(plan, start, steps, world_size).streaming_split(world_size, equal=True)

    @ray.remote(num_cpus=0)
    def consume(shard, slow):
        import time

        seen = []
        for batch in shard.iter_batches(batch_size=6 // world_size, batch_format="pyarrow"):
            time.sleep(0.02 * slow)
            seen.append(batch["position"].to_pylist())
        return seen

    return ray.get([consume.remote(shard, rank) for rank, shard in enumerate(shards)])


@pytest.mark.parametrize(("start", "steps", "world_size"), [(0, 2 * BATCHES_PER_BLOCK + 5, 2), (7, 40, 3), (3, 9, 1)])
def test_ranks_get_consecutive_parts_of_every_batch_in_order(ray, plan, start, steps, world_size):
    ray.data.DataContext.get_current().execution_options = data_config()._user_execution_options
    size = 6 // world_size
    dealt = positions(ray, plan, start, steps, world_size)
    for rank, seen in enumerate(dealt):
        assert seen == [
            list(range(step * 6 + rank * size, step * 6 + (rank + 1) * size)) for step in range(start, steps)
        ]


def test_a_batch_that_does_not_divide_is_padded_with_rows_of_weight_zero(plan):
    parts = [local_rows(plan, 2, rank, 4) for rank in range(4)]
    assert [part.num_rows for part in parts] == [2, 2, 2, 2]
    assert [part["weight"].to_pylist() for part in parts] == [[1, 1], [1, 1], [1, 1], [0, 0]]
    assert [row for part in parts for row in part["position"].to_pylist()] == [12, 13, 14, 15, 16, 17, 17, 17]
