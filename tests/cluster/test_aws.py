"""cluster.yaml on an imitation of AWS, on a laptop that no network leads out of: what `ray up` creates there."""

import json
import time

import pytest
import yaml
from hosts import HOME, ROOT

IMAGE = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)"
AMI = {
    "owner_id": "898082745236", "public": True, "virtualization_type": "hvm", "architecture": "x86_64",
    "state": "available", "platform": None, "image_type": "machine", "hypervisor": "xen", "description": "",
    "root_device_name": "/dev/sda1", "root_device_type": "ebs", "sriov": "simple",
}  # fmt: skip
IMAGES = [
    {**AMI, "ami_id": "ami-0000000a", "name": f"{IMAGE} 20260101", "creation_date": "2026-01-01T00:00:00.000Z"},
    {**AMI, "ami_id": "ami-0000000b", "name": f"{IMAGE} 20260901", "creation_date": "2026-09-01T00:00:00.000Z"},
    {**AMI, "ami_id": "ami-0000000c", "name": "Another image", "creation_date": "2026-10-01T00:00:00.000Z"},
]
ENVIRONMENT = (
    "export AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x AWS_DEFAULT_REGION=us-west-2"
    f" AWS_ENDPOINT_URL=http://127.0.0.1:5000 MOTO_AMIS_PATH={HOME}/amis.json MOTO_IAM_LOAD_MANAGED_POLICIES=true; "
)
FILE = f"{HOME}/cluster.yaml"
FACTS = """
import boto3, json
ec2, iam = boto3.client("ec2"), boto3.client("iam")
print(json.dumps({
    "instances": [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]],
    "volumes": ec2.describe_volumes()["Volumes"],
    "groups": ec2.describe_security_groups()["SecurityGroups"],
    "roles": {r["RoleName"]: [p["PolicyName"] for p in
        iam.list_attached_role_policies(RoleName=r["RoleName"])["AttachedPolicies"]]
        for r in iam.list_roles()["Roles"]},
}, default=str))
"""
# What the autoscaler on the head would do when a run asks for machines: Ray's own node provider, the file's node type.
TWO_WORKERS = f"""
import yaml
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
config = _bootstrap_config(yaml.safe_load(open("{FILE}")))
provider = _get_node_provider(config["provider"], config["cluster_name"])
kind = config["available_node_types"]["a100"]
tags = {{"ray-node-type": "worker", "ray-user-node-type": "a100"}}
for _ in range(2):  # Ray asks for one to so many machines; AWS gives as many as it can, its imitation one
    provider.create_node_with_resources_and_labels(kind["node_config"], tags, 1, kind["resources"], {{}})
"""


@pytest.fixture(scope="module")
def laptop(network):
    laptop = network.laptop
    laptop.file(f"{HOME}/amis.json").write_text(json.dumps(IMAGES))
    laptop.run(f"cp cluster.yaml {FILE}; ray get-auth-token --generate")
    laptop.run(f"{ENVIRONMENT} setsid -f moto_server --host 127.0.0.1 --port 5000 > {HOME}/moto.log 2>&1")
    wait_until(lambda: laptop.run("exec 3<>/dev/tcp/127.0.0.1/5000", check=False).returncode == 0)
    return laptop


@pytest.fixture(scope="module")
def prepared(laptop):
    return laptop.run(f"{ENVIRONMENT} python clusters/aws.py prepare --ssh-from 203.0.113.7 --file {FILE}").stdout


@pytest.fixture(scope="module")
def created(laptop, prepared):
    """What is there once `ray up` has created the head, and the autoscaler's part of it two workers.

    `ray up` goes on to ssh to the head, an address of moto's that this laptop has no way to, and is ended.
    """
    laptop.run(f"{ENVIRONMENT} setsid -f ray up -y --no-config-cache {FILE} > {HOME}/up.log 2>&1")
    try:
        wait_until(lambda: facts(laptop)["instances"])
    finally:
        laptop.run("pkill -f 'ray up'")
    laptop.run(f"{ENVIRONMENT} python -c '{TWO_WORKERS}'")
    return facts(laptop)


