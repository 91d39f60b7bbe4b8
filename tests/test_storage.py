"""Local folders and S3 behave alike."""

import os

import pytest

from post_platform import storage
from post_platform.errors import DataError

pytest_plugins = ("s3_server",)


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    return str(tmp_path / "root") if request.param == "local" else f"s3://{request.getfixturevalue('bucket')}/prefix"


def test_write_read_list_delete(root):
    path = storage.join(root, "a", "b.bin")
    assert not storage.exists(path)
    storage.write_bytes(path, b"0123456789")
    storage.write_bytes(storage.join(root, "c.bin"), b"")
    assert storage.exists(path)
    assert storage.exists(storage.join(root, "a"))
    assert not storage.exists(storage.join(root, "a", "b"))  # a prefix of a name is no file
    assert storage.read_bytes(path) == b"0123456789"
    assert storage.read_bytes(storage.join(root, "c.bin")) == b""
    assert storage.read_range(path, 3, 4) == b"3456"
    assert storage.read_range(path, 3, 0) == b""
    assert storage.size(path) == 10
    assert storage.list_names(root) == ["a", "c.bin"]
    assert storage.list_names(storage.join(root, "a")) == ["b.bin"]
    assert storage.list_files(root) == ["a/b.bin", "c.bin"]
    assert storage.list_names(storage.join(root, "none")) == storage.list_files(storage.join(root, "none")) == []
    storage.delete(path)
    storage.delete(path)
    assert not storage.exists(path)


def test_missing_and_short_files_are_named(root, tmp_path):
    path = storage.join(root, "x.tar")
    for action in (storage.read_bytes, storage.size, storage.modified, lambda path: storage.read_range(path, 0, 1)):
        with pytest.raises(DataError, match=r"/x.tar: not found$"):
            action(path)
    with pytest.raises(DataError, match=r"/x.tar: not found$"):
        storage.download(path, tmp_path / "copy.tar")
    assert not (tmp_path / "copy.tar").exists()
    storage.write_bytes(path, b"0123")
    with pytest.raises(DataError, match=r"x.tar: ends after byte 4, expected 12: the file is truncated"):
        storage.read_range(path, 2, 10)


def test_a_range_is_compared_with_its_checksum(root, monkeypatch):
    monkeypatch.setattr(storage, "BACKOFF_SECONDS", 0.001)
    path = storage.join(root, "x.tar")
    storage.write_bytes(path, b"..123456789..")
    assert storage.read_range(path, 2, 9, crc32=0xCBF43926) == b"123456789"  # the check value of CRC-32 itself
    with pytest.raises(DataError, match=r"x.tar: bytes 1-9 have CRC-32 53f84859, expected cbf43926"):
        storage.read_range(path, 1, 9, crc32=0xCBF43926)


def test_files_go_there_and_back(root, tmp_path):
    path = storage.join(root, "runs", "weights.bin")
    (tmp_path / "mine").write_bytes(b"0123")
    storage.upload_file(tmp_path / "mine", path)
    assert storage.read_bytes(path) == b"0123"
    (tmp_path / "copy").write_bytes(b"an older and longer one")
    storage.download(path, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"0123"
    with pytest.raises(DataError, match=rf"^{tmp_path}/none: not found$"):
        storage.upload_file(tmp_path / "none", path)
    assert storage.read_bytes(path) == b"0123"


def test_a_file_appears_when_it_is_written_whole(root):
    path = storage.join(root, "000000.tar")
    storage.write_bytes(path, b"old")
    with pytest.raises(DataError, match="no such frame"), storage.writing(path) as file:
        write_and_fail(file)
    assert storage.read_bytes(path) == b"old"
    with storage.writing(path) as file:
        file.write(b"new")
        assert storage.read_bytes(path) == b"old"
    assert storage.read_bytes(path) == b"new"
    assert storage.list_names(root) == ["000000.tar"]


def write_and_fail(file):
    file.write(b"half")
    raise DataError("no such frame")


def test_when_a_file_was_written_is_known_to_the_second(root, tmp_path):
    (tmp_path / "before").touch()
    storage.write_bytes(storage.join(root, "after"), b"")
    assert abs(storage.modified(storage.join(root, "after")) - storage.modified(tmp_path / "before")) < 5


def test_room_is_known_where_it_ends(tmp_path):
    disk = os.statvfs(tmp_path)
    assert storage.free_bytes(tmp_path / "not" / "there") == pytest.approx(disk.f_bavail * disk.f_frsize, rel=0.1)
    assert storage.free_bytes("s3://bucket/prefix") is None


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    storage.write_bytes(tmp_path / "manifest.json", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DataError, match=r"manifest.json: No space left on device"):
        storage.write_bytes(tmp_path / "manifest.json", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("manifest.json", b"old")]


def test_absolute_is_the_same_place_for_every_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("shards") == str(tmp_path / "shards")
    assert storage.absolute("s3://bucket/prefix/") == "s3://bucket/prefix"
    assert storage.absolute("s3://bucket/") == "s3://bucket"
