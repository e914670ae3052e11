"""cluster.yaml and its siblings: Ray and Kubernetes accept them, they agree with each other, and let nobody in."""

import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from rresnet.runner import cluster

ROOT = Path(__file__).parents[1]
FILES = ("cluster.yaml", "clusters/gcp-a100.yaml", "clusters/local.yaml")
CONFIGS = {name: yaml.safe_load((ROOT / name).read_text()) for name in FILES}
AWS, GCP, LOCAL = CONFIGS.values()
OF_THE_DRIVER = {"RAY_AIR_NEW_OUTPUT"}  # the others of rresnet.runner.cluster are read on every machine
NODE_VARIABLES = {
    name: value for name, value in cluster._ENVIRONMENT.items() if name.startswith("RAY_") and name not in OF_THE_DRIVER
}


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # the mounts are of the checkout
    prepared = prepare_config(CONFIGS[name])
    validate_config(prepared)
    for local in prepared["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists()


def test_ray_refuses_what_it_does_not_know():
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config(prepare_config({**AWS, "max_wrokers": 2}))


def test_the_files_set_a_machine_up_alike():
    for other, extra in ((GCP, "gcp"), (LOCAL, "cluster")):
        assert other["file_mounts"] == AWS["file_mounts"]
        ours = [line.replace("[aws]", f"[{extra}]") for line in AWS["setup_commands"]]
        assert other["setup_commands"] == ours
    assert GCP["head_start_ray_commands"] == AWS["head_start_ray_commands"]
    assert GCP["worker_start_ray_commands"] == AWS["worker_start_ray_commands"]
    head = LOCAL["head_start_ray_commands"][1].replace("export RAY_enable_autoscaler_v2=0; ", "")
    assert head == AWS["head_start_ray_commands"][1]
    assert LOCAL["worker_start_ray_commands"][1].startswith(AWS["worker_start_ray_commands"][1])


@pytest.mark.parametrize("name", FILES)
def test_every_machine_is_told_what_the_driver_tells_its_own_ray(name):
    (line,) = (line for line in CONFIGS[name]["setup_commands"] if "RAY_AUTH_MODE" in line)
    told = dict(re.findall(r"(RAY_\w+)=(\S+)", line.replace("'", " ")))
    assert told == {"RAY_AUTH_MODE": "token", **NODE_VARIABLES}


@pytest.mark.parametrize("name", FILES)
def test_nobody_is_let_in_and_no_thread_is_lost(name):
    config = CONFIGS[name]
    assert "0.0.0.0" not in (ROOT / name).read_text()
    assert config["file_mounts"]["~/auth_token"] == "~/.ray/auth_token"
    assert config["setup_commands"][0].startswith("chmod 600 ~/auth_token && install -D -m 600 ")
    (head,) = (line for line in config["head_start_ray_commands"] if "ray start" in line)
    (worker,) = (line for line in config["worker_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in head
    assert "--disable-usage-stats" in head
    assert head.startswith("unset OMP_NUM_THREADS; ")
    assert worker.startswith("unset OMP_NUM_THREADS; ")


@pytest.mark.parametrize("config", [AWS, GCP], ids=["aws", "gcp"])
def test_what_it_can_cost_is_bounded(config):
    head, a100 = (config["available_node_types"][kind] for kind in ("head", "a100"))
    assert config["max_workers"] == a100["max_workers"] == 2
    assert a100["min_workers"] == 0
    assert config["idle_timeout_minutes"] == 5
    assert head["resources"] == {"CPU": 0}
    assert a100["resources"]["accelerator_type:A100"] == 1


def test_the_machines_are_those_the_comments_name():
    assert AWS["available_node_types"]["a100"]["node_config"]["InstanceType"] == "p4d.24xlarge"
    assert AWS["provider"]["cache_stopped_nodes"] is False
    assert GCP["available_node_types"]["a100"]["node_config"]["machineType"] == "a2-highgpu-1g"


def test_images_carry_the_ray_that_is_installed():
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    images = [CONFIG["docker"][kind] for CONFIG in (AWS, GCP) for kind in ("head_image", "worker_image")]
    images.append(re.search(r"^FROM (\S+)$", (ROOT / "clusters/Dockerfile").read_text(), re.MULTILINE)[1])
    assert all(image.startswith(f"rayproject/ray:{pinned}-py311-") for image in images)
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == pinned


def rayjob():
    return list(yaml.safe_load_all((ROOT / "clusters/kuberay-rayjob.yaml").read_text()))[1]


def pods():
    spec = rayjob()["spec"]["rayClusterSpec"]
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def test_kuberay_knows_every_field_of_the_job():
    schema = yaml.safe_load((ROOT / "tests/cluster/kuberay.schema.yaml").read_text())
    jsonschema.validate(rayjob(), schema)
    wrong = rayjob()
    wrong["spec"]["rayClusterSpec"]["authOptions"] = {"mode": "tokens"}
    with pytest.raises(jsonschema.ValidationError, match="tokens"):
        jsonschema.validate(wrong, schema)


def test_kubernetes_accepts_the_pods_and_the_claim():
    claim = next(yaml.safe_load_all((ROOT / "clusters/kuberay-rayjob.yaml").read_text()))
    kubernetes_validate.validate(claim, "1.31", strict=True)
    for template in pods():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        kubernetes_validate.validate(pod, "1.31", strict=True)
    pod["spec"]["containers"][0]["imagePullPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, "1.31", strict=True)


def test_the_pods_are_told_the_same_and_may_do_no_more_than_they_must():
    for template in pods():
        (container,) = template["spec"]["containers"]
        assert {v["name"]: v["value"] for v in container["env"]} == NODE_VARIABLES
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert rayjob()["spec"]["shutdownAfterJobFinishes"] is True
    assert rayjob()["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
