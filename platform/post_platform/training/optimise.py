"""What turns a batch into better weights: accumulation, clipping, schedule, average, and when to give up."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from post_model.batch import Batch
from post_model.network import Predictions, losses
from post_model.taxonomy import LabelTables
from post_platform.config import OptimConfig
from post_platform.errors import PostError

WARMUP_FACTOR = 0.001  # of the rate, at the first step of a warm-up
WINDOW = 20  # steps whose median loss is judged: no single batch, however odd, moves it far
PATIENCE = 100  # steps that the median must stay up: a rate that was too high for a moment recovers sooner
FACTOR = 10.0  # times the best median so far; at least the first median too, so that falling far forbids nothing

Found = Mapping[str, tuple[Tensor, Tensor]]
"""(total, count) of each branch, of `post_model.network.losses`."""


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Linear warm-up times poly decay (power 0.9) or a constant; `step` counts from 0, so the last is not at 0.

    Source: Detectron2's WarmupPolyLR, with which its Panoptic-DeepLab is trained: lr x warm(step) x
        (1 - step / steps)^0.9, warm = 0.001 x (1 - a) + a with a = step / warmup_steps, 1 after the warm-up.
    """
    done = min(1.0, step / optim.warmup_steps) if optim.warmup_steps else 1.0
    warm = WARMUP_FACTOR * (1 - done) + done
    decay = (1 - step / steps) ** 0.9 if optim.schedule == "poly" else 1.0
    return float(optim.lr * warm * decay)


