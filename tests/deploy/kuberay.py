"""What the manifests use of KubeRay's ray.io/v1 and of Kubernetes' pods, as strict models: no other names or types.

Names, types and allowed values are those of KubeRay's published CRD reference (v1.6) and of the core/v1 API. What the
manifests do not use is left out, so a field that is added there is added here, from the reference.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
# The API takes numbers too, but says strings back: these manifests have one way to write an amount.
Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|[KMGT]i?)?$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SecretKey(Strict):
    name: Name
    key: str


class Source(Strict):
    secretKeyRef: SecretKey  # noqa: N815  (their name, as all below)


class Variable(Strict):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Z_][A-Z0-9_]*$")]
    value: str | None = None
    valueFrom: Source | None = None  # noqa: N815

    @model_validator(mode="after")
    def _one_of_the_two(self) -> "Variable":
        if (self.value is None) == (self.valueFrom is None):
            raise ValueError(f"{self.name} has both or neither of value and valueFrom")
        return self


class Resources(Strict):
    requests: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]
    limits: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]

    @model_validator(mode="after")
    def _gpus_are_not_shared(self) -> "Resources":
        if self.requests.get("nvidia.com/gpu") != self.limits.get("nvidia.com/gpu"):
            raise ValueError("requests and limits of nvidia.com/gpu must be equal")
        return self


class Mount(Strict):
    name: Name
    mountPath: str  # noqa: N815


class Capabilities(Strict):
    drop: list[str]


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: bool  # noqa: N815
    capabilities: Capabilities


class SeccompProfile(Strict):
    type: Literal["RuntimeDefault", "Unconfined", "Localhost"]


class PodSecurity(Strict):
    runAsNonRoot: bool  # noqa: N815
    runAsUser: int  # noqa: N815
    fsGroup: int  # noqa: N815
    seccompProfile: SeccompProfile  # noqa: N815


class Exec(Strict):
    command: list[str]


class Handler(Strict):
    exec: Exec


class Lifecycle(Strict):
    preStop: Handler  # noqa: N815


class Container(Strict):
    name: Name
    image: str
    securityContext: ContainerSecurity  # noqa: N815
    lifecycle: Lifecycle | None = None
    env: list[Variable] = []
    resources: Resources
    volumeMounts: list[Mount] = []  # noqa: N815


class EmptyDir(Strict):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity | None = None  # noqa: N815


class Volume(Strict):
    name: Name
    emptyDir: EmptyDir  # noqa: N815


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class Pod(Strict):
    automountServiceAccountToken: bool  # noqa: N815
    securityContext: PodSecurity  # noqa: N815
    containers: list[Container]  # KubeRay takes the first as that of Ray
    nodeSelector: dict[str, str] = {}  # noqa: N815
    terminationGracePeriodSeconds: int | None = None  # noqa: N815
    tolerations: list[Toleration] = []
    volumes: list[Volume] = []

    @model_validator(mode="after")
    def _mounts_have_volumes(self) -> "Pod":
        mounted = {mount.name for container in self.containers for mount in container.volumeMounts}
        if mounted != {volume.name for volume in self.volumes}:
            raise ValueError(f"volumes and mounts differ: {mounted}")
        return self


class Template(Strict):
    spec: Pod


class HeadGroup(Strict):
    rayStartParams: dict[str, str]  # noqa: N815
    template: Template


class WorkerGroup(Strict):
    groupName: Name  # noqa: N815
    minReplicas: int  # noqa: N815
    maxReplicas: int  # noqa: N815
    rayStartParams: dict[str, str]  # noqa: N815
    template: Template


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]


class AutoscalerOptions(Strict):
    idleTimeoutSeconds: int  # noqa: N815
    securityContext: ContainerSecurity  # noqa: N815


class GcsFaultTolerance(Strict):
    redisAddress: str  # noqa: N815
    redisPassword: dict[Literal["valueFrom"], Source]  # noqa: N815


class ClusterSpec(Strict):
    gcsFaultToleranceOptions: GcsFaultTolerance | None = None  # noqa: N815
    rayVersion: str  # noqa: N815
    authOptions: AuthOptions  # noqa: N815
    enableInTreeAutoscaling: bool  # noqa: N815
    autoscalerOptions: AutoscalerOptions  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup]  # noqa: N815


class JobSpec(Strict):
    entrypoint: str
    backoffLimit: int  # noqa: N815
    shutdownAfterJobFinishes: bool  # noqa: N815
    ttlSecondsAfterFinished: int  # noqa: N815
    rayClusterSpec: ClusterSpec  # noqa: N815


class UpgradeStrategy(Strict):
    type: Literal["NewCluster", "None", "NewClusterWithIncrementalUpgrade"]


class ServiceSpec(Strict):
    upgradeStrategy: UpgradeStrategy  # noqa: N815
    excludeHeadPodFromServeSvc: bool  # noqa: N815
    serveConfigV2: str  # noqa: N815
    rayClusterConfig: ClusterSpec  # noqa: N815


class Metadata(Strict):
    name: Name


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec


def validate(manifest: dict[str, Any]) -> RayJob | RayService:
    """The manifest as its kind's model. Raises pydantic's ValidationError, KeyError for another kind."""
    return {"RayJob": RayJob, "RayService": RayService}[manifest["kind"]].model_validate(manifest)
