"""A run's checkpoints on S3, on moto's server over HTTP: whole there or nowhere, found by a machine without a disk."""

import json
import threading

import pytest

from post_platform import storage
from post_platform.errors import DataError, PostError, StorageError
from post_platform.training import checkpoint
from post_platform.training.checkpoint_store import Store, Superseded
from post_platform.training.checkpoint_writer import Background
from post_platform.training.journal import restore

pytest_plugins = ("s3_server",)


@pytest.fixture
def run(bucket, monkeypatch, tmp_path):
    """The address of a run's checkpoints; a store that fails is given up soon."""
    monkeypatch.setattr(storage, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"s3://{bucket}/runs/mine/checkpoints"


def files(step, score=None, text="weights", size=1000):
    def write(path):
        (path / "model.bin").write_bytes((text * size)[:size].encode())
        (path / "state.json").write_text(json.dumps({"step": step, "score": score}))

    return write


def opened(folder, run):
    store = Store(folder, run)
    store.claim()
    return store


def test_another_machine_continues_from_the_newest(run, tmp_path):
    one = opened(tmp_path / "one", run)
    assert (one.newest(), one.committed_step(), one.latest()) == (None, 0, None)
    for step in (2, 4):
        one.commit(step, files(step), keep=3)
    other = Store(tmp_path / "other", run)
    assert other.committed_step() == 4
    path = other.latest()
    assert path == tmp_path / "other" / one.newest()
    assert checkpoint.read_state(path)["step"] == 4
    checkpoint.verify(path)
    # Each is an ordinary checkpoint, which every command takes.
    assert checkpoint.read_state(checkpoint.fetch(one.address(one.newest())))["step"] == 4


def test_a_checkpoint_is_copied_once_and_again_when_the_copy_is_damaged(proxy, run, tmp_path):
    opened(tmp_path / "one", run).commit(2, files(2), keep=3)
    other = Store(tmp_path / "other", run)

    def transfers():
        proxy.reset()
        path = other.latest()
        return path, sum(method == "GET" and "model.bin" in target for method, target in proxy.requests)

    path, number = transfers()
    assert number == 1
    assert transfers() == (path, 0)
    (path / "model.bin").write_text("damaged")
    assert transfers()[1] == 1
    checkpoint.verify(path)


def test_large_files_go_in_parts_and_faults_on_the_way_are_overcome(proxy, run, tmp_path):
    proxy.inject("answer", method="PUT", target="partNumber=2", times=2)
    proxy.inject("reset", method="PUT", target="MANIFEST")
    opened(tmp_path / "one", run).commit(2, files(2, size=storage.PART_BYTES + 5), keep=3)
    assert (Store(tmp_path / "other", run).latest() / "model.bin").stat().st_size == storage.PART_BYTES + 5
    assert any("partNumber=2" in target for _, target in proxy.requests)


def test_the_newest_and_the_best_stay_there_and_one_copy_here(run, tmp_path):
    store = opened(tmp_path / "one", run)
    for step, score in {2: 0.7, 4: 0.3, 6: None, 8: 0.4}.items():
        store.commit(step, files(step, score), keep=2)
    assert [checkpoint.step_of(name) for name in store.names()] == [2, 6, 8]
    assert [path.name for path in checkpoint.whole(tmp_path / "one")] == [store.newest()]
    assert {name.split("/")[0] for name in storage.list_files(run)} == {".writer", *store.names()}
    assert checkpoint.step_of(store.best()) == 2
    home = run.removesuffix("/checkpoints")
    assert checkpoint.read_state(checkpoint.fetch(f"{home}/best"))["step"] == 2
    assert checkpoint.read_state(checkpoint.fetch(f"{home}/latest"))["step"] == 8


@pytest.mark.parametrize("target", ["model.bin", "state.json", "MANIFEST.json"])
def test_an_upload_that_fails_leaves_the_one_before(proxy, run, tmp_path, caplog, target):
    store = opened(tmp_path / "one", run)
    store.commit(2, files(2), keep=1)
    proxy.inject("answer", method="PUT", target=target, times=1 << 20)
    with pytest.raises(StorageError, match=target):
        store.commit(4, files(4), keep=1)
    proxy.reset()
    other = Store(tmp_path / "other", run)
    assert other.committed_step() == 2
    checkpoint.verify(other.latest())
    half = [name for name in storage.list_names(run) if name.startswith("step_00000004")]
    if half:  # the first file was not the one that failed
        assert f"ignoring half-written checkpoint {run}/{half[0]}" in caplog.text
    other.claim()
    assert {name.split("/")[0] for name in storage.list_files(run)} == {".writer", other.newest()}


def test_damage_is_named_with_the_way_out(run, tmp_path, direct):
    store = opened(tmp_path / "one", run)
    store.commit(2, files(2), keep=3)
    source = store.address(store.newest())
    bucket, _, key = source.removeprefix("s3://").partition("/")
    direct.put_object(Bucket=bucket, Key=f"{key}/model.bin", Body=b"weighty")
    with pytest.raises(DataError, match=rf"^checkpoint {source}: model.bin is damaged \(sha256") as caught:
        Store(tmp_path / "other", run).latest()
    assert caught.value.hint == f"copy it there again: {source}"
    assert not checkpoint.whole(tmp_path / "other")


def test_a_manifest_whose_files_a_late_cleaning_took_does_not_count(run, tmp_path, caplog):
    store = opened(tmp_path / "one", run)
    for step in (2, 4):
        store.commit(step, files(step), keep=3)
    newest = store.address(store.newest())
    storage.delete(f"{newest}/model.bin")
    assert Store(tmp_path / "other", run).committed_step() == 2
    assert f"ignoring checkpoint {newest}: it lacks files that its manifest lists" in caplog.text


def test_a_late_writer_neither_commits_nor_spoils_what_others_write_at_the_same_step(run, tmp_path):
    late = opened(tmp_path / "late", run)
    late.commit(2, files(2), keep=3)
    writing, go = threading.Event(), threading.Event()

    def hangs(path):
        files(4, text="late")(path)
        writing.set()
        assert go.wait(30)

    task = Background()
    task.start(lambda: late.commit(4, hangs, keep=3))
    assert writing.wait(10)
    new = opened(tmp_path / "new", run)
    assert new.committed_step() == 2
    new.commit(4, files(4, text="new"), keep=3)
    go.set()
    with pytest.raises(Superseded):
        task.wait()
    assert [checkpoint.step_of(name) for name in new.names()] == [2, 4]
    assert (Store(tmp_path / "third", run).latest() / "model.bin").read_text().startswith("new")


def test_a_writer_that_its_run_has_left_behind(run, tmp_path):
    def left():
        raise PostError("run 'mine' has been continued by another process")

    store = opened(tmp_path / "one", run)
    with pytest.raises(PostError, match="continued by another process"):
        store.commit(2, files(2), keep=3, fence=left)
    assert Store(tmp_path / "other", run).newest() is None


def test_what_a_run_s_folder_holds_comes_with_the_checkpoint(tmp_path):
    newest = tmp_path / "step_00000004"
    newest.mkdir()
    state = {"config": "seed: 1\n", "mlflow_uri": "http://host", "mlflow_run_id": "abc"}
    (newest / "state.json").write_text(json.dumps(state))
    (newest / "ledger.jsonl").write_text("a line\n")
    restore(tmp_path / "run", newest)
    assert (tmp_path / "run/config.yaml").read_text() == "seed: 1\n"
    known = json.loads((tmp_path / "run/run.json").read_text())
    assert known == {"mlflow_uri": "http://host", "mlflow_run_id": "abc"}
    assert (tmp_path / "run/ledger.jsonl").read_text() == "a line\n"
