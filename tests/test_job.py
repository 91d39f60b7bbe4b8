"""A run's first network: seeded, or filled from a checkpoint that fits, and refused by name where it does not."""

import json
import logging
import shutil

import pytest
import torch

from post_model.network import Post
from post_model.weights import save_model, save_weights
from post_platform.config import load_config
from post_platform.errors import ConfigError
from post_platform.training.job import CLASS_PREDICTOR, Job

CLASSES, THINGS = ("road", "car"), (False, True)


def job(folder, *overrides, classes=CLASSES):
    config = load_config(None, ["model.backbone=small", "train.global_batch=2", *overrides])
    return Job(config, (), (), classes, THINGS[: len(classes)], {}, folder, "", "")


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A checkpoint folder of a small network with GroupNorm, and its weights."""
    folder = tmp_path_factory.mktemp("start")
    model = job(folder, "seed=5").new_model("group")
    save_model(folder, model, CLASSES, THINGS)
    return folder, model.state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("committed", "validated", "finished"),
    [(None, None, False), (4, 4, False), (9, None, False), (9, 6, False), (9, 9, True), (12, 9, True)],
)
def test_a_run_is_finished_when_its_last_step_is_committed_and_validated(tmp_path, committed, validated, finished):
    """A validation that was left for a stop is still to be made; of more steps than are asked for, none is."""
    run = job(tmp_path, f"run.dir={tmp_path}", "run.name=run", "train.steps=9")
    if committed:
        run.store().commit(committed, lambda folder: (folder / "state.json").write_text('{"score": null}'), keep=1)
    if validated:
        (tmp_path / "scores.json").write_text(json.dumps({"step": validated}))
    assert run.is_finished() is finished


def test_the_seed_decides_the_weights(tmp_path):
    first, again, other = (job(tmp_path, f"seed={seed}").new_model("group").state_dict() for seed in (1, 1, 2))
    assert equal(first, again)
    assert not equal(first, other)


def test_a_checkpoint_fills_the_network(started, tmp_path):
    folder, weights = started
    new = job(tmp_path, f"model.init_from={folder}", "seed=9")
    assert new.norm(False, 2) == "group"
    assert equal(new.new_model(new.norm(False, 2)).state_dict(), weights)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("road",), "1 classes kept, 0 new, 1 dropped"),
        (("car", "road"), "2 classes kept, 0 new, 0 dropped"),
        (("bus", "car", "tree"), "1 classes kept, 2 new, 1 dropped"),
        (("bus", "tree"), "0 classes kept, 2 new, 2 dropped"),
    ],
)
def test_classes_of_the_same_name_keep_their_rows_and_the_network_trains_on(started, tmp_path, caplog, classes, said):
    folder, weights = started
    new = job(tmp_path, f"model.init_from={folder}", "seed=9", classes=classes)
    with caplog.at_level(logging.INFO, "post_platform"):
        model = new.new_model("group")
        again = new.new_model("group", quiet=True)
    assert caplog.messages == [f"model.init_from: {folder}: {said}"]
    assert caplog.records[0].levelname == ("WARNING" if said.startswith("0") else "INFO")
    assert equal(model.state_dict(), again.state_dict()), "new rows are seeded"
    found = model.state_dict()
    predictor = {f"{CLASS_PREDICTOR}.weight", f"{CLASS_PREDICTOR}.bias"}
    rest = found.keys() - predictor
    assert predictor < found.keys()
    assert equal({name: found[name] for name in rest}, {name: weights[name] for name in rest})
    rows = found[f"{CLASS_PREDICTOR}.weight"], weights[f"{CLASS_PREDICTOR}.weight"]
    for number, name in enumerate(classes):
        if name in CLASSES:
            assert torch.equal(rows[0][number], rows[1][CLASSES.index(name)]), name
        else:
            assert 0 < rows[0][number].abs().max() < 0.01, "fresh"
            assert not any(torch.equal(rows[0][number], row) for row in rows[1])
    maps = model.train()(torch.rand(2, 3, 32, 32))
    assert maps.semantic.shape[1] == len(classes)
    maps.semantic.logsumexp(1).sum().backward()
    assert model.branches["semantic"][1].weight.grad.abs().sum(dim=(1, 2, 3)).min() > 0


def test_averaged_weights_are_what_a_run_starts_from(started, tmp_path):
    folder, weights = started
    both = shutil.copytree(folder, tmp_path / "both")
    save_weights(both / "ema.safetensors", {name: value + 1 for name, value in weights.items()})
    new = job(tmp_path, f"model.init_from={both}").new_model("group")
    assert equal(new.state_dict(), {name: value + 1 for name, value in weights.items()})


@pytest.mark.parametrize(("accumulate", "norm"), [(1, "sync"), (2, "sync"), (3, "group")])
def test_batch_statistics_are_those_of_a_micro_batch(tmp_path, accumulate, norm):
    assert job(tmp_path, f"train.accumulate={accumulate}").norm(True, 8) == norm


@pytest.mark.parametrize(
    ("overrides", "classes", "message"),
    [
        (["model.backbone=resnet18"], CLASSES, "its backbone is small, this run's resnet18"),
        (["model.depthwise=false"], CLASSES, "its depthwise is True, this run's False"),
        (["model.branches=[semantic,center,offset]"], CLASSES, r"its branches is \["),
        (["model.norm=batch"], CLASSES, "its norm is group, this run's batch"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(started, tmp_path, overrides, classes, message):
    folder, _ = started
    new = job(tmp_path, f"model.init_from={folder}", *overrides, classes=classes)
    with pytest.raises(ConfigError, match=rf"^model.init_from: {folder} .*{message}") as caught:
        new.new_model(new.norm(False, 2))
    assert "\n" not in str(caught.value)


def test_batch_statistics_are_synchronised_where_every_rank_has_a_gpu(tmp_path):
    save_model(tmp_path, Post(2, "small", norm="batch", train_size=(64, 64)), CLASSES, THINGS)
    start = job(tmp_path, f"model.init_from={tmp_path}")
    assert [start.norm(gpus, 1) for gpus in (False, True)] == ["batch", "sync"]
    assert start.new_model("sync").arguments == Post(2, "small", norm="sync", train_size=(64, 64)).arguments
    frozen = job(tmp_path, f"model.init_from={tmp_path}", "model.norm=frozen")
    model = frozen.new_model(frozen.norm(True, 8)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.rand(2, 3, 32, 32)).semantic.sum().backward()
    assert equal(before, model.state_dict()), "no statistics moved"
    assert all(layer.weight.grad is None for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d))


def test_a_file_or_folder_without_weights_is_named(tmp_path):
    (tmp_path / "weights.pkl").write_bytes(b"no weights")
    for path in (tmp_path, tmp_path / "none", tmp_path / "weights.pkl"):
        new = job(tmp_path, f"model.init_from={path}")
        with pytest.raises(ConfigError, match=rf"^model.init_from: .*{path.name}"):
            new.new_model(new.norm(False, 2))
