"""Local folders and S3 behave alike; S3 is a dictionary behind the client's own method names."""

import io
import os

import pytest
from botocore.exceptions import ClientError

from post_platform import storage
from post_platform.errors import DataError


class Bucket:
    """The six calls that storage makes, answered as S3 does (two keys per page)."""

    def __init__(self):
        self.objects = {}

    def put_object(self, Bucket, Key, Body):
        self.objects[Key] = bytes(Body)

    def get_object(self, Bucket, Key, Range=None):
        if Key not in self.objects:
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        first, last = map(int, Range.removeprefix("bytes=").split("-")) if Range else (0, 1 << 40)
        return {"Body": io.BytesIO(self.objects[Key][first : last + 1])}

    def delete_object(self, Bucket, Key):
        self.objects.pop(Key, None)

    def list_objects_v2(self, Bucket, Prefix, MaxKeys):
        return {"Contents": [{"Key": key} for key in sorted(self.objects) if key.startswith(Prefix)][:MaxKeys]}

    def get_paginator(self, name):
        assert name == "list_objects_v2"
        return self

    def paginate(self, Bucket, Prefix, Delimiter):
        inside = sorted(key for key in self.objects if key.startswith(Prefix))
        names = [key.removeprefix(Prefix) for key in inside]
        yield {"Contents": [{"Key": Prefix + name} for name in names if "/" not in name]}
        yield {
            "CommonPrefixes": [
                {"Prefix": f"{Prefix}{name}/"} for name in sorted({n.split("/")[0] for n in names if "/" in n})
            ]
        }


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path, monkeypatch):
    if request.param == "local":
        return str(tmp_path)
    bucket = Bucket()
    monkeypatch.setattr(storage, "_client", lambda: bucket)
    return "s3://bucket/prefix"


def test_write_read_list_delete(root):
    path = storage.join(root, "a", "b.bin")
    assert not storage.exists(path)
    storage.write_bytes(path, b"0123456789")
    storage.write_bytes(storage.join(root, "c.bin"), b"")
    assert storage.exists(path)
    assert storage.exists(storage.join(root, "a"))
    assert not storage.exists(storage.join(root, "a", "b"))  # a prefix of a name is no file
    assert storage.read_bytes(path) == b"0123456789"
    assert storage.read_range(path, 3, 4) == b"3456"
    assert storage.list_names(root) == ["a", "c.bin"]
    assert storage.list_names(storage.join(root, "a")) == ["b.bin"]
    assert storage.list_names(storage.join(root, "none")) == []
    storage.delete(path)
    storage.delete(path)
    assert not storage.exists(path)


def test_missing_and_short_files_are_named(root):
    path = storage.join(root, "x.tar")
    with pytest.raises(DataError, match=r"x.tar: not found"):
        storage.read_bytes(path)
    storage.write_bytes(path, b"0123")
    with pytest.raises(DataError, match=r"x.tar: ends after byte 4, expected 12: the file is truncated"):
        storage.read_range(path, 2, 10)


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


def test_refused_access_says_so_without_credentials(monkeypatch):
    class Refusing:
        def get_object(self, **_):
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "secret"}}, "GetObject")

    monkeypatch.setattr(storage, "_client", Refusing)
    with pytest.raises(DataError, match="s3://bucket/key: AccessDenied") as error:
        storage.read_bytes("s3://bucket/key")
    assert "secret" not in str(error.value)
