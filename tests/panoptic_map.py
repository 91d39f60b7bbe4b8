"""A panoptic image made of label maps, as `fuse` would return it."""

import torch

from post_model.fusion import Panoptic


def panoptic(classes, instances):
    """One image of (H, W) classes and instance numbers 1..N; a number that does not occur has no pixel."""
    rows = []
    for number in range(1, int(instances.max()) + 1):
        y, x = (instances == number).nonzero().T
        assert len(y), "every number must occur"
        rows.append((
            [round(y.double().mean().item()), round(x.double().mean().item())], int(classes[y[0], x[0]]), len(y),
            [int(y.min()), int(x.min()), int(y.max()) + 1, int(x.max()) + 1],
        ))  # fmt: skip
    centers, indices, areas, boxes = ([row[k] for row in rows] for k in range(4))
    return Panoptic(
        classes.int(), instances.int(), torch.tensor(len(rows)), torch.tensor(centers, dtype=torch.int64).view(-1, 2),
        torch.tensor(indices, dtype=torch.int64), torch.tensor(areas, dtype=torch.int64),
        torch.tensor(boxes, dtype=torch.int64).view(-1, 4), torch.ones(len(rows)),
    )  # fmt: skip
