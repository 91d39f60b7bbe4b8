"""Checkpoints are whole or do not exist; damage is named; the newest few are kept."""

import json

import pytest

from post_platform.errors import DataError
from post_platform.training import checkpoint


def save(folder, step, keep=10, text="weights"):
    def write(path):
        (path / "model.bin").write_text(text)
        (path / "state.json").write_text(json.dumps({"step": step}))

    return checkpoint.save(folder, step, write, keep)


def test_a_saved_checkpoint_is_whole(tmp_path):
    path = save(tmp_path, 12)
    assert path == tmp_path / "step_00000012"
    assert checkpoint.latest(tmp_path) == path
    assert checkpoint.read_state(path) == {"step": 12}
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
    assert f"ignoring half-written checkpoint {tmp_path}/.step_00000004.partial" in caplog.text
    assert checkpoint.latest(save(tmp_path, 4).parent).name == "step_00000004", "the next attempt replaces it"
    assert not list(tmp_path.glob(".*"))


def test_a_folder_without_manifest_is_none(tmp_path):
    path = save(tmp_path, 2)
    (path / "MANIFEST.json").unlink()
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(DataError, match=r"step_00000002 is not a checkpoint: it has no MANIFEST.json$"):
        checkpoint.verify(path)


def test_saving_the_same_step_again_replaces_it(tmp_path):
    save(tmp_path, 2, text="old")
    path = save(tmp_path, 2, text="new")
    assert (path / "model.bin").read_text() == "new"
    checkpoint.verify(path)


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
