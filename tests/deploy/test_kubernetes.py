"""The manifests and the Dockerfile: KubeRay's fields, and paths, flags, versions and settings that there are here."""

import copy
import json
import re
import shlex
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.scripts.scripts import drain_node

from pipelines.animate.config import AnimateConfig
from pipelines.prepare.config import PrepareConfig
from pipelines.serving.metrics import Metrics
from pipelines.serving.settings import ServeSettings
from pipelines.train.config import TrainConfig
from ray_jobs import common
from tests.deploy import kuberay
from tests.deploy.test_cluster import PROJECT, ROOT, check_install, pinned

DEPLOY = ROOT / "docs" / "deploy"
MANIFESTS = ["rayjob.yaml", "rayservice.yaml"]
HOME = "/home/ray/cinemo"
JOBS = {"prepare.py": PrepareConfig, "train.py": TrainConfig, "animate.py": AnimateConfig}


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of every line of the Dockerfile."""
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word.isupper()]


def copied() -> dict[str, str]:
    """What the Dockerfile copies: path in the repository -> path in the image."""
    found = {}
    for word, rest in instructions():
        if word == "COPY":
            *sources, place = [part for part in rest.split() if not part.startswith("--")]
            found |= {source: f"{HOME}/{source}" if place == "./" else f"{HOME}/{place}" for source in sources}
    return found


def installed() -> list[str]:
    """Files that the Dockerfile copies before it installs the project."""
    words = [word for word, _ in instructions()]
    lines = [rest for word, rest in instructions()[: words.index("RUN")] if word == "COPY"]
    return [part for rest in lines for part in rest.split()[:-1] if not part.startswith("--")]


def clusters() -> list[kuberay.ClusterSpec]:
    job, service = (kuberay.validate(read(name)).spec for name in MANIFESTS)
    return [job.rayClusterSpec, service.rayClusterConfig]


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_has_these_fields(name: str) -> None:
    manifest = read(name)
    kuberay.validate(manifest)
    for wrong in ({"entrypont": "x"}, {"backoffLimit": "2"}):
        with pytest.raises(ValidationError):
            kuberay.validate({**copy.deepcopy(manifest), "spec": {**manifest["spec"], **wrong}})


def test_all_run_the_image_of_the_dockerfile_at_this_version() -> None:
    image = f"registry.example.com/cinemo:{PROJECT['version']}"
    assert f"-t {image} ." in (DEPLOY / "Dockerfile").read_text()
    for cluster in clusters():
        groups = [cluster.headGroupSpec, *cluster.workerGroupSpecs]
        assert {container.image for group in groups for container in group.template.spec.containers} == {image}
        assert cluster.rayVersion == pinned("ray")
        assert cluster.authOptions.mode == "token"
        for group in cluster.workerGroupSpecs:
            assert group.minReplicas < group.maxReplicas
            limits = group.template.spec.containers[0].resources.limits
            assert ("nvidia.com/gpu" in limits) == group.groupName.startswith("gpu")


def test_the_entrypoint_is_a_job_with_settings_that_it_takes() -> None:
    python, path, *flags = shlex.split(kuberay.validate(read("rayjob.yaml")).spec.entrypoint)
    assert python == "python"
    folder, script = path.removeprefix(f"{HOME}/").split("/")
    assert copied()[folder] == f"{HOME}/ray_jobs"
    config, _ = common.read_arguments(JOBS[script], flags)
    assert config.tracking_uri, "the output is remote, so MLflow has no default place"
    for flag in flags[::2]:
        assert flag.startswith("--"), flag


def test_the_service_has_settings_that_it_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(kuberay.validate(read("rayservice.yaml")).spec.serveConfigV2)
    (application,) = ServeDeploySchema.model_validate(config).applications
    settings = ServeSettings(**application.args)
    assert f"{application.import_path.split(':')[0]}.py" in copied()
    group = clusters()[1].workerGroupSpecs[0]
    pod = group.template.spec
    assert settings.replicas.drain_s <= (pod.terminationGracePeriodSeconds or 0)
    assert settings.replicas.num_cpus <= int(pod.containers[0].resources.limits["cpu"])
    assert settings.replicas.max_replicas <= group.maxReplicas
    assert settings.ingress_replicas > 1
    assert not settings.store_url.startswith("sqlite")


def test_the_dockerfile_finds_what_it_copies_and_runs_what_it_names() -> None:
    """That what it installs makes a whole package is held by test_working_dir.py."""
    found = dict(instructions())
    assert found["FROM"] == f"rayproject/ray:{pinned('ray')}-py311-gpu"
    assert found["WORKDIR"] == HOME
    assert found["ENV"] == f"PYTHONPATH={HOME}"
    for source in copied():
        assert (ROOT / source).exists(), source
    install, warm = (rest for word, rest in instructions() if word == "RUN")
    check_install(install)
    python, flag, code = shlex.split(warm)
    assert (python, flag) == ("python", "-c")
    exec(code, {})  # here, where what it compiles is at hand


def test_names_in_the_commands_of_the_manifests_are_files() -> None:
    for name in [*MANIFESTS, "Dockerfile", "cluster-local.yaml", "serve.yaml", "policies.yaml"]:
        comments = "\n".join(re.findall(r"^#.*", (DEPLOY / name).read_text(), re.MULTILINE))
        for path in re.findall(r"docs/deploy/[\w.-]*\w", comments):
            assert (ROOT / path).exists(), f"{name}: {path}"


def test_pods_have_no_privileges_no_token_and_bounded_shared_memory() -> None:
    for cluster in clusters():
        assert cluster.autoscalerOptions.securityContext.capabilities.drop == ["ALL"]
        for group in [cluster.headGroupSpec, *cluster.workerGroupSpecs]:
            pod = group.template.spec
            assert pod.securityContext.runAsNonRoot
            assert pod.securityContext.runAsUser > 0
            assert pod.securityContext.seccompProfile.type == "RuntimeDefault"
            # KubeRay runs the autoscaler, which asks Kubernetes for pods, beside the head.
            assert pod.automountServiceAccountToken == (group is cluster.headGroupSpec)
            assert {"/dev/shm"} == {mount.mountPath for mount in pod.containers[0].volumeMounts}
            for volume in pod.volumes:
                assert volume.emptyDir.sizeLimit, volume.name
            for container in pod.containers:
                assert not container.securityContext.allowPrivilegeEscalation
                assert container.securityContext.capabilities.drop == ["ALL"]
                assert container.resources.limits["memory"]


def test_the_service_outlives_its_head_and_pods_that_end_wait_for_their_videos() -> None:
    cluster = clusters()[1]
    assert cluster.gcsFaultToleranceOptions is not None
    settings = yaml.safe_load(read("rayservice.yaml")["spec"]["serveConfigV2"])["applications"][0]["args"]
    assert ServeSettings(**settings).require_keys
    for group in cluster.workerGroupSpecs:
        pod = group.template.spec
        assert pod.containers[0].lifecycle is not None
        command = pod.containers[0].lifecycle.preStop.exec.command[-1]
        seconds = int(re.findall(r"--deadline-remaining-seconds (\d+)", command)[0])
        assert ServeSettings(**settings).replicas.drain_s <= seconds < (pod.terminationGracePeriodSeconds or 0)
        options = {option for parameter in drain_node.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", command)) <= options
        assert "ServeReplica" in command


def test_policies_close_every_port_but_the_api_to_others_and_the_metadata_service_to_pods() -> None:
    network, disruption = yaml.safe_load_all((DEPLOY / "policies.yaml").read_text())
    assert network["kind"] == "NetworkPolicy"
    assert network["spec"]["podSelector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}  # KubeRay's label of all pods
    assert network["spec"]["policyTypes"] == ["Ingress", "Egress"]
    own, *others = network["spec"]["ingress"]
    assert own == {"from": [{"podSelector": network["spec"]["podSelector"]}]}
    assert all(rule["from"] and rule["ports"] for rule in others)
    assert {port["port"] for rule in others for port in rule["ports"]} == {8000, 8265, 52365}
    for rule in network["spec"]["egress"]:
        for peer in rule["to"]:
            assert "169.254.0.0/16" in peer["ipBlock"]["except"]
    assert disruption["kind"] == "PodDisruptionBudget"
    assert disruption["spec"]["maxUnavailable"] == 1


def test_the_dashboard_shows_metrics_that_the_service_has() -> None:
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    queries = " ".join(each["expr"] for panel in panels for each in panel["targets"])
    shown = set(re.findall(r"\w*cinemo_\w+", queries))
    metrics = {f"ray_{metric.info['name']}" for metric in vars(Metrics()).values()}
    suffixes = "_(bucket|sum|count)$"
    assert {re.sub(suffixes, "", name) for name in shown} == metrics
