"""Small batches with hand-written labels for the tests of targets and losses."""

import torch

from post_model.batch import Batch
from post_model.taxonomy import LabelTables


def make_batch(classes, instances, prev_instances=None, prev_classes=None, dataset=None, weight=None):
    """Build a batch of black images from (B, H, W) label maps; without a previous frame there is no motion."""
    classes, instances = classes.to(torch.uint8), instances.to(torch.int32)
    prev_instances = torch.zeros_like(instances) if prev_instances is None else prev_instances.to(torch.int32)
    prev_classes = classes if prev_classes is None else prev_classes.to(torch.uint8)
    number, height, width = classes.shape
    image = torch.zeros(number, 3, height, width, dtype=torch.uint8)
    dataset = torch.zeros(number, dtype=torch.int64) if dataset is None else torch.tensor(dataset)
    weight = torch.ones(number) if weight is None else torch.tensor(weight)
    return Batch(image, image, classes, instances, prev_classes, prev_instances, dataset, weight)


def make_tables(sets, num_classes, things=(), negative=()):
    """Build the tables of one dataset; native classes that `sets` does not name allow everything."""
    allowed = torch.ones(1, 256, num_classes, dtype=torch.bool)
    for native, members in sets.items():
        allowed[0, native] = torch.tensor([c in members for c in range(num_classes)])
    flags = torch.zeros(2, 1, 256, dtype=torch.bool)
    flags[0, 0, list(things)], flags[1, 0, list(negative)] = True, True
    return LabelTables(allowed, flags[0], flags[1])


def random_batch(seed, number=4, height=24, width=32, things=(1, 2)):
    """Build a batch of random rectangles in both frames, some void, some crowd."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    maps = torch.zeros(4, number, height, width, dtype=torch.int64)
    for sample in range(number):
        for instance in range(1, pick(2, 6)):
            thing, size = things[pick(0, len(things))], (pick(2, 10), pick(2, 10))
            for frame in range(2):
                y, x = pick(0, height), pick(0, width)
                maps[2 * frame, sample, y : y + size[0], x : x + size[1]] = thing
                maps[2 * frame + 1, sample, y : y + size[0], x : x + size[1]] = instance
        maps[0, sample, :2], maps[1, sample, :2] = 255, 0
        maps[0, sample, -2:, :3], maps[1, sample, -2:, :3] = things[0], 65535
    return make_batch(maps[0], maps[1], maps[3], maps[2])
