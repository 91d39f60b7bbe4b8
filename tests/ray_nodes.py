"""A Ray cluster of a few nodes on this host, each one a `ray start --block` process with its own ports and folders.

Nodes have addresses of their own (127.0.0.2, 127.0.0.3, ...), so that Ray takes them for different machines; for
127.0.0.1 it would take the host's. Jobs run where the head was started. Everything is ended by process id; other Rays
on the host are left alone. Two nodes are up after 18 s on two quiet cores; their processes' resident memory adds up to
2.3 GB, pages that they share counted each time.
"""

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RAY = (sys.executable, "-m", "ray.scripts.scripts")
OBJECT_STORE = 100 << 20
HEAD = "127.0.0.2"


class Node:
    """One `ray start --block`, in a session of its own."""

    def __init__(self, cluster, address, cpus, env):
        self.address, self.folder = address, Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets: short paths
        self.log = self.folder / "start.log"
        ports = free_ports(6)
        command = [
            *RAY, "start", "--block", "--disable-usage-stats",
            f"--node-ip-address={address}", f"--num-cpus={cpus}", f"--object-store-memory={OBJECT_STORE}",
            f"--temp-dir={self.folder}",
            f"--node-manager-port={ports[0]}", f"--object-manager-port={ports[1]}",
            f"--dashboard-agent-listen-port={ports[2]}", f"--dashboard-agent-grpc-port={ports[3]}",
            f"--runtime-env-agent-port={ports[4]}", f"--metrics-export-port={ports[5]}",
            *cluster,
        ]  # fmt: skip
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True
            )

    def processes(self, named=""):
        """Ids of this node's living processes whose command line holds `named`, oldest first."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line, environment = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
                ours = str(self.folder).encode() in line + environment
                if named.encode() in line and (ours or _descends(int(folder.name), self.process.pid)):
                    found.append(int(folder.name))
        return sorted(found)

    def kill(self, named="raylet/raylet"):
        """SIGKILL the processes whose command line holds `named`: the raylet, `gcs_server`, `RayTrainWorker`, ..."""
        for process in (killed := self.processes(named)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        assert killed, f"no {named} on {self.address}"

    def crash(self):
        """SIGKILL everything, as when the machine is gone."""
        for _ in range(3):  # what was started meanwhile, too
            for process in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """End the node, politely where it still answers, and remove its folder."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.crash()
        shutil.rmtree(self.folder, ignore_errors=True)


class Nodes:
    """A head with a job server, and `count - 1` more nodes; a context manager that leaves nothing behind.

    Args:
        count: nodes.
        cpus: slots of each node.
        env: what its processes inherit beyond the caller's environment, as an image would set it.
    """

    def __init__(self, count=2, cpus=2, env=None):
        self.port, self.jobs_port, self.client_port = free_ports(3)
        self.cpus = cpus
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
        self.env = inherited | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_worker_maximum_startup_concurrency": "2",
            "OMP_WAIT_POLICY": "passive",  # a worker alone on its node takes all cores, which the others have too
            "RAY_memory_monitor_refresh_ms": "0",  # each node would count the whole host's memory, and kill workers
        }
        self.client_env = self.env | {"RAY_ADDRESS": f"http://127.0.0.1:{self.jobs_port}"}
        self.env |= env or {}
        self.nodes, self.joined = [], 0
        try:
            self.start_head()
            for _ in range(count - 1):
                self.join()
            self.wait_for(count)
        except BaseException:
            self.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def gcs(self):
        """Address that drivers join."""
        return f"{HEAD}:{self.port}"

    def start_head(self):
        """Start the head, or a new one at the same ports after the last has crashed."""
        options = [
            "--head", f"--port={self.port}",
            *([f"--ray-client-server-port={self.client_port}"] if find_spec("grpc") else []),
            "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.jobs_port}",
        ]  # fmt: skip
        for old in self.nodes[:1]:
            shutil.rmtree(old.folder, ignore_errors=True)
        head = Node(options, HEAD, self.cpus, self.env)
        self.nodes[:1] = [head]
        _wait(lambda: _listens(HEAD, self.port) and _listens("127.0.0.1", self.jobs_port), head)
        return head

    def join(self):
        """Start one more node, at an address that no node had before."""
        self.joined += 1
        self.nodes.append(Node([f"--address={self.gcs}"], f"127.0.0.{self.joined + 2}", self.cpus, self.env))
        return self.nodes[-1]

    def alive(self):
        """Addresses of the nodes that the cluster counts as alive, to their ids."""
        script = (
            "import json, ray._raylet as r\n"
            f"found = r.GcsClient(address={self.gcs!r}).get_all_node_info()\n"
            "print(json.dumps({i.node_manager_address: k.hex() for k, i in found.items() if i.state == 0}))"
        )
        done = subprocess.run([sys.executable, "-c", script], env=self.env, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def wait_for(self, count):
        """Wait until so many nodes are alive."""
        _wait(lambda: len(self.alive()) == count, self.nodes[0])

    def ray(self, *arguments, timeout=300, cwd=ROOT):
        """Run the `ray` command against this cluster; its completed process."""
        command = [*RAY, *map(str, arguments)]
        return subprocess.run(command, env=self.client_env, cwd=cwd, capture_output=True, text=True, timeout=timeout)

    def drain(self, node, seconds):
        """Give the cluster the notice that a cloud gives: this node will be taken away after so many seconds."""
        done = self.ray(
            "drain-node", f"--address={self.gcs}", f"--node-id={self.alive()[node.address]}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test", f"--deadline-remaining-seconds={seconds}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def submit(self, *command, options=(), name=None, wait=True, **how):
        """`ray job submit -- command`; the id of the job when it is not waited for."""
        name = name or f"job-{secrets.token_hex(4)}"
        waiting = () if wait else ("--no-wait",)
        done = self.ray("job", "submit", f"--submission-id={name}", *waiting, *options, "--", *command, **how)
        return done if wait else name

    def status(self, name):
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return self._ask(f"jobs/{name}")["status"]

    def job_log(self, name):
        """All that the job printed."""
        return self._ask(f"jobs/{name}/logs")["logs"]

    def _ask(self, path):
        """The job server's answer; Ray's own client would need this cluster's token in our environment."""
        headers = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.client_env['RAY_ADDRESS']}/api/{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def stop(self):
        """End all nodes, the head last."""
        for node in self.nodes[1:]:
            node.process.terminate()
        for node in reversed(self.nodes):
            node.stop()


def free_ports(count):
    """Ports nobody listens at, outside the range from which the system hands out its own."""
    found = []
    while len(found) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            found.append(port)
    return found


def _listens(host, port):
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), timeout=1).close()
        return True
    return False


def _descends(process, ancestor):
    """Whether a process is `ancestor`, or was started by it or its children."""
    while process > 1:
        if process == ancestor:
            return True
        process = int((Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[1])
    return False


def _wait(condition, node, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert node.process.poll() is None, node.log.read_text()
        assert time.monotonic() < deadline, node.log.read_text()
        time.sleep(0.2)
