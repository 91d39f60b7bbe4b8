"""cluster.yaml brings a cluster up: `ray up`, a training and `ray down` over sshd, on two loopback addresses.

Ray's `local` provider takes the place of AWS; commands, mounts and authentication are those of cluster.yaml, without
what needs systemd (NFS, Postgres, MLflow). `make test-launcher` shows what is printed. Needs root, for namespaces.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from killing import ROOT, SETTINGS, STEPS

TOOLS = ("/usr/sbin/sshd", "ssh", "rsync", "unshare", "ip", "ss", "curl")
HEAD, WORKER = "127.0.0.2", "127.0.0.3"
SPARE = "127.0.0.4"  # not used: the autoscaler counts the head as one of as many nodes as workers have addresses
SSHD = """
ListenAddress 127.0.0.2
ListenAddress 127.0.0.3
HostKey {home}/host_key
AuthorizedKeysFile {home}/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
"""


def small(command, address, first_port):
    """A start command for a node of two slots at an address, whose ports no other node of this host has.

    Given ports also spare Ray the wait of 15 s for an agent that draws its own, which a busy host exceeds.
    """
    names = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export", "node-manager")
    ports = " ".join(f"--{name}-port={first_port + i}" for i, name in enumerate(names))
    how = f"--node-ip-address={address} --num-cpus=2 --object-store-memory=100000000 {ports}"
    return command.replace("ray start", f"ray start {how}").replace("8076", str(first_port + len(names)))


def apart(command):
    """With a folder of its own: a node removes what it unpacks anew, and would take it from under the other's job."""
    return command.replace("ray start", "ray start --temp-dir=/tmp/ray/worker")


def on_loopback(config):
    """The launcher file with both machines on this host, without what needs systemd and the worker's `ray stop`."""
    head = [command for command in config["head_start_ray_commands"] if "mlflow" not in command]
    worker = [command for command in config["worker_start_ray_commands"] if command != "ray stop"]  # the head's, too
    same = ("cluster_name", "file_mounts", "rsync_exclude", "rsync_filter", "setup_commands")
    return {name: config[name] for name in same} | {
        "provider": {"type": "local", "head_ip": HEAD, "worker_ips": [WORKER, SPARE]},
        "auth": {"ssh_user": "root", "ssh_private_key": "~/.ssh/id"},
        "head_start_ray_commands": [small(command, HEAD, 20_000) for command in head],
        "worker_start_ray_commands": [apart(small(command, WORKER, 21_000)) for command in worker],
    }


def new_home(folder, shards):
    """A user's home with keys and token made for the occasion, and an environment that `make env` finds whole."""
    (folder / ".ssh").mkdir(parents=True, mode=0o700)
    (folder / ".ray").mkdir()
    for key in (folder / ".ssh/id", folder / "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    shutil.copy(folder / ".ssh/id.pub", folder / ".ssh/authorized_keys")
    token = folder / ".ray/auth_token"
    token.write_text(os.urandom(32).hex())
    token.chmod(0o600)
    (folder / "sshd_config").write_text(SSHD.format(home=folder))
    users = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
    (folder / "passwd").write_text("\n".join([f"root:x:0:0:root:{folder}:/bin/bash", *users]) + "\n")
    (folder / ".bashrc").touch()
    (folder / "venv").symlink_to(sys.prefix)
    (folder / "shards").symlink_to(shards)
    return folder


@pytest.mark.slow
def test_up_submit_down(toy_shards, tmp_path, capsys):
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    assert not missing, f"needs {', '.join(missing)} (Debian: apt install openssh-server rsync iproute2 curl)"
    assert os.geteuid() == 0, "needs root, for namespaces of its own"
    home = new_home(tmp_path / "home", toy_shards)
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(on_loopback(yaml.safe_load((ROOT / "cluster.yaml").read_text()))))
    where = (f"data.root={home}/shards", f"run.dir={home}/runs", "run.name=job", "train.workers=3")
    job = ("python", "pipelines/train.py", *SETTINGS, *where)
    namespaces = ("unshare", "--net", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child")
    output = tmp_path / "output"
    with output.open("w") as stream:
        done = subprocess.run(
            [*namespaces, "bash", str(ROOT / "tests/launcher.sh"), str(file), str(home), *job],
            cwd=ROOT, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, timeout=1200,
        )  # fmt: skip
    shown = output.read_text()
    with capsys.disabled():
        print(shown)
    assert done.returncode == 0
    assert "127.0.0.1:8265" in shown
    assert "0.0.0.0:8265" not in shown
    assert "\n401\n" in shown
    assert "succeeded" in shown
    assert shown.rstrip().endswith("raylets left: 0")
    progress = json.loads((home / "runs/job/logs/progress.json").read_text())
    assert progress["step"] == STEPS
