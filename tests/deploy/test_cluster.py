"""cluster.yaml and its variant: Ray's launcher takes them, on a simulated AWS too, and what they install is there."""

import copy
import functools
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = ["cluster.yaml", "docs/deploy/cluster-local.yaml"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOKEN = "~/.ray/auth_token"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@functools.cache
def flags_of_ray_start() -> set[str]:
    from ray.scripts.scripts import start

    return {flag for option in start.params for flag in (*option.opts, *option.secondary_opts)}


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    (version,) = re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return version


def check_install(command: str) -> None:
    """A pip command takes the exact versions, and names extras of this project."""
    assert "-c constraints.txt" in command
    (extras,) = re.findall(r'"\.\[(.+?)\]"', command)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def check_builds(files: list[str], folder: Path) -> Path:
    """These files and folders of the repository make a wheel, with the built-in model's weights in it; returns it."""
    for name in files:
        place = folder / "checkout" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, place)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(pip, cwd=folder / "checkout", check=True)
    (wheel,) = folder.glob(f"cinemo-{PROJECT['version']}-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "cinemo/builtin/tiny/unet/diffusion_pytorch_model.safetensors" in names
    assert {name.split("/")[0] for name in names} == {"cinemo", f"cinemo-{PROJECT['version']}.dist-info"}
    return wheel


@pytest.mark.parametrize("name", FILES)
def test_the_launcher_takes_it(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read(name)
    validate_config(prepare_config(copy.deepcopy(config)))
    for wrong in ("max_wokers", "file_mount"):
        with pytest.raises(Exception, match=wrong):
            validate_config(prepare_config({**copy.deepcopy(config), wrong: 1}))


def test_there_are_the_workers_that_the_jobs_ask_for() -> None:
    config = read("cluster.yaml")
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    workers = {name: kind for name, kind in types.items() if name != config["head_node_type"]}
    assert set(workers) == {"cpu-workers", "gpu-workers", "gpu-workers-spot"}
    for name, kind in workers.items():
        assert 0 <= kind["min_workers"] < kind["max_workers"], name
        assert kind["resources"].get("GPU", 0) == name.startswith("gpu"), name
    spot = {name for name, kind in workers.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"cpu-workers", "gpu-workers-spot"}
    assert config["max_workers"] >= sum(kind["max_workers"] for kind in workers.values())


def test_rays_launcher_starts_every_node_type_on_a_simulated_amazon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto answers as EC2 and IAM do, and botocore checks every call; an account in which Ray was used before."""
    monkeypatch.setenv("HOME", str(tmp_path))  # for the key that Ray makes
    (tmp_path / ".ssh").mkdir()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    role = "ray-autoscaler-v1"
    with mock_aws():
        iam = boto3.client("iam")
        iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName=role)
        iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
        config = bootstrap_aws(prepare_config(read("cluster.yaml")))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        ec2 = boto3.client("ec2", region_name=config["provider"]["region"])
        for name, kind in config["available_node_types"].items():
            wanted = kind["node_config"]
            (node,) = provider.create_node(wanted, {"ray-user-node-type": name}, 1)
            (made,) = ec2.describe_instances(InstanceIds=[node])["Reservations"][0]["Instances"]
            assert made.get("InstanceLifecycle") == ("spot" if "InstanceMarketOptions" in wanted else None)
            (machine,) = ec2.describe_instance_types(InstanceTypes=[made["InstanceType"]])["InstanceTypes"]
            gpus = sum(gpu["Count"] for gpu in machine.get("GpuInfo", {}).get("Gpus", []))
            has = {"CPU": machine["VCpuInfo"]["DefaultVCpus"]} | ({"GPU": gpus} if gpus else {})
            assert kind["resources"] == (has if name != config["head_node_type"] else {"CPU": 0})


@pytest.mark.parametrize("name", FILES)
def test_mounted_files_exist_and_commands_use_what_is_mounted(name: str) -> None:
    config = read(name)
    mounts = {place: source for place, source in config["file_mounts"].items() if source != TOKEN}
    (home,) = {place.removesuffix(f"/{source}") for place, source in mounts.items()}
    for source in mounts.values():
        assert (ROOT / source).exists(), source
    assert any(source == TOKEN for source in config["file_mounts"].values())
    (install,) = (command for command in config["setup_commands"] if "pip install" in command)
    check_install(install)
    assert f"cd {home} && " in install
    for command in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command
        assert f"PYTHONPATH={home} " in command
        (rest,) = re.findall(r"ray start (.+)", command)
        for flag in re.findall(r"--[a-z-]+", rest):
            assert flag in flags_of_ray_start(), flag


def test_versions_are_those_of_the_project() -> None:
    image = read("cluster.yaml")["docker"]["image"]
    assert image == f"rayproject/ray:{pinned('ray')}-py311-gpu"
    assert PROJECT["requires-python"] == ">=3.11"


def test_what_is_mounted_can_be_installed(tmp_path: Path) -> None:
    """The Dockerfile installs less of it: that wheel is made in test_working_dir.py."""
    mounted = [set(read(name)["file_mounts"].values()) for name in FILES]
    assert mounted[0] == mounted[1]
    check_builds(sorted(mounted[0] - {TOKEN}), tmp_path)


def test_machines_hand_out_no_credentials_to_forged_requests_and_keep_disks_encrypted() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for name, kind in config["available_node_types"].items():
        options = kind["node_config"]["MetadataOptions"]
        assert options == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}, name
        assert all(disk["Ebs"]["Encrypted"] for disk in kind["node_config"]["BlockDeviceMappings"]), name
    assert config["provider"]["security_group"]["GroupName"]  # a group with rules, which Ray leaves as they are
    assert "0.0.0.0/0" not in (ROOT / "cluster.yaml").read_text()
