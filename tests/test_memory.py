"""Peak memory counts a process, all it started, and shared pages once."""

import subprocess
import sys
from pathlib import Path

import pytest

from post_platform.memory import PeakMemory, proportional_bytes


def process(root, number, parent, kilobytes, name="python"):
    folder = root / str(number)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{number} ({name}) S {parent} 1 1 0 -1")
    (folder / "smaps_rollup").write_text(f"00400000-7fff rollup\nRss: 999999 kB\nPss: {kilobytes} kB\nPss_Anon: 5 kB\n")


def test_descendants_are_added_up_and_strangers_are_not(tmp_path):
    process(tmp_path, 10, 1, 100)
    process(tmp_path, 11, 10, 20, "a) b (c")  # a name with brackets and spaces
    process(tmp_path, 12, 11, 3)
    process(tmp_path, 50, 1, 7_000)
    (tmp_path / "self").symlink_to(tmp_path / "10")
    assert proportional_bytes(tmp_path) == 123 * 1024


def test_a_process_that_ended_meanwhile_counts_nothing(tmp_path):
    process(tmp_path, 10, 1, 100)
    process(tmp_path, 11, 10, 20)
    (tmp_path / "11/smaps_rollup").unlink()
    (tmp_path / "12").mkdir()
    (tmp_path / "self").symlink_to(tmp_path / "10")
    assert proportional_bytes(tmp_path) == 100 * 1024


def test_nothing_where_there_is_no_proc(tmp_path):
    assert proportional_bytes(tmp_path / "none") == 0


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc")
def test_a_child_s_memory_is_seen():
    before = proportional_bytes()
    code = "x = bytearray(80_000_000); x[::4096] = b'x' * len(x[::4096]); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        with PeakMemory() as memory:
            pass
        during = proportional_bytes()
        child.communicate(b"\n")
    assert during - before > 70_000_000
    assert memory.gigabytes * 1e9 > before + 70_000_000