def facts(laptop):
    return json.loads(laptop.run(f"{ENVIRONMENT} python -c '{FACTS}'").stdout)


def wait_until(true, seconds=600.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_prepare_writes_the_newest_image_and_the_group_into_the_file_and_nothing_else(laptop, prepared):
    written = laptop.file(FILE).read_text()
    group = next(g["GroupId"] for g in facts(laptop)["groups"] if g["GroupName"] == "rresnet")
    before = (ROOT / "cluster.yaml").read_text()
    assert written == before.replace("ami-FILL-IN", "ami-0000000b").replace("sg-FILL-IN", group)
    assert written.count(group) == 1
    assert "ssh from 203.0.113.7 only" in prepared


def test_no_rule_admits_the_world(created):
    """Ray itself admits ssh from everywhere to the groups that it makes: here it makes none."""
    assert {g["GroupName"] for g in created["groups"]} <= {"default", "rresnet"}
    for group in created["groups"]:
        for rule in group["IpPermissions"]:
            assert [r["CidrIp"] for r in rule["IpRanges"]] in ([], ["203.0.113.7/32"])
            assert rule["Ipv6Ranges"] == []
    ours = next(g for g in created["groups"] if g["GroupName"] == "rresnet")
    ssh, inside = sorted(ours["IpPermissions"], key=lambda rule: rule["IpProtocol"], reverse=True)
    assert (ssh["IpProtocol"], ssh["FromPort"], ssh["ToPort"]) == ("tcp", 22, 22)
    assert [pair["GroupId"] for pair in inside["UserIdGroupPairs"]] == [ours["GroupId"]]


def test_the_machines_are_as_the_file_says(created):
    by_type = {}
    for instance in created["instances"]:
        by_type.setdefault(instance["InstanceType"], []).append(instance)
        assert instance["ImageId"] == "ami-0000000b"
        assert [g["GroupName"] for g in instance["SecurityGroups"]] == ["rresnet"]
    assert {kind: len(those) for kind, those in by_type.items()} == {"m5.xlarge": 1, "p4d.24xlarge": 2}
    (head,) = by_type["m5.xlarge"]
    assert head["IamInstanceProfile"]["Arn"].endswith("/ray-autoscaler-v1")
    assert not any("IamInstanceProfile" in worker for worker in by_type["p4d.24xlarge"])


def test_the_disks_go_with_the_machines(created):
    disks = [d["Ebs"] for i in created["instances"] for d in i["BlockDeviceMappings"]]
    assert len(disks) == 3
    assert all(disk["DeleteOnTermination"] for disk in disks)
    assert [v["Size"] for v in created["volumes"]] == [150, 150, 150]
    assert all(v["Encrypted"] for v in created["volumes"])


def test_the_role_is_rays_own_and_for_the_head_alone(created):
    assert created["roles"]["ray-autoscaler-v1"] == ["AmazonEC2FullAccess", "AmazonS3FullAccess"]


def test_left_tells_what_is_left_and_down_and_remove_leave_nothing(laptop, created):
    left = laptop.run(f"{ENVIRONMENT} python clusters/aws.py left --file {FILE}", check=False)
    assert left.returncode == 1
    assert left.stdout.count("machine ") == 3
    assert left.stdout.count("p4d.24xlarge running") == 2
    assert left.stdout.count("disk vol-") == 3
    config = yaml.safe_load(laptop.file(FILE).read_text())
    config["docker"] = {}  # `ray down` would wait for machines to stop their containers, which nobody can reach
    laptop.file(f"{HOME}/down.yaml").write_text(yaml.safe_dump(config))
    down = f"{ENVIRONMENT} timeout 120 ray down -y {HOME}/down.yaml"
    laptop.run(down)
    laptop.run(f"{ENVIRONMENT} python clusters/aws.py remove --file {FILE}")
    left = laptop.run(f"{ENVIRONMENT} python clusters/aws.py left --file {FILE}")
    assert left.stdout == "nothing is left\n"
