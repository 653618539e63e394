"""What the catalog job takes, and what it refuses before a cluster is touched.

Knows flags, their ranges, and what lies at the output. Opens no image and loads no weights.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines import models, request, storage
from pipelines.animation import records
from pipelines.request import Text
from pipelines.sources import catalogs


class AnimateConfig(request.Settings, frozen=True):
    """A catalog, where to, with which model and how many replicas; settings for rows that have none of their own."""

    catalog: str = Field(
        description="folder of images, or .csv, .jsonl, .parquet with image and prompt; a path or any URI"
    )
    output: str = Field(description="folder or URI of the videos; the same command again finishes what is there")
    model: str = Field("builtin:tiny", description="MODEL: builtin:tiny, a directory, hub id, models:/...")
    image_column: str | None = Field(None, description="column that holds the image, or its uri; default: known names")
    prompt_column: str | None = Field(None, description="column that holds the prompt; default: known names")
    video_column: str | None = Field(
        None, description="column with the uri of a video whose motion the image gets; default: known names"
    )
    prompt: Text | None = Field(None, description="what should happen, for rows without a prompt; may be empty")
    limit: int | None = Field(None, ge=1, description="rows of the catalog, from its beginning; default: all")
    format: Literal["mp4", "gif", "webp"] = Field("mp4", description="kind of video file")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="arithmetic of a replica")
    min_replicas: int = Field(1, ge=1, description="replicas of the model at least")
    max_replicas: int | None = Field(
        None, ge=1, description="replicas at most; default: what the cluster has room for when the job starts"
    )
    num_gpus: float = Field(0, ge=0, description="GPUs that a replica reserves; 0.5: two replicas share one")
    batch: int = Field(0, ge=0, le=64, description="most videos made at once; 0: 4 with a GPU, 1 without")
    image_timeout: float = Field(60, gt=0, description="seconds to read and decode one image or video; then a reject")
    max_reject_fraction: float = Field(0.5, ge=0, le=1, description="exit 3 when more than this share was rejected")
    tracking_uri: str | None = Field(
        None, description="MLflow server or database; default: mlflow.db beside the output"
    )

    @model_validator(mode="after")
    def _replicas_are_a_range(self) -> "AnimateConfig":
        if self.max_replicas is not None and self.min_replicas > self.max_replicas:
            raise ValueError(
                f"--min-replicas {self.min_replicas} is above --max-replicas {self.max_replicas}; swap or widen them"
            )
        return self

    @property
    def ending(self) -> str:
        """Of a video's file."""
        return f".{self.format}"

    @property
    def most(self) -> int:
        """Videos that a replica makes at once."""
        return self.batch or (4 if self.num_gpus else 1)


def placed(config: AnimateConfig) -> AnimateConfig:
    """The same job, by names that mean the same to workers, who have other working directories. Raises ValueError."""
    output = storage.absolute(config.output)
    model = models.absolute(config.model, config.tracking_uri, output)
    return config.model_copy(update={"output": output, "model": model})


def made_with(config: AnimateConfig, model: models.Facts) -> dict[str, str]:
    """What makes a video, beside its image and its request; part of its id."""
    return {"model_fingerprint": model.fingerprint, "precision": config.precision, "format": config.format}


def settings(config: AnimateConfig) -> dict[str, Any]:
    """What an output belongs to. Anything else may change: then the rows that it changes are made anew."""
    return {
        "job": "animate",
        "schema_version": records.SCHEMA_VERSION,
        "catalog": storage.absolute(config.catalog),
    }


def check(config: AnimateConfig) -> None:
    """Refuse what cannot work, before a cluster is touched: raises ValueError for catalog, settings, model, output."""
    examine(placed(config))


def examine(config: AnimateConfig) -> models.Facts:
    """What is known of the model of a configuration that was `placed`, and can work. Raises ValueError as `check`."""
    catalogs.check(config.catalog, config.image_column, config.prompt_column, config.prompt, config.video_column)
    if catalogs.is_below(config.output, config.catalog):
        raise ValueError(
            f"--output {config.output} lies in the folder that --catalog names, which would list its pictures; "
            "give a folder beside it"
        )
    found = storage.read_json(storage.join(config.output, "settings.json"))
    for name, value in settings(config).items():
        if found is not None and found.get(name) != value:
            raise ValueError(
                f"--output {config.output} was made by another job, with {name} {found.get(name)!r} where this one has "
                f"{value!r}; give another --output"
            )
    model = models.look_up(config.model)
    try:
        request.complete(config, config.prompt or "", model)
    except request.SettingError as error:
        raise ValueError(f"--{error.field.replace('_', '-')}: {error}") from None
    return model
