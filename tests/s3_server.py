"""moto's S3 over real HTTP on a loopback port, behind our fault-injecting proxy, as fixtures for any test file.

Use it with `pytest_plugins = ("s3_server",)`.
"""

import logging
import uuid
from functools import cache

import boto3
import pytest
from fault_proxy import FaultProxy
from moto.server import ThreadedMotoServer

from post_platform import storage

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
UNSET = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "HTTP_PROXY", "http_proxy")


@cache
def _started():
    """One server and one proxy per test process, as daemon threads; the proxy, and a client that goes past it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = ENVIRONMENT["AWS_ACCESS_KEY_ID"], ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]
    client = boto3.session.Session(*keys, region_name="us-east-1").client("s3", endpoint_url=f"http://{host}:{port}")
    return FaultProxy(host, port), client


@pytest.fixture
def proxy(monkeypatch, tmp_path):
    """Point boto3's standard chain at the proxy, for this process and its children; it injects no fault yet."""
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "no-such-file"))
    proxy = _started()[0]
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": proxy.url}.items():
        monkeypatch.setenv(name, value)
    storage._new_client.cache_clear()
    proxy.reset()
    yield proxy
    proxy.reset()
    storage._new_client.cache_clear()


@pytest.fixture
def direct(proxy):
    """A client that talks to moto past the proxy, and past `storage`."""
    return _started()[1]


@pytest.fixture
def bucket(direct):
    """Name of a new, empty bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    direct.create_bucket(Bucket=name)
    return name
