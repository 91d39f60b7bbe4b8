"""Dockerfile and rayjob.yaml: pinned, unprivileged, with the token, and made of fields that exist.

`make lint-containers` runs hadolint and yamllint over them. No package carries the schema of KubeRay's resources, so
rayjob.yaml is held here, field by field, against KubeRay's API reference (ray.io/v1).
"""

import re
import shlex
import subprocess

import pytest
import yaml
from killing import ROOT

from post_platform.config import load_config

DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
MANIFEST = (ROOT / "rayjob.yaml").read_text()
ACCOUNT, CLAIM, JOB = yaml.safe_load_all(MANIFEST)
SPEC = JOB["spec"]
CLUSTER = SPEC["rayClusterSpec"]
HEAD, (WORKERS,) = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
PODS = {
    "head": HEAD["template"]["spec"],
    "worker": WORKERS["template"]["spec"],
    "submitter": SPEC["submitterPodTemplate"]["spec"],
}
JOB_FIELDS = {
    "entrypoint": str,
    "submissionMode": str,
    "backoffLimit": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "activeDeadlineSeconds": int,
    "rayClusterSpec": dict,
    "submitterPodTemplate": dict,
}
CLUSTER_FIELDS = {"rayVersion": str, "authOptions": dict, "headGroupSpec": dict, "workerGroupSpecs": list}
HEAD_FIELDS = {"serviceType": str, "rayStartParams": dict, "template": dict}
WORKER_FIELDS = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "rayStartParams": dict,
    "template": dict,
}


def locked(name):
    return re.search(rf"^{name}==(\S+)", LOCK, re.MULTILINE)[1]


def test_the_image_starts_from_a_pinned_python_that_runs_the_project():
    base = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(base) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base[0])


def test_the_image_installs_the_lock_and_names_no_version_itself():
    assert "pip install --no-cache-dir --no-deps --requirement /tmp/wanted" in DOCKERFILE
    assert "==" not in re.sub(r"\^?\([^)]*\)[^\s]*==|\)\?==", "", DOCKERFILE)


@pytest.mark.parametrize(("variant", "has_cuda"), [("cpu", False), ("cuda", True)])
def test_variants_differ_in_cuda_alone(tmp_path, variant, has_cuda):
    """The image's own shell lines, run with a `pip` that does nothing."""
    script = re.search(r'^RUN (case "\$VARIANT".*?esac)', DOCKERFILE, re.MULTILINE | re.DOTALL)[1].replace("\\\n", " ")
    (tmp_path / "requirements.lock").write_text(LOCK)
    script = f"pip() {{ :; }}; VARIANT={variant} TORCH_CPU_INDEX=-; {script.replace('/tmp/', f'{tmp_path}/')}"
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=True)
    wanted = (tmp_path / "wanted").read_text()
    assert ("nvidia-cublas==" in wanted) is has_cuda
    without = re.compile(r"^(torch|torchvision|triton|nvidia-.*|cuda-.*)==.*\n", re.MULTILINE)
    assert without.sub("", wanted) == without.sub("", LOCK)
    if not has_cuda:
        assert (tmp_path / "torch").read_text().split() == [f"{n}=={locked(n)}" for n in ("torch", "torchvision")]


def test_an_unknown_variant_is_refused():
    script = re.search(r'^RUN (case "\$VARIANT".*?esac)', DOCKERFILE, re.MULTILINE | re.DOTALL)[1].replace("\\\n", " ")
    done = subprocess.run(["bash", "-c", f"VARIANT=rocm; {script}"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "VARIANT is rocm, not cpu or cuda\n"


def test_the_image_runs_as_a_user():
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE) == ["1000"]
    assert "RAY_AUTH_MODE=token" in DOCKERFILE
    assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false" in DOCKERFILE


def test_the_image_gets_nothing_but_what_it_copies():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?:--\S+ )?(\S+)", DOCKERFILE, re.MULTILINE)
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize(
    ("values", "fields"),
    [(SPEC, JOB_FIELDS), (CLUSTER, CLUSTER_FIELDS), (HEAD, HEAD_FIELDS), (WORKERS, WORKER_FIELDS)],
    ids=["RayJobSpec", "RayClusterSpec", "HeadGroupSpec", "WorkerGroupSpec"],
)
def test_fields_are_those_of_kuberay(values, fields):
    assert {name: type(value) for name, value in values.items()} == fields


def test_the_manifest_is_of_the_kind_that_kuberay_reads():
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert SPEC["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
    assert all(isinstance(v, str) for group in (HEAD, WORKERS) for v in group["rayStartParams"].values())
    assert CLUSTER["rayVersion"] == locked("ray")
    assert "<<:" not in MANIFEST, "strict readers take an overridden merge for a key given twice"


def test_jobs_need_the_token_and_nothing_is_open_outside():
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert HEAD["serviceType"] == "ClusterIP"
    assert "Ingress" not in MANIFEST
    assert "dashboard-host" not in HEAD["rayStartParams"], "KubeRay's submitter and probes come from other pods"


def test_the_cluster_goes_after_the_job():
    assert SPEC["shutdownAfterJobFinishes"] is True
    assert SPEC["ttlSecondsAfterFinished"] > 0
    assert SPEC["activeDeadlineSeconds"] > 0


@pytest.mark.parametrize("pod", PODS)
def test_pods_are_unprivileged(pod):
    spec = PODS[pod]
    assert spec["serviceAccountName"] == ACCOUNT["metadata"]["name"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 1000, "the image's"
    for container in spec["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert not any("KEY" in e["name"] or "TOKEN" in e["name"] for e in container.get("env", []))


@pytest.mark.parametrize("pod", PODS)
def test_pods_ask_for_what_they_use_and_share_one_image(pod):
    (container,) = PODS[pod]["containers"]
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert set(requests) == set(limits) >= {"cpu", "memory"}
    assert container["image"] == PODS["head"]["containers"][0]["image"]
    assert ("nvidia.com/gpu" in requests) is (pod == "worker")


def test_mounts_name_volumes_of_their_pod_and_runs_are_shared():
    for pod in ("head", "worker"):
        (container,) = PODS[pod]["containers"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in PODS[pod]["volumes"]}
    runs = PODS["head"]["volumes"][0]
    assert runs == PODS["worker"]["volumes"][0]
    assert runs["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_entry_point_is_a_command_of_ours_for_all_gpus():
    python, script, *overrides = shlex.split(SPEC["entrypoint"])
    assert (python, script) == ("python", "pipelines/train.py")
    config = load_config(None, overrides)
    assert config.run.dir == "/runs"
    assert (
        config.train.workers
        == WORKERS["replicas"] * PODS["worker"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    )
