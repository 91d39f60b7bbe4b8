"""Accumulation, averaged weights and learned loss weights in real trainings, resumed."""

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from post_platform.config import load_config
from post_platform.training import checkpoint
from post_platform.training.launch import train

pytestmark = pytest.mark.slow
TINY = (
    "data.crop=[32,64]", "model.backbone=small", "train.global_batch=8", "train.workers=2", "train.log_every=1",
    "train.threads=1", "optim.schedule=constant", "eval.every=0", "eval.overlays=0",
)  # fmt: skip
BRANCHES = ("semantic", "center", "offset", "prev_offset")


def go(shards, runs, name, *overrides):
    return train(load_config(None, [*TINY, f"data.root={shards}", f"run.dir={runs}", f"run.name={name}", *overrides]))


def curve(outcome, metric):
    history = MlflowClient(outcome.mlflow_uri).get_metric_history(outcome.mlflow_run_id, metric)
    return {entry.step: entry.value for entry in history}


def test_a_resumed_run_with_everything_on_is_the_uninterrupted_one(toy_shards, tmp_path):
    options = ("train.accumulate=2", "optim.ema=0.9", "loss.weighting=learned", "optim.warmup_steps=3", "optim.clip=1")
    whole = go(toy_shards, tmp_path, "whole", "train.steps=6", *options)
    stopped = go(toy_shards, tmp_path, "parts", "train.steps=4", *options)
    assert checkpoint.read_state(stopped.checkpoint)["step"] == 4
    parts = go(toy_shards, tmp_path, "parts", "train.steps=6", *options)
    assert (parts.folder / "ledger.jsonl").read_bytes() == (whole.folder / "ledger.jsonl").read_bytes()
    for name in ("model.safetensors", "ema.safetensors"):
        once, twice = (load_file(run.checkpoint / name) for run in (whole, parts))
        assert once.keys() == twice.keys()
        for key in once:
            torch.testing.assert_close(twice[key], once[key], rtol=0, atol=0)
    averaged, last = (load_file(whole.checkpoint / name) for name in ("ema.safetensors", "model.safetensors"))
    assert any(not torch.equal(averaged[key], last[key]) for key in last)
    for metric in ("train/loss/total", "train/grad_norm", *(f"train/weight/{branch}" for branch in BRANCHES)):
        assert curve(parts, metric) == curve(whole, metric), metric
        assert sorted(curve(whole, metric)) == [1, 2, 3, 4, 5, 6]
        assert len(set(curve(whole, metric).values())) > 1, f"{metric} does not move"


def test_pieces_give_the_gradient_of_the_whole_batch(toy_shards, tmp_path):
    """Norms that look at each sample alone: then accumulation changes memory and the order of additions only."""
    one, two = (go(toy_shards, tmp_path, f"pieces{n}", "train.steps=2", f"train.accumulate={n}") for n in (1, 2))
    losses = [curve(run, "train/loss/total") for run in (one, two)]
    assert losses[1][1] == pytest.approx(losses[0][1], rel=1e-5)
    assert losses[1][2] == pytest.approx(losses[0][2], rel=1e-3)
