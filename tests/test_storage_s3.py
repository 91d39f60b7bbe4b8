"""S3 as it fails: moto's real server behind a proxy that answers with errors, resets, truncates, damages and stalls.

Every operation, every fault: once, and it succeeds with the right bytes; forever, and one line names the object.
"""

import hashlib
import logging
import os
import pickle
import random
import signal
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from fault_proxy import FOREVER

from post_platform import storage
from post_platform.errors import ConfigError, DataError, PostError, StorageError

pytest_plugins = ("s3_server",)

SMALL = random.Random(1).randbytes(20_000)
PART = 5 << 20  # the smallest that S3 accepts
LARGE = random.Random(2).randbytes(PART + 1234)  # two parts


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """No waiting between attempts, neither ours nor the client's."""
    monkeypatch.setattr(storage, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.001)
    monkeypatch.setattr(storage, "PART_BYTES", PART)


@pytest.fixture
def path(bucket):
    return f"s3://{bucket}/runs/a.bin"


def stored(direct, path):
    """The object's bytes as the server holds them."""
    bucket, key = path.removeprefix("s3://").split("/", 1)
    return direct.get_object(Bucket=bucket, Key=key)["Body"].read()


def open_uploads(direct, path):
    return direct.list_multipart_uploads(Bucket=path.split("/")[2]).get("Uploads", [])


def upload(path, folder):
    (folder / "local").write_bytes(LARGE)
    storage.upload_file(folder / "local", path)


def download(path, folder):
    storage.download(path, folder / "copy")
    return (folder / "copy").read_bytes()


def read_range(path, _):
    return storage.read_range(path, 100, 10_000, zlib.crc32(SMALL[100:10_100]))


# The operation, the object's bytes, and a pattern of the requests that shall fail.
WRITES = {
    "write_bytes": (lambda path, _: storage.write_bytes(path, SMALL), SMALL, r"a\.bin"),
    "upload_file": (upload, LARGE, "partNumber=1"),
}
# The operation, the object's bytes, what it gives, the pattern, and how many such requests it makes when none fails.
READS = {
    "read_bytes": (lambda path, _: storage.read_bytes(path), SMALL, SMALL, r"a\.bin", 1),
    "read_range": (read_range, SMALL, SMALL[100:10_100], r"a\.bin", 1),
    "list_names": (lambda path, _: storage.list_names(path.removesuffix("/a.bin")), SMALL, ["a.bin"], "list-type=2", 1),
    "download": (download, LARGE, LARGE, r"a\.bin", 2),
}
FAULTS = {
    "SlowDown": {"kind": "answer"},
    "InternalError": {"kind": "answer", "status": 500, "code": "InternalError"},
    "reset": {"kind": "reset"},
    "lost": {"kind": "lost"},
    "truncated": {"kind": "truncate", "after": 50},
    "wrong checksum": {"kind": "flip"},
}
WRITE_FAULTS = sorted(FAULTS.keys() - {"truncated"})
READ_FAULTS = [
    (name, fault) for name in READS for fault in FAULTS if (name, fault) != ("list_names", "wrong checksum")
]  # S3 gives no checksum of a listing


@pytest.mark.parametrize("fault", WRITE_FAULTS)
@pytest.mark.parametrize("name", WRITES)
def test_a_write_succeeds_after_a_fault(name, fault, path, proxy, direct, tmp_path):
    write, content, target = WRITES[name]
    met = proxy.inject(method="PUT", target=target, **FAULTS[fault])
    write(path, tmp_path)
    assert stored(direct, path) == content
    assert met.seen == 2  # the one that failed, and one more
    assert open_uploads(direct, path) == []


@pytest.mark.parametrize(("name", "fault"), READ_FAULTS)
def test_a_read_succeeds_after_a_fault(name, fault, path, proxy, tmp_path):
    read, content, expected, target, requests = READS[name]
    storage.write_bytes(path, content)
    proxy.inject(method="GET", target=target, **FAULTS[fault])
    assert read(path, tmp_path) == expected
    assert requests < proxy.count("GET", target) <= 2 * requests


