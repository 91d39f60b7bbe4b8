"""An HTTP proxy before an S3 server that fails as networks and stores do, on the requests that a test names.

Like S3, and unlike moto, it compares each request's body with the checksum that the client sent.
"""

import base64
import hashlib
import http.client
import re
import socket
import struct
import threading
import time
import zlib
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "date", "server"}
CHECKSUMS = {
    "x-amz-checksum-sha256": lambda body: hashlib.sha256(body).digest(),
    "x-amz-checksum-crc32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
}
FOREVER = 1 << 30


@dataclass
class Fault:
    """What happens to the requests that match, from the `first` on, `times` times.

    kind: `answer` (an error with `code` and `status`, never forwarded), `reset` (TCP reset after `after` bytes of the
    body: the response's or, of a PUT, the request's), `lost` (forwarded, then reset without an answer), `truncate`
    (the connection ends in mid-body, the announced length being right), `flip` (one bit of the body), `stall`
    (`seconds` of silence before the answer).
    """

    kind: str
    method: str = "GET"
    target: str = ""  # a regular expression, found in path and query
    first: int = 1
    times: int = 1
    status: int = 503
    code: str = "SlowDown"
    after: int = 1000
    seconds: float = 1.0
    seen: int = 0

    def applies(self, method: str, target: str) -> bool:
        """Count a request that matches; True when it is one of those that fail."""
        if method != self.method or not re.search(self.target, target):
            return False
        self.seen += 1
        return self.first <= self.seen < self.first + self.times


class FaultProxy:
    """Listens on a free loopback port; `requests` is what came, as (method, path with query)."""

    def __init__(self, host, port):
        self.upstream = (host, port)
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        listener.daemon_threads = True
        listener.handle_error = lambda *_: None  # a client that hangs up is no event here
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{listener.server_address[1]}"

    def reset(self):
        """Forget all faults and requests."""
        with self.lock:
            self.faults, self.requests = [], []

    def inject(self, kind, **settings):
        """Add a fault; of several that match a request, the first added wins."""
        fault = Fault(kind, **settings)
        with self.lock:
            self.faults.append(fault)
        return fault

    def count(self, method, target=""):
        """How many requests of this method came whose path or query has the regular expression."""
        with self.lock:
            return sum(method == seen and bool(re.search(target, path)) for seen, path in self.requests)

    def fault_for(self, method, target):
        """Note a request; the fault that it meets, if any."""
        with self.lock:
            self.requests.append((method, target))
            applying = [fault for fault in self.faults if fault.applies(method, target)]
            return applying[0] if applying else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: FaultProxy

    def handle_request(self):
        fault = self.owner.fault_for(self.command, self.path)
        length = int(self.headers.get("Content-Length", 0))
        if fault and fault.kind == "reset" and self.command == "PUT":
            self.rfile.read(min(fault.after, length))
            return self.cut()
        body = self.rfile.read(length)
        if fault and fault.kind == "stall":
            time.sleep(fault.seconds)
        if fault and fault.kind == "answer":
            return self.answer(fault.status, fault.code)
        if fault and fault.kind == "flip" and self.command == "PUT":
            body = flipped(body)
        for header, digest in CHECKSUMS.items():
            if header in self.headers and base64.b64decode(self.headers[header]) != digest(body):
                return self.answer(400, "BadDigest")
        response, content = self.forward(body)
        if fault and fault.kind == "lost":
            return self.cut()
        if fault and fault.kind == "flip" and self.command == "GET":
            content = flipped(content)
        self.reply(response.status, response.getheaders(), content, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_request

    def forward(self, body):
        upstream = http.client.HTTPConnection(*self.owner.upstream, timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, body=body, headers={**headers, "Connection": "close"})
            response = upstream.getresponse()
            return response, response.read()
        finally:
            upstream.close()

    def reply(self, status, headers, content, fault=None):
        self.send_response(status)
        length = dict((name.lower(), value) for name, value in headers).get("content-length")
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.kind in ("reset", "truncate"):
            self.wfile.write(content[: min(fault.after, len(content) - 1)])
            if fault.kind == "reset":
                self.cut()
            self.close_connection = True
            return
        self.wfile.write(content)

    def answer(self, status, code):
        """An error as S3 words it; its message holds what must never reach a user."""
        text = f"<Error><Code>{code}</Code><Message>AKIDEXAMPLE said not-a-secret</Message></Error>"
        self.reply(status, [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else text.encode())

    def cut(self):
        """Reset the connection, as a dying host does, instead of closing it."""
        self.wfile.flush()
        time.sleep(0.01)  # what was sent before shall arrive before
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()  # it holds the connection open
        self.connection.close()

    def log_message(self, *_):
        pass


def flipped(body):
    """The same bytes but for one bit in the middle."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :] if body else body
