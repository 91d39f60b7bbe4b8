"""How scripts end: one line for a user's mistake, and a folder that cannot be written is found before any work."""

import subprocess
import sys
from pathlib import Path

import pytest

from post_platform import command
from post_platform.errors import ConfigError, DataError, nearest

ROOT = Path(__file__).resolve().parent.parent


def test_a_mistake_is_one_line_and_its_hint(capsys):
    def main():
        raise DataError("kitti_mots: what", "do that")

    with pytest.raises(SystemExit) as left:
        command.run(main)
    assert left.value.code == 1
    assert capsys.readouterr().err == "error: kitti_mots: what\n  do that\n"


def test_ctrl_c_says_so(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        command.run(main)
    assert (left.value.code, capsys.readouterr().err) == (130, "stopped\n")


def test_a_folder_is_made_and_left_empty(tmp_path):
    command.check_folder(tmp_path / "a/b", "--out")
    assert list((tmp_path / "a/b").iterdir()) == []


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"^--out {tmp_path}/file/x: cannot write there: Not a directory$"):
        command.check_folder(tmp_path / "file/x", "--out")


def test_the_quickstart_refuses_a_file_at_once(tmp_path):
    (tmp_path / "file").touch()
    call = [sys.executable, str(ROOT / "pipelines/quickstart.py"), "--out", str(tmp_path / "file")]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: --out {tmp_path}/file: cannot write there: ")
    assert "Traceback" not in done.stderr


def test_nearest_names():
    assert nearest("kiti", ["kitti", "coco"]) == "; did you mean kitti?"
    assert nearest("x", ["kitti", "coco"]) == "; valid: coco, kitti"
    assert nearest("x", []) == ""
