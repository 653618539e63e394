"""Flags of the prepare job: how clips are drawn from videos, encoded and written."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from pipelines.prepare import shapes


class SamplingConfig(BaseModel, frozen=True, extra="forbid"):
    """How clips are taken from a video (paper, section 4.1)."""

    clips_per_video: int = Field(1, ge=1, description="clips taken from each video")
    num_frames: Annotated[int | str, BeforeValidator(shapes.check_lengths)] = Field(
        16, description="frames in a clip; of several, such as 8,16, a video's clips have the most that fit"
    )
    min_interval: int = Field(3, ge=1, description="smallest distance between sampled frames, in frames of the video")
    max_interval: int = Field(10, ge=1, description="largest distance between sampled frames, in frames of the video")
    scene_cut: float | None = Field(
        None, ge=-1, le=1, description="reject clips with neighbouring frames of a lower SSIM; default: keep them"
    )
    max_enlargement: float | None = Field(
        None, gt=0, description="reject videos that must be enlarged more than so many times to fill their size; "
        "default: 1.2 with several sizes, without limit with one",
    )  # fmt: skip
    seed: int = Field(0, ge=0, description="clips are drawn from (seed, video, number of the clip), from nothing else")

    @model_validator(mode="after")
    def _interval_is_a_range(self) -> "SamplingConfig":
        if self.min_interval > self.max_interval:
            raise ValueError(
                f"--min-interval {self.min_interval} is above --max-interval {self.max_interval}; swap or widen them"
            )
        return self

    @property
    def lengths(self) -> list[int]:
        """Numbers of frames that a clip may have, rising."""
        return shapes.read_lengths(self.num_frames)


class ExtractConfig(SamplingConfig, frozen=True):
    """How clips are made of videos: sampling, at what size, with which model, by how many processes."""

    uri_column: str | None = Field(None, description="column of a manifest that names the video; default: known names")
    caption_column: str | None = Field(None, description="column that holds the caption; default: known names")
    model: str = Field(
        "builtin:tiny", description="model whose VAE encodes: builtin:tiny, a directory, hub id, models:/..."
    )
    height: int | None = Field(None, ge=64, multiple_of=8, description="pixels; default: the model's, else 320")
    width: int | None = Field(None, ge=64, multiple_of=8, description="pixels; default: the model's, else 512")
    sizes: Annotated[str, AfterValidator(shapes.check_sizes)] | None = Field(
        None, description="sizes, such as 512x320,320x512,416x416 (width first); a video gets the one nearest in aspect"
    )
    area: int | None = Field(None, ge=4096, description="pixels of a frame, about: sizes of --aspect-buckets aspects")
    aspect_buckets: int | None = Field(
        None, ge=2, le=33, description="sizes that --area makes, of aspects evenly spaced from 16:9 to 9:16; default: 5"
    )
    score_only: bool = Field(False, description="write scores and buckets, no latents")
    store_posterior: bool = Field(False, description="store the latents' log-variance beside their mean")
    embed_text: bool = Field(False, description="store text embeddings too, so that training needs no text encoder")
    encoders: int | None = Field(None, ge=1, description="processes that run the VAE; default: one for each CPU")
    gpus: int = Field(0, ge=0, description="GPUs for the VAE, one process each, in place of --encoders")
    clip_timeout: float = Field(120, gt=0, description="seconds for one clip to be read and scored; then a reject")

    @model_validator(mode="after")
    def _scores_alone_have_no_tensors(self) -> "ExtractConfig":
        if self.score_only and (self.embed_text or self.store_posterior):
            raise ValueError("--score-only stores no tensors; leave out --embed-text and --store-posterior")
        if (self.height is None) != (self.width is None):
            raise ValueError(f"--height {self.height} and --width {self.width} go together; give both or neither")
        given = {"--height": self.height, "--sizes": self.sizes, "--area": self.area}
        named = [f"{flag} {value}" for flag, value in given.items() if value is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} both say how large frames are; give one of them")
        if self.aspect_buckets is not None and self.area is None:
            raise ValueError(f"--aspect-buckets {self.aspect_buckets} needs --area, the pixels of a frame; give both")
        return self


class PrepareConfig(ExtractConfig, frozen=True):
    """What the prepare job takes: how clips are made, and where from, where to."""

    input: str = Field(
        description="folder, .csv, .json, .jsonl, .parquet or WebDataset .tar of videos; a path or any URI"
    )
    output: str = Field(description="folder or URI of the dataset; the same command again finishes what is there")
    balance: bool = Field(False, description="write a sampling weight for each bucket, so that all count the same")
    clips_per_file: int = Field(32, ge=1, description="clips in a Parquet file, and what a kill at most makes do again")
    max_reject_fraction: float = Field(0.5, ge=0, le=1, description="exit 3 when more than this share was rejected")
    tracking_uri: str | None = Field(
        None, description="MLflow server or database; default: mlflow.db beside the output"
    )
