"""Settings of the service: models, replicas, places, limits; the schema of `serve run`'s arguments and its YAML."""

import math
import re
import urllib.parse

from pydantic import BaseModel, Field, model_validator

from pipelines.core import storage
from pipelines.core.precision import AUTO, Precision, of_replica
from pipelines.serving.http import outbound


class Replicas(BaseModel, frozen=True, extra="forbid"):
    """Number of replicas of a model, and the resources of each."""

    min_replicas: int = Field(1, ge=0, description="replicas that always run; 0: the first request waits for one")
    max_replicas: int = Field(1, ge=1, description="largest number of replicas")
    target_requests: float = Field(2, gt=0, description="videos per replica above which another replica is started")
    upscale_delay_s: float = Field(10, ge=0, description="seconds of higher load before replicas are added")
    downscale_delay_s: float = Field(300, ge=0, description="seconds of lower load before replicas are removed")
    num_cpus: float = Field(1, ge=0, description="CPUs that a replica reserves, and threads that it computes with")
    num_gpus: float = Field(0, ge=0, description="GPUs that a replica reserves; 0.5: two replicas share one")
    max_batch: int = Field(
        0, ge=0, le=64, description="largest number of videos made at once; 0: 4 with a GPU, 1 without"
    )
    precision: Precision = Field("auto", description=AUTO)
    drain_s: float = Field(600, ge=0, description="seconds that a removed replica has to finish its videos")

    @model_validator(mode="after")
    def _in_order(self) -> "Replicas":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}")
        return self

    @property
    def arithmetic(self) -> str:
        """Name of the torch dtype that a replica computes in."""
        return of_replica(self.precision, self.num_gpus)

    @property
    def batch(self) -> int:
        """Largest number of videos that a replica makes at once."""
        return self.max_batch or (4 if self.num_gpus else 1)

    @property
    def slots(self) -> int:
        """Number of jobs that are sent to replicas at a time: enough to start all of them, and to keep each busy."""
        return math.ceil(self.max_replicas * max(self.target_requests, 2 * self.batch))


