"""Checkpoints are whole or do not exist; damage is named; the newest few and the best are kept."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from post_model.network import Post
from post_model.weights import save_model, save_weights
from post_platform.errors import DataError
from post_platform.training import checkpoint
from post_platform.training.checkpoint_store import Store, Superseded
from post_platform.training.checkpoint_writer import Background, snapshot
from post_platform.training.evaluate import open_model

ROOT = Path(__file__).resolve().parent.parent


def files(step, score=None, text="weights"):
    def write(path):
        (path / "model.bin").write_text(text)
        (path / "state.json").write_text(json.dumps({"step": step, "score": score}))

    return write


def save(folder, step, keep=10, text="weights", score=None):
    return checkpoint.save(folder, step, files(step, score, text), keep)


def test_a_saved_checkpoint_is_whole(tmp_path):
    path = save(tmp_path, 12)
    assert path == tmp_path / "step_00000012"
    assert checkpoint.latest(tmp_path) == path
    assert checkpoint.read_state(path) == {"step": 12, "score": None}
    checkpoint.verify(path)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert manifest["step"] == 12
    assert set(manifest["files"]) == {"model.bin", "state.json"}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "nothing else is left"


def test_nothing_yet(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    assert checkpoint.whole(tmp_path) == []


def test_the_newest_few_are_kept_and_latest_is_the_last_by_step(tmp_path):
    for step in (2, 4, 100, 6):
        save(tmp_path, step, keep=3)
    assert [path.name for path in checkpoint.whole(tmp_path)] == ["step_00000004", "step_00000006", "step_00000100"]
    assert checkpoint.latest(tmp_path).name == "step_00000100"


def test_a_kill_while_writing_leaves_the_one_before_and_is_named(tmp_path, caplog):
    before = save(tmp_path, 2)

    def killed(path):
        (path / "model.bin").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 4, killed, keep=3)
    assert checkpoint.latest(tmp_path) == before
    (partial,) = tmp_path.glob(".*")
    assert f"ignoring half-written checkpoint {partial}" in caplog.text
    Store(tmp_path).claim()
    assert f"removed half-written checkpoint {partial}" in caplog.text
    assert [path.name for path in tmp_path.glob(".*")] == [".writer"]
    assert checkpoint.latest(save(tmp_path, 4).parent).name == "step_00000004"


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    def full(path):
        (path / "model.bin").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 4, full, keep=3)
    assert list(tmp_path.iterdir()) == []


def test_the_best_is_kept_beside_the_newest_and_has_an_address(tmp_path):
    run = tmp_path / "run"
    scores = {2: 0.3, 4: 0.7, 6: None, 8: 0.7, 10: 0.1, 12: 0.2, 14: None}
    for step, score in scores.items():
        save(run / "checkpoints", step, keep=2, score=score)
    kept = [path.name for path in checkpoint.whole(run / "checkpoints")]
    assert kept == ["step_00000008", "step_00000012", "step_00000014"], "of equal scores the newest"
    assert Store(run / "checkpoints").best() == "step_00000008"
    assert checkpoint.fetch(run / "best") == run / "checkpoints/step_00000008"
    assert checkpoint.fetch(run / "latest") == run / "checkpoints/step_00000014"
    assert checkpoint.fetch(run / "checkpoints/step_00000012") == run / "checkpoints/step_00000012"


def test_best_of_a_run_that_was_never_validated(tmp_path):
    save(tmp_path / "checkpoints", 2)
    with pytest.raises(DataError, match=rf"^{tmp_path}/best: {tmp_path}/checkpoints has no validated checkpoint$"):
        checkpoint.fetch(tmp_path / "best")


def test_a_folder_without_manifest_is_none(tmp_path):
    path = save(tmp_path, 2)
    (path / "MANIFEST.json").unlink()
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(DataError, match=r"step_00000002 is not a checkpoint: it has no MANIFEST.json$"):
        checkpoint.verify(path)


def test_of_two_writers_of_a_step_the_first_stands_whole(tmp_path):
    save(tmp_path, 2, text="first")
    path = save(tmp_path, 2, text="second")
    assert (path / "model.bin").read_text() == "first"
    checkpoint.verify(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_folder_under_the_name_that_is_no_checkpoint_gives_way(tmp_path):
    (tmp_path / "step_00000002").mkdir()
    (tmp_path / "step_00000002/model.bin").write_text("half")
    path = save(tmp_path, 2)
    assert (path / "model.bin").read_text() == "weights"
    checkpoint.verify(path)


def test_a_writer_that_was_taken_for_dead_commits_nothing_once_others_have_claimed_the_run(tmp_path):
    """It hangs in its last file; meanwhile another group claims the run, clears its leftovers and goes on."""
    late, new = Store(tmp_path), Store(tmp_path)
    late.claim()
    late.commit(2, files(2), keep=3)
    writing, go = threading.Event(), threading.Event()

    def hangs(path):
        files(4, text="late")(path)
        writing.set()
        assert go.wait(10)

    task = Background()
    task.start(lambda: late.commit(4, hangs, keep=3))
    assert writing.wait(10)
    new.claim()
    assert new.newest() == "step_00000002"
    go.set()
    with pytest.raises((Superseded, OSError)):
        task.wait()
    assert new.names() == ["step_00000002"]
    new.commit(4, files(4, text="new"), keep=3)
    assert (new.path("step_00000004") / "model.bin").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writer", "step_00000002", "step_00000004"]


def test_a_writer_may_not_commit_between_its_last_file_and_its_name(tmp_path):
    late = Store(tmp_path)
    late.claim()

    def claimed_meanwhile(path):
        files(4)(path)
        (tmp_path / ".writer").write_text("another")

    with pytest.raises(Superseded, match=f"the checkpoints in {tmp_path} are continued by other workers"):
        late.commit(4, claimed_meanwhile, keep=3)
    assert late.names() == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: (path / "model.bin").write_text("weighty"),
            r"model.bin is damaged \(sha256 \w{12}, expected \w{12}",
        ),
        (lambda path: (path / "model.bin").unlink(), r"model.bin is missing"),
        (lambda path: (path / "MANIFEST.json").write_text('{"step": 2, "fi'), r"MANIFEST.json is damaged"),
        (lambda path: (path / "MANIFEST.json").write_text("[]"), r"MANIFEST.json is damaged"),
    ],
)
def test_damage_is_named_with_the_way_out(tmp_path, damage, message):
    path = save(tmp_path, 2)
    damage(path)
    with pytest.raises(DataError, match=rf"^checkpoint {path}: {message}") as caught:
        checkpoint.verify(path)
    assert caught.value.hint == f"without it, the one before counts: rm -r {path}"


SAVES = """
import os, sys
from pathlib import Path
import torch
from post_platform.training.checkpoint_store import Store

