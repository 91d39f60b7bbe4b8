"""Small parts of the training loop, by hand: learning rate, normalisation, the batch, and what reaches MLflow."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from post_model.network import Post
from post_model.weights import load_model
from post_platform.config import load_config
from post_platform.data.load import Samples
from post_platform.errors import PostError
from post_platform.training import checkpoint, checkpoint_store, journal
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


class Sent:
    """Remembers what a log was sent."""

    def __init__(self):
        self.sent = []

    def log_metrics(self, metrics, step):
        self.sent += [(step, name) for name in sorted(metrics)]

    def flush(self):
        return True


def test_what_a_kill_kept_from_mlflow_is_published_again(tmp_path):
    """The journal of a run that was killed right after its checkpoint of step 4; the log stores no step twice."""
    newest = tmp_path / "checkpoints/step_00000004"
    newest.mkdir(parents=True)
    (newest / "state.json").write_text(json.dumps({"step": 4, "ledger": EMPTY, "bad_samples": 0}))
    history = [(3, {"train/loss/total": 2.0}), (4, {"train/loss/total": 1.0}), (4, {"val/a/PQ": 0.5, "rare": 0.1})]
    (newest / HISTORY).write_text("".join(json.dumps(item) + "\n" for item in history))
    (newest / NAME).touch()
    store = Sent()
    Journal(SimpleNamespace(folder=tmp_path, open_log=lambda: store), None, newest)
    assert store.sent == [(3, "train/loss/total"), (4, "train/loss/total"), (4, "rare"), (4, "val/a/PQ")]


@pytest.mark.parametrize(("live", "sent"), [(False, []), (True, [(1, "time/frames_per_s"), (1, "train/loss/total")])])
def test_a_metric_waits_for_its_checkpoint_unless_the_log_is_live(tmp_path, live, sent):
    store = Sent()
    config = load_config(None, [f"log.live={str(live).lower()}"])
    (tmp_path / "logs").mkdir()
    job = SimpleNamespace(
        folder=tmp_path,
        logs=tmp_path / "logs",
        config=config,
        open_log=lambda: store,
    )
    kept = Journal(job, None, None)
    kept.step(1, {"train/loss/total": 2.0, "time/frames_per_s": 30.0})
    assert store.sent == sent
    assert kept.pending == ([] if live else [(1, {"train/loss/total": 2.0, "time/frames_per_s": 30.0})])


def test_metrics_reach_the_log_once_the_checkpoint_is_whole_and_training_goes_on_meanwhile(tmp_path, monkeypatch):
    """The writer is held in its first file while the network is trained on: what it writes is of the commit's step."""
    sent, go = Sent(), threading.Event()
    config = load_config(None, ["model.backbone=small"])
    job = SimpleNamespace(
        folder=tmp_path, shared=tmp_path, logs=tmp_path, config=config, facts={}, attempt="mine",
        mlflow_uri="u", mlflow_run_id="id", class_names=("person",), thing_flags=(True,), open_log=lambda: sent,
    )  # fmt: skip
    (tmp_path / "attempt").write_text("mine")
    model = Post(1, "small", norm="group")
    optimizer = torch.optim.AdamW(model.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_model = journal.save_model
    monkeypatch.setattr(journal, "save_model", lambda *args: (go.wait(20), save_model(*args)))
    store = checkpoint_store.Store(tmp_path / "checkpoints")
    store.claim()
    kept = Journal(job, store, None)
    kept.validation(3, {"a": {"PQ": 0.5}}, 0.5, 1.0)
    kept.commit(3, [(3, (0, "a/s/000001"))], 0, model, optimizer)
    with torch.no_grad():
        for value in model.parameters():
            value += 1
    assert (store.names(), sent.sent) == ([], [])
    go.set()
    kept.close()
    newest = store.latest()
    loaded, _ = load_model(newest)
    assert all(torch.equal(before[name], value) for name, value in loaded.state_dict().items())
    assert (3, "val/mean/score") in sent.sent
    state = checkpoint.read_state(newest)
    assert (state["score"], state["scores"]["step"]) == (0.5, 3)
    assert store.best() == "step_00000003"

    kept.validation(3, {"a": {"SQ": 0.25}}, 0.25, 1.0, committed=True)
    assert (3, "val/a/SQ") in sent.sent, "of a committed step: nothing else would publish it"
    assert json.loads((tmp_path / "scores.json").read_text())["mean"] == 0.25

    (tmp_path / "attempt").write_text("another's")
    with pytest.raises(PostError, match="continued by another process"):
        kept.commit(4, [], 0, model, optimizer)
    (tmp_path / "attempt").write_text("mine")
    monkeypatch.setattr(journal, "save_model", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
    kept.commit(4, [], 0, model, optimizer)
    with pytest.raises(PostError, match=f"{tmp_path}/checkpoints: No space left"):
        kept.close()
    assert store.names() == ["step_00000003"]