class Limits(BaseModel, frozen=True, extra="forbid"):
    """Limits of one request, and of all open requests together."""

    max_bytes: int = Field(20_000_000, ge=1, description="bytes of a request, with the uploaded image")
    max_pixels: int = Field(40_000_000, ge=64, description="pixels of an image")
    max_prompt: int = Field(2000, ge=1, description="characters of a prompt")
    max_steps: int = Field(100, ge=1, le=999, description="denoising steps")
    max_work: int = Field(
        500_000_000,
        ge=1,
        description="pixels x frames x steps of a video; the paper's 512x320 in 50 steps: 131 million",
    )
    max_queue: int = Field(100, ge=1, description="queued and running videos; beyond it requests get 429")
    max_queue_per_key: int = Field(
        0,
        ge=0,
        description="queued and running videos of one API key; 0: an equal share of max_queue, at least a quarter",
    )

    max_file_bytes: int = Field(100_000_000, ge=1, description="bytes of an uploaded file of a batch")
    max_lines: int = Field(50_000, ge=1, description="requests of a batch")
    per_minute: int = Field(0, ge=0, description="videos and batches that a key may request in a minute; 0: any number")

    def share(self, keys: int) -> int:
        """Default limit of one key's queued and running videos, so that none of several keys can fill the queue."""
        return max(1, self.max_queue // max(1, min(keys, 4)))


class Webhooks(BaseModel, frozen=True, extra="forbid"):
    """Receivers of webhooks. CINEMO_WEBHOOK_SECRET has the secret that signs them."""

    url: str | None = Field(None, description="URL to which the end of each video and batch is reported")
    by_request: bool = Field(False, description="let requests name a URL of their own, webhook_url")
    retry_s: float = Field(15, gt=0, description="seconds until the second try; each pause is twice the one before")
    give_up_s: float = Field(3 * 86_400, gt=0, description="seconds after which an undelivered event is dropped")


class ImageUrls(BaseModel, frozen=True, extra="forbid"):
    """Places from which images of requests are fetched."""

    allow: list[str] = Field(
        default_factory=list,
        description="hosts or folders, such as https://images.example.com/photos/; none: no URL is fetched",
    )
    timeout_s: float = Field(20, gt=0, description="seconds for an image, with all redirects")

    @model_validator(mode="after")
    def _are_folders(self) -> "ImageUrls":
        for place in self.allow:
            parts = urllib.parse.urlsplit(place)
            if parts.scheme not in ("http", "https") or not parts.hostname or not place.endswith("/"):
                raise ValueError(f"image_urls.allow: {place} is no place; write https://HOST/ or https://HOST/FOLDER/")
        return self


class ServeSettings(BaseModel, frozen=True, extra="forbid"):
    """Arguments of `serve run serve_app:app NAME=VALUE ...`, and `args` of a Serve configuration."""

    model: str = Field(
        "builtin:tiny", description="MODEL to serve: builtin:tiny, a directory, a hub id, models:/NAME@X"
    )
    models: dict[str, str] = Field(
        default_factory=dict, description="several models: NAME in the API -> MODEL; the first is the default"
    )
    aliases: dict[str, str] = Field(
        default_factory=dict, description="other names of models, which clients send: NAME -> a name in the API"
    )
    loras: dict[str, str] = Field(
        default_factory=dict,
        description="LoRA adapters that requests may name: NAME -> a folder, file, hub id or models:/NAME@ALIAS",
    )
    output: str = Field("out/serve", description="folder or URI of the videos")
    store: str | None = Field(
        None, description="SQLAlchemy URL of the database of jobs; default: jobs.db in a local output"
    )
    require_keys: bool = Field(
        False, description="refuse to start without API keys in CINEMO_API_KEYS, and without keys_file"
    )
    keys_file: str | None = Field(
        None, description="YAML with names, SHA-256 hashes and quotas of API keys; read again when it has changed"
    )
    strict: bool = Field(
        False, description="refuse unknown fields of a request; otherwise they are ignored with a warning"
    )
    allow_origins: list[str] = Field(
        default_factory=list, description='origins whose pages may call the API from a browser (CORS); ["*"]: all'
    )
    page: bool = Field(True, description="serve the page at /ui, if gradio is installed")
    tracking_uri: str | None = Field(
        None, description="MLflow server or database for models:/ names and runs; default: MLFLOW_TRACKING_URI"
    )
    track: bool = Field(False, description="log each finished video in MLflow: request, model, timings, motion")
    ingress_replicas: int = Field(1, ge=1, description="processes that answer HTTP; more than one needs PostgreSQL")
    ingress_cpus: float = Field(0, ge=0, description="CPUs an ingress reserves; above 0: not on a head without CPUs")
    lease_s: float = Field(30, gt=0, description="seconds without a sign of life after which a video is restarted")
    max_attempts: int = Field(
        10, ge=1, description="a video fails after so many deaths of replicas, or two while it was alone"
    )
    ttl_s: float = Field(86_400, gt=0, description="seconds that a finished video is kept")
    file_ttl_s: float = Field(30 * 86_400, gt=0, description="seconds that a batch and its files are kept")
    replicas: Replicas = Field(
        default_factory=lambda: Replicas.model_validate({}), description="replicas of each model"
    )
    limits: Limits = Field(default_factory=lambda: Limits.model_validate({}), description="limits of requests")

    webhooks: Webhooks = Field(default_factory=lambda: Webhooks.model_validate({}), description="ends of videos")
    image_urls: ImageUrls = Field(
        default_factory=lambda: ImageUrls.model_validate({}), description="images that requests name by URL"
    )
    private_hosts: list[str] = Field(
        default_factory=list, description="hosts at private addresses that webhooks and URLs of images may name"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "ServeSettings":
        if self.models and "model" in self.model_fields_set:
            raise ValueError("give either model or models, not both")
        for name in self.loras:
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"loras: {name!r} cannot be named in a request; use letters, digits, dots, - and _")
        for alias, name in self.aliases.items():
            if name not in self.served:
                raise ValueError(f"aliases: {alias} is for {name}, which is not served; use {', '.join(self.served)}")
        if self.webhooks.url is not None:
            try:
                outbound.parse(self.webhooks.url, self.private_hosts)
            except ValueError as error:
                raise ValueError(f"webhooks.url {self.webhooks.url}: {error}") from None
        if self.store is None and not storage.is_local(self.output):
            raise ValueError(
                f"output {self.output} is remote, so store has no default; set it, such as postgresql://..."
            )
        if self.ingress_replicas > 1 and self.store_url.startswith("sqlite"):
            raise ValueError(
                f"ingress_replicas {self.ingress_replicas} may run on several nodes, but SQLite is a file on one; set "
                "store to postgresql://..."
            )
        return self

    @property
    def served(self) -> dict[str, str]:
        """Name in the API -> MODEL; the first is the default."""
        return self.models or {public_name(self.model): self.model}

    @property
    def place(self) -> str:
        """The output as an absolute path or URI, the same for every process."""
        return storage.absolute(self.output)

    @property
    def store_url(self) -> str:
        """SQLAlchemy's URL of the database, for PostgreSQL with the driver that we install."""
        if self.store is None:
            return f"sqlite:///{storage.join(self.place, 'jobs.db')}"
        return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", self.store)


def public_name(model: str) -> str:
    """Name of a MODEL in the API, never a path: the last part of owner/name or of a directory.

    For models:/NAME@ALIAS and models:/NAME/VERSION only NAME, so that requests stay valid when the version changes.
    """
    if model.startswith("builtin:"):
        return model
    if model.startswith("models:/"):
        return re.split("[@/#]", model.removeprefix("models:/"))[0] or "model"
    return model.rstrip("/").split("/")[-1] or "model"