class Gradient:
    """Computes the gradient of a batch over all ranks, in one piece or in several.

    In `pieces` micro-batches only one piece's activations are in memory at a time, so the peak falls to about
    1 / pieces of what the batch needs beyond weights, gradients, optimiser and the uint8 images. Ranks exchange
    gradients once per step, with the last piece.

    The gradient is the whole batch's, up to the order of additions: every piece is divided by the counts of all pieces
    of all ranks. They are known before the first piece's backward pass, because a count depends on labels alone: the
    losses of the later pieces are asked for it with the first piece's predictions as stand-ins. Exceptions: equal
    values at the edge of the hardest pixels, which count too (a handful of float32 pixels); and norms with batch
    statistics, which see a piece.
    """

    def __init__(
        self,
        network: DistributedDataParallel,
        tables: LabelTables,
        settings: Mapping[str, float],
        weights: Mapping[str, float],
        pieces: int = 1,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Prepare for steps of `network`.

        Args:
            network: the network, in DDP.
            tables: what the labels of each dataset mean.
            settings: fields of `LossSettings`.
            weights: `loss.<branch>`.
            pieces: micro-batches per step; never more than rows.
            autocast: the context of a forward pass.
        """
        self.network, self.tables, self.settings = network, tables, settings
        self.weights, self.pieces, self.autocast = weights, pieces, autocast

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Add the batch's gradient to the parameters'; returns each branch's mean loss over all ranks, and "total"."""
        first, *later = split(batch, self.pieces)
        if not later:
            _, found = self._forward(first)
            loss, values = global_loss(found, self.weights)
            loss.backward()  # type: ignore[no-untyped-call]
            return values
        with self.network.no_sync():
            predictions, found = self._forward(first)
            expected = sums_of(found)[1] + sum(self._expected(predictions, part) for part in later)
            dist.all_reduce(expected)
            share_of_loss(found, self.weights, expected).backward()  # type: ignore[no-untyped-call]
        del predictions
        sums = sums_of(found)
        for part in later:
            with nullcontext() if part is later[-1] else self.network.no_sync():
                _, found = self._forward(part)
                share_of_loss(found, self.weights, expected).backward()  # type: ignore[no-untyped-call]
            sums += sums_of(found)
        dist.all_reduce(sums)
        return means_of(found, self.weights, sums)

    def _forward(self, part: Batch) -> tuple[Predictions, Found]:
        with self.autocast():
            predictions: Predictions = self.network(part.image, part.prev_image)
        return predictions, losses(predictions, part, self.tables, **self.settings)

    @torch.no_grad()
    def _expected(self, predictions: Predictions, part: Batch) -> Tensor:
        """The branches' counts of a piece that is not predicted yet."""
        rows = len(part.weight)
        maps = (None if map_ is None else map_.detach()[:rows] for map_ in predictions)
        return sums_of(losses(type(predictions)(*maps), part, self.tables, **self.settings))[1]


def split(batch: Batch, pieces: int) -> list[Batch]:
    """Cut a batch into consecutive rows, the earlier pieces not smaller; one row is the least."""
    rows = len(batch.weight)
    if pieces == 1 or rows == 1:
        return [batch]
    columns = [getattr(batch, field.name).tensor_split(min(pieces, rows)) for field in fields(batch)]
    return [Batch(*part) for part in zip(*columns, strict=True)]


def global_loss(found: Found, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what this rank minimises, and each branch's mean loss over all ranks, with their weighted "total".

    Args:
        found: (total, count) of each branch on this rank.
        weights: `loss.<branch>`.
    """
    sums = sums_of(found)
    dist.all_reduce(sums)
    return share_of_loss(found, weights, sums[1]), means_of(found, weights, sums)


def sums_of(found: Found) -> Tensor:
    """Totals and counts of the branches, without their graph: (2, branches)."""
    totals = torch.stack([total.detach() for total, _ in found.values()])
    return torch.stack([totals, torch.stack([count.detach().to(totals.dtype) for _, count in found.values()])])


def share_of_loss(found: Found, weights: Mapping[str, float], counts: Tensor) -> Tensor:
    """This rank's part of the loss, given each branch's count over all that a step sees.

    DDP averages gradients over ranks; dividing by the global count and multiplying by the ranks makes a batch's
    gradient independent of how its rows are spread.
    """
    totals = torch.stack([total for total, _ in found.values()])
    factors = totals.new_tensor([weights[name] for name in found])
    return (factors * totals / counts.clamp(min=1)).sum() * dist.get_world_size()


def means_of(found: Found, weights: Mapping[str, float], sums: Tensor) -> dict[str, Tensor]:
    """Each branch's mean loss, from global sums, and their weighted "total"."""
    means = sums[0] / sums[1].clamp(min=1)
    factors = means.new_tensor([weights[name] for name in found])
    return {**dict(zip(found, means, strict=True)), "total": (factors * means).sum()}


class LearnedWeights(Mapping[str, float]):
    """Loss weights that follow how uncertain each branch is, instead of a search: `loss.weighting: learned`.

    Minimises the sum over branches of exp(-s) x loss + s, with one s = log(variance) per branch, which begins at
    -log(`loss.<branch>`): the first step is that of fixed weights. The optimum of s makes each weight 1 / loss.

    s is in the optimiser, in a group of its own that also holds its value, so it is saved and restored with it. Its
    gradient, 1 - exp(-s) x loss, needs no graph: the mean loss over all ranks is known to each of them.

    Source: Kendall, Gal and Cipolla, Multi-task learning using uncertainty (CVPR 2018), section 3.2. Deviation: one
        form for all branches; theirs halves the regressions' terms, which only shifts their s by log 2.
    """

    def __init__(self, weights: Mapping[str, float], optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        """Begin at `weights`, all above 0, and join `optimizer`; load its stored state after that, then `restore`."""
        self.names, self.optimizer = list(weights), optimizer
        start = torch.tensor([-math.log(weight) for weight in weights.values()], device=device)
        self.variances = nn.Parameter(start)
        optimizer.add_param_group({"params": [self.variances], "weight_decay": 0.0, "value": self.variances.data})

    @torch.no_grad()
    def restore(self) -> None:
        """Continue at the value that the optimiser's stored state holds."""
        group = self.optimizer.param_groups[-1]
        self.variances.copy_(group["value"])
        group["value"] = self.variances.data

    def learn(self, means: Mapping[str, Tensor]) -> None:
        """Set the gradient for the optimiser's step, from each branch's mean loss over all ranks."""
        losses = torch.stack([means[name].detach() for name in self.names]).to(self.variances)
        self.variances.grad = 1 - torch.exp(-self.variances.detach()) * losses

    def __getitem__(self, name: str) -> float:
        """The weight of a branch now."""
        return math.exp(-float(self.variances.detach()[self.names.index(name)]))

    def __iter__(self) -> Iterator[str]:
        """The branches."""
        return iter(self.names)

    def __len__(self) -> int:
        """How many branches there are."""
        return len(self.names)


def clip(parameters: Iterable[nn.Parameter], most: float | None) -> Tensor:
    """Scale the gradient down to the norm `most`, where that is given; returns the norm it had, on its device."""
    own = list(parameters)
    if most:
        return torch.nn.utils.clip_grad_norm_(own, most)
    return torch.nn.utils.get_total_norm([p.grad for p in own if p.grad is not None])


class Average:
    """An exponential moving average of a network's trainable parameters; everything else is the network's own.

    The decay grows to `decay` as (1 + t) / (10 + t), so that the first weights, which are random, are soon forgotten.
    It depends on the step alone: with its tensors restored, a resumed run has the same average bit by bit.
    """

    def __init__(self, model: nn.Module, decay: float, file: Path | None = None) -> None:
        """Start at the network's weights, or at those that a checkpoint holds in `file`."""
        self.model, self.decay = model, decay
        self.own = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.values = {name: value.detach().clone() for name, value in self.own.items()}
        if file:
            stored = load_file(file)
            for name, value in self.values.items():
                value.copy_(stored[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own = [self.own[name].detach() for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), own, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """The network's state dictionary with averaged parameters, as `save_weights` takes it."""
        return {**self.model.state_dict(), **self.values}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the network has the averaged weights; no copy is made."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, value in self.own.items():
            value.data, self.values[name] = self.values[name], value.data


class Diverged(PostError):
    """The loss of a run is not finite, or has left its course: of all errors the one that a recipe is to blame for."""


class Health:
    """Says when training has failed, and never because it is merely slow, noisy or at its start.

    Failed: a loss, the gradient's norm or a weight is not finite; or the median total of WINDOW steps has been above
    FACTOR times its best, and not below its first, for PATIENCE steps on end: an untrained network would do better.

    Noting a step costs no wait for the device; `check` waits once for all steps since the last. The values are those of
    all ranks, so every rank comes to the same end. A resumed run begins anew: what was best is not stored.
    """

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self._waiting: list[tuple[int, list[str], Tensor]] = []
        self._last = 0
        self._totals: deque[float] = deque(maxlen=WINDOW)
        self._first: float | None = None
        self._best = math.inf
        self.good = 0  # the last step with a good loss, which the weights of the step before have earned

    def note(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Keep what a step gave, "total" among it, on its device."""
        self._last = step
        self._waiting.append((step, list(values), torch.stack([value.detach() for value in values.values()])))

    def check(self, weights: Sequence[Tensor] = ()) -> None:
        """Judge all steps noted since the last check, and `weights` where a checkpoint is to hold them.

        Raises: Diverged, with the step and its losses.
        """
        waiting, self._waiting = self._waiting, []
        if waiting:
            rows = torch.stack([values for *_, values in waiting]).tolist()
            for (step, names, _), row in zip(waiting, rows, strict=True):
                self._judge(step, dict(zip(names, row, strict=True)))
        # float32 squares: a norm that overflows is as useless as one that is not a number
        if weights and not torch.nn.utils.get_total_norm(weights).isfinite():
            raise Diverged(f"step {self._last}: the weights are not finite")

    def _judge(self, step: int, values: Mapping[str, float]) -> None:
        said = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if not all(map(math.isfinite, values.values())):
            raise Diverged(f"step {step}: the loss or its gradient is not finite ({said})")
        self._totals.append(values["total"])
        if len(self._totals) == WINDOW:
            median = statistics.median(self._totals)
            self._first = median if self._first is None else self._first
            self._best = min(self._best, median)
            if median > FACTOR * self._best and median >= self._first:
                if step - self.good >= PATIENCE:
                    raise Diverged(
                        f"step {step}: the loss diverges: its median over {WINDOW} steps is {median:.4g}, for "
                        f"{PATIENCE} steps more than {FACTOR:g} times its best, {self._best:.4g} ({said})"
                    )
                return
        self.good = step


def compiled(model: nn.Module) -> nn.Module:
    """The network through torch.compile, in one graph: what cannot be compiled is an error, never run slowly."""
    return torch.compile(model, fullgraph=True)  # type: ignore[return-value]


@contextmanager
def explained(compiling: bool) -> Iterator[None]:
    """Turn a GPU that is too small, or what torch.compile cannot do (for want of a compiler, too), into one line.

    Raises: PostError naming `train.accumulate` or `train.compile`.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise PostError(
            f"the GPU's memory is too small for a step: {str(error).splitlines()[0]}",
            "a new run in smaller parts: train.accumulate, twice what it is; or a smaller data.crop",
        ) from error
    except Exception as error:
        if not compiling or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise PostError(f"train.compile: torch.compile failed: {first}", "do without: train.compile=false") from error
