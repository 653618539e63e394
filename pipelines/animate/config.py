"""Flags of the animate job: catalog, output, model and replicas, and defaults for rows of the catalog."""

from pydantic import Field, model_validator

from pipelines.animate import request
from pipelines.animate.request import Text, VideoFormat
from pipelines.core.precision import AUTO, Precision, of_replica


class AnimateConfig(request.Settings, frozen=True):
    """A catalog, where to, with which model and how many replicas; settings for rows that have none of their own."""

    catalog: str = Field(
        description="folder of images, or .csv, .json, .jsonl, .parquet with image and prompt; a path or any URI"
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
    format: VideoFormat = Field("mp4", description="kind of video file")
    precision: Precision = Field("auto", description=AUTO)
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
        """Ending of video files, such as ".mp4"."""
        return f".{self.format}"

    @property
    def arithmetic(self) -> str:
        """Name of the torch dtype that a replica computes in; part of a video's id."""
        return of_replica(self.precision, self.num_gpus)

    @property
    def batch_size(self) -> int:
        """Largest number of videos that a replica makes at once."""
        return self.batch or (4 if self.num_gpus else 1)