@pytest.mark.parametrize("fault", ["SlowDown", "reset", "lost", "wrong checksum"])
@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_always_fails_says_so_and_leaves_the_old_object(name, fault, path, proxy, direct, tmp_path):
    write, _, target = WRITES[name]
    storage.write_bytes(path, b"old")
    proxy.reset()
    proxy.inject(method="PUT", target=target, times=FOREVER, **FAULTS[fault])
    with pytest.raises(StorageError, match=f"^{path}: .*; given up after 5 attempts$"):
        write(path, tmp_path)
    if (name, fault) != ("write_bytes", "lost"):  # there the store has it, and nobody heard
        assert stored(direct, path) == b"old"
    assert 5 <= proxy.count("PUT", target) <= storage.ATTEMPTS * storage.REQUEST_ATTEMPTS
    assert open_uploads(direct, path) == []


@pytest.mark.parametrize(("name", "fault"), [pair for pair in READ_FAULTS if pair[1] not in ("InternalError", "lost")])
def test_a_read_that_always_fails_says_so_and_gives_nothing(name, fault, path, proxy, tmp_path):
    read, content, _, target, requests = READS[name]
    storage.write_bytes(path, content)
    proxy.inject(method="GET", target=target, times=FOREVER, **FAULTS[fault])
    place = path if name != "list_names" else path.removesuffix("/a.bin")
    with pytest.raises(StorageError, match=f"^{place}: .*; given up after 5 attempts$"):
        read(path, tmp_path)
    most = storage.ATTEMPTS * storage.REQUEST_ATTEMPTS * requests * (storage.REQUEST_ATTEMPTS if requests > 1 else 1)
    assert 5 <= proxy.count("GET", target) <= most
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_falls_silent_is_asked_again_and_given_up_in_the_end(path, proxy, monkeypatch):
    storage.write_bytes(path, SMALL)
    monkeypatch.setattr(storage, "READ_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(storage, "REQUEST_ATTEMPTS", 1)
    storage._new_client.cache_clear()
    silent = proxy.inject("stall", target=r"a\.bin", seconds=0.4)
    assert storage.read_bytes(path) == SMALL
    assert silent.seen >= 2
    proxy.inject("stall", target=r"a\.bin", seconds=0.4, times=FOREVER)
    started = time.monotonic()
    with pytest.raises(StorageError, match=f"^{path}: the store does not answer; given up after 5 attempts$"):
        storage.read_range(path, 0, 10)
    assert time.monotonic() - started < 10


def test_a_store_that_is_away_is_one_line(path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # which wins over AWS_ENDPOINT_URL
    storage._new_client.cache_clear()
    with pytest.raises(StorageError, match=f"^{path}: no connection to the store; given up after 5 attempts$") as error:
        storage.write_bytes(path, b"")
    assert "AWS_ENDPOINT_URL" in error.value.hint


def test_bytes_damaged_in_the_store_are_no_success(path, bucket, direct, tmp_path):
    """Another's object has no SHA-256; one of ours that does not match its own is refused, whatever the store says."""
    direct.put_object(Bucket=bucket, Key="foreign", Body=SMALL)
    assert storage.read_bytes(f"s3://{bucket}/foreign") == SMALL
    direct.put_object(Bucket=bucket, Key="runs/a.bin", Body=SMALL, Metadata={"sha256": hashlib.sha256(b"").hexdigest()})
    for read in (storage.read_bytes, lambda path: storage.download(path, tmp_path / "copy")):
        with pytest.raises(StorageError, match=f"^{path}: its SHA-256 is not the one that it was written with; given"):
            read(path)
    with pytest.raises(StorageError, match=f"^{path}: bytes 100-10099 have CRC-32 5189df11, expected 00000001; given"):
        storage.read_range(path, 100, 10_000, crc32=1)
    assert list(tmp_path.iterdir()) == []


def test_every_request_that_writes_carries_a_checksum(path, proxy, direct):
    """The proxy compares it; here a client that sent none would have its damaged body accepted."""
    storage.write_bytes(path, LARGE)
    assert proxy.count("PUT", "partNumber=") == 2
    found = direct.head_object(Bucket=path.split("/")[2], Key="runs/a.bin", ChecksumMode="ENABLED")
    assert found["Metadata"]["sha256"] == hashlib.sha256(LARGE).hexdigest()
    assert found["ChecksumSHA256"]


def test_an_upload_whose_end_was_confirmed_to_nobody_is_made_again(path, proxy, direct, tmp_path):
    lost = proxy.inject("lost", method="POST", target="uploadId=")
    upload(path, tmp_path)
    assert lost.seen >= 2
    assert stored(direct, path) == LARGE
    assert open_uploads(direct, path) == []


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "AccessDenied", r"refused: AccessDenied \(HTTP 403\)"),
        (403, "InvalidAccessKeyId", r"refused: InvalidAccessKeyId \(HTTP 403\)"),
        (403, "SignatureDoesNotMatch", r"refused: SignatureDoesNotMatch \(HTTP 403\)"),
        (400, "ExpiredToken", r"refused: ExpiredToken \(HTTP 400\)"),
        (400, "AuthorizationHeaderMalformed", "the bucket lies in another region"),
        (301, "PermanentRedirect", "the bucket lies in another region"),
    ],
)
def test_a_refusal_is_final_and_tells_no_secret(status, code, message, path, proxy, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    (tmp_path / "local").write_bytes(SMALL)
    for method in ("GET", "PUT"):
        proxy.inject("answer", method=method, target=r"a\.bin", status=status, code=code, times=FOREVER)
    for action in (storage.read_bytes, lambda path: storage.upload_file(tmp_path / "local", path)):
        proxy.requests.clear()
        with pytest.raises(StorageError, match=f"^{path}: {message}$") as error:
            action(path)
        sent = proxy.count("GET", r"a\.bin") + proxy.count("PUT", r"a\.bin")
        assert sent <= (2 if status == 301 else 1)  # the client asks where the bucket lies, and tries there
        assert "AWS_" in error.value.hint
        for told in (str(error.value), error.value.hint, caplog.text):
            assert "AKIDEXAMPLE" not in told
            assert "not-a-secret" not in told


def test_no_credentials_is_one_line_without_a_request(path, proxy, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    storage._new_client.cache_clear()
    with pytest.raises(StorageError, match=f"^{path}: NoCredentialsError$") as error:
        storage.read_bytes(path)
    assert "AWS_ACCESS_KEY_ID" in error.value.hint
    assert proxy.requests == []


@pytest.mark.parametrize(
    "action",
    [
        storage.read_bytes,
        storage.exists,
        storage.list_names,
        storage.list_files,
        storage.delete,
        lambda path: storage.write_bytes(path, SMALL),
        lambda path: storage.write_bytes(path, LARGE),
    ],
)
def test_a_bucket_that_is_not_there_is_one_line(action, proxy):
    with pytest.raises(StorageError, match=r"^s3://no-such-bucket/a: there is no bucket 'no-such-bucket'$"):
        action("s3://no-such-bucket/a")
    assert len(proxy.requests) == 1


@pytest.mark.parametrize(
    "key", ["a b/c d", "zürich/日本.tar", "a+b=c&d/#?%2e%2e", "..a/b..", "-/~", "100%/'\"", "a\\b/c:d"]
)
def test_odd_names_are_names(key, bucket, direct):
    path = storage.join(f"s3://{bucket}", *key.split("/"))
    storage.write_bytes(path, b"0123")
    assert [entry["Key"] for entry in direct.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    assert storage.read_bytes(path) == b"0123"
    assert storage.read_range(path, 1, 2) == b"12"
    assert storage.list_files(f"s3://{bucket}/") == [key]
    assert storage.list_names(f"s3://{bucket}") == [key.split("/")[0]]
    assert storage.exists(path.rpartition("/")[0] + "/")
    storage.delete(path)
    assert not storage.exists(path)


@pytest.mark.parametrize(
    "path", ["s3://a/../b/c", "s3://a/b/..", "s3://a/./b", "s3://..", "s3://", "s3:///a", "s3:/a/b"]
)
def test_an_address_that_leads_elsewhere_is_refused_before_any_request(path, proxy):
    actions = [storage.absolute, storage.exists, storage.read_bytes, storage.list_names, storage.delete]
    for action in [*actions, lambda path: storage.write_bytes(path, b"")]:
        with pytest.raises(ConfigError, match=f"^{path}: "):
            action(path)
    assert proxy.requests == []


@pytest.mark.parametrize("path", ["gs://a/b", "https://host/a", "S3://a/b", "file:///a"])
def test_another_scheme_is_no_folder_of_that_name(path):
    with pytest.raises(ConfigError, match=rf"^{path}: expected a folder or s3://bucket/prefix$"):
        storage.absolute(path)


@pytest.mark.parametrize("bucket_name", ["white space", "ü"])
def test_an_impossible_bucket_is_a_mistake_in_the_address(bucket_name, proxy):
    with pytest.raises(ConfigError, match="no valid name of a bucket or an object"):
        storage.read_bytes(f"s3://{bucket_name}/a")


def test_an_endpoint_without_scheme_is_a_mistake_in_the_environment(path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    storage._new_client.cache_clear()
    with pytest.raises(ConfigError, match=r"^AWS_ENDPOINT_URL: not an address$"):
        storage.read_bytes(path)


def test_a_range_past_the_end_is_truncation_and_not_tried_again(path, proxy):
    storage.write_bytes(path, b"0123")
    for offset, length in ((2, 10), (4, 1), (9, 1)):
        proxy.reset()
        with pytest.raises(DataError, match=f"^{path}: ends .*: the file is truncated$"):
            storage.read_range(path, offset, length)
        assert proxy.count("GET") == 1
    assert storage.read_range(path, 9, 0) == b""


def test_neighbours_are_not_taken_for_the_folder_and_do_not_hide_it(bucket):
    for name in ("a-1", "a-2", "a.bin"):  # in a listing these stand before `a/`
        storage.write_bytes(f"s3://{bucket}/{name}", b"")
    assert not storage.exists(f"s3://{bucket}/a")
    storage.write_bytes(f"s3://{bucket}/a/b", b"")
    assert storage.exists(f"s3://{bucket}/a")
    assert storage.exists(f"s3://{bucket}")


def test_a_long_listing_comes_in_pages(bucket, proxy, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    names = [f"{number:02}" for number in range(5)]
    for name in names:
        storage.write_bytes(f"s3://{bucket}/a/{name}", b"")
    assert storage.list_names(f"s3://{bucket}/a") == names
    assert proxy.count("GET", "list-type=2") == 3


def test_threads_share_one_client_and_a_forked_child_makes_its_own(path):
    storage.write_bytes(path, SMALL)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda first: storage.read_range(path, first, 50), range(0, 4000, 50)))
        clients = set(pool.map(lambda _: id(storage._client()), range(100)))
    assert b"".join(found) == SMALL[:4000]
    assert clients == {id(storage._client())}
    with storage._making_client:  # another thread may hold it at the moment of the fork
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            os._exit(int(id(storage._client()) in clients))
    assert os.waitpid(child, 0)[1] == 0


def test_the_error_keeps_type_and_hint_on_its_way_from_a_ray_worker():
    error = pickle.loads(pickle.dumps(StorageError("s3://a/b: refused", "the hint")))
    assert (type(error), str(error), error.hint) == (StorageError, "s3://a/b: refused", "the hint")
    assert isinstance(error, PostError)