def save_for_ever(folder):
    store = Store(folder)
    store.claim()
    assert not list(folder.glob(".step_*")), "leftovers are cleared"
    step = store.committed_step()
    if step:
        assert (torch.load(store.latest() / "optimizer.pt", weights_only=True) == step).all()
    print("from", step, flush=True)
    while True:
        step += 1

        def write(path):
            for number in range(4):
                (path / f"part_{number}").write_bytes(bytes([step % 256]) * 100_000)
            torch.save(torch.full((50_000,), step), path / "optimizer.pt")
            (path / "state.json").write_text('{"score": %s}' % (0.9 if step == 1 else "null"))

        store.commit(step, write, keep=1)
        print("committed", step, flush=True)

torch.set_num_threads(1)
for _ in sys.stdin:
    child = os.fork()
    if not child:
        save_for_ever(Path(sys.argv[1]))
    print("pid", child, flush=True)
    os.waitpid(child, 0)
    print("dead", child, flush=True)
"""


def test_kill_9_at_random_moments_of_a_loop_of_saves(tmp_path):
    """Twenty writers die at random: the newest checkpoint is whole each time, and no committed one is lost."""
    rng, committed, half = random.Random(0), 0, 0
    writers = subprocess.Popen(
        [sys.executable, "-c", SAVES, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'model'}"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(20):
        writers.stdin.write("another\n")
        writers.stdin.flush()
        said = dict(writers.stdout.readline().split() for _ in range(2))
        assert committed <= int(said["from"]) <= committed + 1
        time.sleep(rng.uniform(0.01, 0.15))
        os.kill(int(said["pid"]), signal.SIGKILL)
        while (line := writers.stdout.readline().split())[0] != "dead":
            committed = int(line[1])
        half += len(list(tmp_path.glob(".step_*.partial")))
        if newest := Store(tmp_path).latest():  # verified
            assert checkpoint.step_of(newest.name) in (committed, committed + 1)
            assert Store(tmp_path).best() == "step_00000001"
        for path in checkpoint.whole(tmp_path):
            checkpoint.verify(path)
    writers.stdin.close()
    assert writers.wait(10) == 0
    assert committed > 20, "they did save"
    assert half, "some died inside a save"
    assert len(checkpoint.whole(tmp_path)) <= 3  # the newest, the best, and one that a kill kept from being dropped


def test_one_task_at_a_time_and_its_error_where_it_is_waited_for():
    task, go, done = Background(), threading.Event(), []

    def slow():
        assert go.wait(10)
        done.append("slow")

    task.wait()  # nothing to wait for
    task.start(slow)
    task.check()  # does not wait
    assert done == []
    threading.Timer(0.05, go.set).start()
    task.start(lambda: done.append("next"))
    assert done[0] == "slow"
    task.wait()
    assert done == ["slow", "next"]

    task.start(lambda: 1 / 0)
    time.sleep(0.05)
    with pytest.raises(ZeroDivisionError):
        task.check()
    task.wait()  # told once
    task.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        task.start(lambda: done.append("never"))
    assert done == ["slow", "next"]


def test_a_snapshot_does_not_change_and_uses_its_memory_again():
    weight = torch.arange(6.0).reshape(1, 2, 1, 3).to(memory_format=torch.channels_last)
    tree = {"state": {0: {"step": torch.tensor(1.0), "m": weight}}, "groups": [{"betas": (0.9, 0.99), "lr": 0.1}]}
    first = snapshot(tree)
    weight += 1
    assert torch.equal(first["state"][0]["m"].flatten(), torch.arange(6.0))
    assert first["groups"] == [{"betas": (0.9, 0.99), "lr": 0.1}]
    assert first["state"][0]["m"].is_contiguous()
    memory = first["state"][0]["m"].data_ptr()
    second = snapshot(tree, first)
    assert second["state"][0]["m"].data_ptr() == memory
    assert torch.equal(second["state"][0]["m"], weight)
    tree["state"][1] = {"m": torch.ones(2)}  # a tensor that came later
    assert torch.equal(snapshot(tree, second)["state"][1]["m"], torch.ones(2))


def test_the_weights_alone_are_taken_out_averaged_and_with_what_they_were_trained_on(tmp_path):
    """Of a run by its best; without optimiser, ledger, paths or addresses but those of the shards."""
    own, averaged = (Post(3, "small", norm="group") for _ in range(2))

    def write(path):
        save_model(path, own, ("a", "b", "c"), (True, False, False))
        save_weights(path / "ema.safetensors", averaged.state_dict())
        torch.save({"state": {}}, path / "optimizer.pt")
        config = "data.root: /shards\ndata.datasets: [kitti_mots]\ndata.train_split: train\nmlflow.uri: http://host\n"
        (path / "state.json").write_text(json.dumps({"step": 2, "score": 0.5, "config": config, "mlflow_uri": "u"}))

    checkpoint.save(tmp_path / "run/checkpoints", 2, write, keep=1)
    command = [sys.executable, ROOT / "pipelines/import_weights.py", "run/best", "--out", "out", "--json", "j.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"run/best: ema.safetensors\ncheckpoint: {tmp_path}/out\n"
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"model.json", "model.safetensors", "state.json", "MANIFEST.json"}
    checkpoint.verify(out)
    found, card = open_model(out)
    assert all(
        torch.equal(a, b) for a, b in zip(found.state_dict().values(), averaged.state_dict().values(), strict=True)
    )
    assert card.class_names == ("a", "b", "c")
    assert (out / "state.json").read_text().count("data.") == 3
    assert "host" not in (out / "state.json").read_text()
    told = json.loads((tmp_path / "j.json").read_text())
    assert told["taken_from"]["checkpoint"] == str(tmp_path / "run/checkpoints/step_00000002")
    assert told["files"] == json.loads((out / "MANIFEST.json").read_text())["files"]
    refused = subprocess.run([*command[:-3], "run"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: --out {tmp_path}/run holds other files")
