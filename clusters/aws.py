"""What cluster.yaml needs on AWS before `ray up`, and what is left there after `ray down`.

Examples:
  python clusters/aws.py prepare --ssh-from 203.0.113.7  a firewall for your address and the newest image, into the file
  python clusters/aws.py left                            what still exists, and may still cost
  python clusters/aws.py remove                          the firewall, when no machine is left
"""

import ipaddress
import re
import sys
from pathlib import Path
from typing import Any

import boto3
import tyro
import yaml
from botocore.exceptions import ClientError

FILE = Path(__file__).parents[1] / "cluster.yaml"
GROUP = "rresnet"
IMAGE = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)*"  # docker and an NVIDIA driver


def prepare(ssh_from: str, file: Path = FILE) -> None:
    """Make the security group, or make it anew for another address, find the newest image, and write both to the file.

    Args:
        ssh_from: the one address that may reach the machines: yours, as the internet sees it.
        file: the cluster's YAML file.
    """
    try:
        address = ipaddress.IPv4Address(ssh_from)
    except ValueError:
        sys.exit(f"--ssh-from takes one IPv4 address, like 203.0.113.7, got {ssh_from}")
    ec2 = _ec2(file)
    group, image = _group(ec2, address), _image(ec2)
    text = file.read_text()
    text = re.sub(r"(ImageId:) \S+", rf"\1 {image['ImageId']}", text)
    text = re.sub(r"(SecurityGroupIds:) \[.*?\]", rf"\1 [{group}]", text)
    file.write_text(text)
    print(f"{file.name}: image {image['ImageId']} ({image['Name']}), security group {group}, ssh from {address} only")


def left(file: Path = FILE) -> None:
    """Print every machine, disk and security group of the cluster that still exists; exits with 1 where one does."""
    ec2, cluster = _ec2(file), yaml.safe_load(file.read_text())["cluster_name"]
    ours = [{"Name": "tag:ray-cluster-name", "Values": [cluster]}]
    found = [
        f"machine {i['InstanceId']} {i['InstanceType']} {i['State']['Name']}"
        for r in ec2.describe_instances(Filters=ours)["Reservations"]
        for i in r["Instances"]
        if i["State"]["Name"] != "terminated"
    ]
    found += [f"disk {v['VolumeId']} {v['Size']} GiB" for v in ec2.describe_volumes(Filters=ours)["Volumes"]]
    found += [f"security group {g} (free of charge)" for g in _groups(ec2)]
    print("\n".join(found) or "nothing is left")
    sys.exit(bool(found))


def remove(file: Path = FILE) -> None:
    """Delete the security group."""
    ec2 = _ec2(file)
    for group in _groups(ec2):
        ec2.delete_security_group(GroupId=group)
        print(f"deleted security group {group}")


def _ec2(file: Path) -> Any:
    return boto3.client("ec2", region_name=yaml.safe_load(file.read_text())["provider"]["region"])


def _groups(ec2: Any) -> list[str]:
    found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [GROUP]}])
    return [group["GroupId"] for group in found["SecurityGroups"]]


def _group(ec2: Any, ssh_from: ipaddress.IPv4Address) -> str:
    """The group's id; its rules admit ssh from one address, and everything between its own members."""
    existing = _groups(ec2)
    if existing:
        group = existing[0]
        (now,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
        if now["IpPermissions"]:
            ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=now["IpPermissions"])
    else:
        vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        if not vpcs:
            sys.exit("this region has no default network: `aws ec2 create-default-vpc` makes one")
        made = ec2.create_security_group(
            GroupName=GROUP, Description="rresnet: ssh from one address", VpcId=vpcs[0]["VpcId"]
        )
        group = made["GroupId"]
    ec2.authorize_security_group_ingress(
        GroupId=group,
        IpPermissions=[
            {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": f"{ssh_from}/32"}]},
            {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]},
        ],
    )
    return str(group)


def _image(ec2: Any) -> Any:
    wanted = [{"Name": "name", "Values": [IMAGE]}, {"Name": "state", "Values": ["available"]}]
    images = ec2.describe_images(Owners=["amazon"], Filters=wanted)["Images"]
    if not images:
        sys.exit(
            f"no image of Amazon's is called {IMAGE}: put one with docker and an NVIDIA driver into the file by hand"
        )
    return max(images, key=lambda image: image["CreationDate"])


if __name__ == "__main__":
    try:
        tyro.extras.subcommand_cli_from_dict({"prepare": prepare, "left": left, "remove": remove}, description=__doc__)
    except ClientError as error:
        sys.exit(f"AWS says: {error}")
