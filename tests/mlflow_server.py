"""A real `mlflow server` for tests, which can be killed and started again over the same database."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
ENVIRONMENT |= {
    "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'model'}",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a second process that takes as long to start as the server
}


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


class Server:
    """The server's processes; its address stays the same over restarts."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self, wait=True):
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/s.db"]
        files = ["--artifacts-destination", str(self.folder / "files")]
        with (self.folder / "server.log").open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *where, *store, *files],
                cwd=self.folder,
                env=ENVIRONMENT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if wait:
            self.wait()

    def wait(self):
        wait_for(self.answers, 180)

    def answers(self):
        assert self.process.poll() is None, (self.folder / "server.log").read_text()
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
        except OSError:
            return False
        return True

    def send(self, number):
        """A signal to the server and its workers: SIGSTOP makes it hang, SIGCONT go on."""
        os.killpg(self.process.pid, number)

    def kill(self):
        self.send(signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()
