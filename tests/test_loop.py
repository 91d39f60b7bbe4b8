"""Small parts of the training loop, by hand: learning rate, normalisation, the batch, and what reaches MLflow."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from post_platform.config import load_config
from post_platform.data.load import Samples
from post_platform.training.job import resolve_norm
from post_platform.training.journal import HISTORY, Journal
from post_platform.training.ledger import EMPTY, NAME
from post_platform.training.loop import to_batch


@pytest.mark.parametrize(
    ("requested", "gpus", "rows", "pretrained", "expected"),
    [
        ("auto", False, 16, False, "group"),
        ("auto", True, 4, False, "sync"),
        ("auto", True, 3, False, "group"),
        ("auto", True, 1, True, "sync"),
        ("auto", False, 8, True, "batch"),
        ("batch", False, 1, False, "batch"),
        ("group", True, 8, True, "group"),
    ],
)
def test_normalisation_is_resolved_by_hardware_batch_and_origin(requested, gpus, rows, pretrained, expected):
    assert resolve_norm(requested, gpus, rows, pretrained) == expected


def test_a_batch_is_the_samples_as_tensors():
    rng = np.random.default_rng(0)
    maps = {name: rng.integers(0, 9, (2, 4, 6)).astype(np.int32) for name in ("instances", "prev_instances")}
    maps |= {name: rng.integers(0, 9, (2, 4, 6)).astype(np.uint8) for name in ("classes", "prev_classes")}
    maps |= {name: rng.integers(0, 9, (2, 3, 4, 6)).astype(np.uint8) for name in ("image", "prev_image")}
    samples = Samples(
        **maps,
        dataset=np.array([1, 0]),
        weight=np.array([1, 0], np.float32),
        position=np.array([6, 7]),
        key=("a/s/000001", "b/s/000001"),
    )
    batch = to_batch(samples, torch.device("cpu"))
    for name, array in maps.items():
        assert np.array_equal(getattr(batch, name).numpy(), array), name
    assert batch.image.dtype == torch.uint8
    assert batch.instances.dtype == torch.int32
    assert (batch.dataset.tolist(), batch.weight.tolist()) == ([1, 0], [1, 0])


class Store:
    """Remembers what a log was sent."""

    def __init__(self):
        self.sent = []

    def log_metrics(self, metrics, step):
        self.sent += [(step, name) for name in sorted(metrics)]


def test_what_a_kill_kept_from_mlflow_is_published_again(tmp_path):
    """The journal of a run that was killed right after its checkpoint of step 4; the log stores no step twice."""
    newest = tmp_path / "checkpoints/step_00000004"
    newest.mkdir(parents=True)
    (newest / "state.json").write_text(json.dumps({"step": 4, "ledger": EMPTY, "bad_samples": 0}))
    history = [(3, {"train/loss/total": 2.0}), (4, {"train/loss/total": 1.0}), (4, {"val/a/PQ": 0.5, "rare": 0.1})]
    (newest / HISTORY).write_text("".join(json.dumps(item) + "\n" for item in history))
    (newest / NAME).touch()
    store = Store()
    Journal(SimpleNamespace(folder=tmp_path, open_log=lambda: store), newest)
    assert store.sent == [(3, "train/loss/total"), (4, "train/loss/total"), (4, "rare"), (4, "val/a/PQ")]


@pytest.mark.parametrize(("live", "sent"), [(False, []), (True, [(1, "time/frames_per_s"), (1, "train/loss/total")])])
def test_a_metric_waits_for_its_checkpoint_unless_the_log_is_live(tmp_path, live, sent):
    store = Store()
    config = load_config(None, [f"log.live={str(live).lower()}"])
    (tmp_path / "logs").mkdir()
    job = SimpleNamespace(
        folder=tmp_path,
        logs=tmp_path / "logs",
        config=config,
        open_log=lambda: store,
    )
    journal = Journal(job, None)
    journal.step(1, {"train/loss/total": 2.0, "time/frames_per_s": 30.0})
    assert store.sent == sent
    assert journal.pending == ([] if live else [(1, {"train/loss/total": 2.0, "time/frames_per_s": 30.0})])
