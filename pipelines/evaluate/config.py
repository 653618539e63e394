"""Flags of the evaluation job; metrics by name, and the variants of an ablation."""

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, field_validator, model_validator

from pipelines.animate.request import Adapters
from pipelines.core import models

REAL = "real"  # the dataset's own clips, measured like a model's for reference
# Metric -> the flag of the weights that it needs, if any.
METRICS = {
    "fvd": "i3d",
    "fid": "inception",
    "is": "c3d",
    "clipsim": "clip",
    "lpips": "lpips",
    "motion": None,
    "fidelity": None,
    "smoothness": None,
    "colour": None,
    "consistency": None,
    "direction": None,
}
# Settings that --ablate may vary, and their types.
ABLATIONS: dict[str, Any] = {
    "init": str,
    "scheduler": str,
    "num_inference_steps": int,
    "guidance_scale": float,
    "dct_cutoff": float,
    "dct_timestep": int,
    "lora": float,
}
INITS = ("dct", "fft", "none")
BASELINES = ("svd", "i2vgen-xl", "pia", "cogvideox-i2v", "videos")


class Variant(NamedTuple):
    """A model with one setting of the ablation; without an ablation, the model itself, with an empty name."""

    model: str
    name: str
    settings: dict[str, Any]

    @property
    def label(self) -> str:
        """Name of the variant in the report."""
        return f"{models.plain(self.model)} {self.name}".strip()


class EvaluateConfig(BaseModel, frozen=True, extra="forbid"):
    """Models, the dataset that they are compared on, and by which metrics."""

    dataset: str = Field(description="synthetic:64, ucf101:FOLDER, msrvtt:FOLDER, or captioned videos as prepare takes")
    output: str = Field(description="folder or URI of the report; the same command again finishes what is there")
    model: list[str] = Field(
        ["builtin:tiny"],
        description="models to compare, once each: a MODEL; svd:, i2vgen-xl:, pia: or cogvideox-i2v: and a directory "
        "or hub id; videos:FOLDER for finished videos",
    )
    lora: Adapters = Field(
        [], description="LoRA adapters of the Cinemo models, PATH[:weight], as in the animate job; --ablate lora=0,1 "
        "multiplies their weights, so that 0 is without",
    )  # fmt: skip
    ablate: str | None = Field(None, description="vary one setting of Cinemo models, such as init=dct,fft,none")
    metrics: list[str] = Field(list(METRICS), description=f"any of {', '.join(METRICS)}; default: all with weights")
    limit: int | None = Field(None, ge=1, description="number of videos, for a quick look; default: the protocol's")
    num_frames: int = Field(16, ge=3, description="frames of a clip")
    height: int | None = Field(None, ge=32, description="pixels; default: the first Cinemo model's, else 320")
    width: int | None = Field(None, ge=32, description="pixels; default: the first Cinemo model's, else 512")
    min_interval: int = Field(1, ge=1, description="smallest distance between frames of a real clip")
    max_interval: int = Field(4, ge=1, description="largest distance between frames of a real clip")
    motion_bucket: int | None = Field(None, ge=0, le=19, description="requested bucket; default: the real clip's")
    num_inference_steps: int | None = Field(None, ge=1, le=999, description="denoising steps; default: each model's")
    guidance_scale: float | None = Field(None, ge=0, description="default: each model's")
    scheduler: str | None = Field(None, description="sampler of Cinemo models; default: ddim, as in the paper")
    seed: int = Field(0, ge=0, description="videos, clips, images and noise are drawn from it and the video's name")
    i3d: str | None = Field(None, description="I3D's TorchScript for fvd: a path or hf://OWNER/NAME/FILE")
    inception: str | None = Field(None, description="Inception's TorchScript for fid: a path or hf://OWNER/NAME/FILE")
    c3d: str | None = Field(None, description="C3D's TorchScript for is: a path or hf://OWNER/NAME/FILE")
    clip: str | None = Field(None, description="CLIP for clipsim: a directory or hub id")
    lpips: str | None = Field(None, description="VGG's TorchScript for lpips: a path or hf://OWNER/NAME/FILE")
    workers: int | None = Field(None, ge=1, description="processes that animate; default: one for each CPU")
    gpus: int = Field(0, ge=0, description="GPUs to animate on, one process each, in place of --workers")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="arithmetic of the models")
    clip_timeout: float = Field(120, gt=0, description="seconds for one real clip to be read; then a reject")
    max_reject_fraction: float = Field(0.1, ge=0, le=1, description="exit 3 when more than this share was rejected")
    tracking_uri: str | None = Field(
        None, description="MLflow server or database; default: mlflow.db beside the output"
    )

    @field_validator("metrics", "model", mode="before")
    @classmethod
    def _commas_separate(cls, values: Any) -> Any:
        parts = values if isinstance(values, list) else [values]
        return [value for part in parts for value in str(part).split(",")]

    @field_validator("metrics")
    @classmethod
    def _metrics_exist(cls, metrics: list[str]) -> list[str]:
        for name in metrics:
            if name not in METRICS:
                raise ValueError(f"{name} is unknown; use {', '.join(METRICS)}")
        return metrics

    @field_validator("ablate")
    @classmethod
    def _ablation_exists(cls, ablate: str | None) -> str | None:
        if ablate is not None:
            read_ablation(ablate)
        return ablate

    @model_validator(mode="after")
    def _ablated_adapters_exist(self) -> "EvaluateConfig":
        if self.ablate and self.ablate.startswith("lora=") and not self.lora:
            raise ValueError(f"--ablate {self.ablate} multiplies the weights of adapters; name one with --lora")
        return self

    @property
    def measured(self) -> list[str]:
        """Requested metrics whose weights are given or not needed, in the report's order."""
        needs = {name: METRICS[name] for name in METRICS if name in self.metrics}
        return [name for name, flag in needs.items() if flag is None or getattr(self, flag) is not None]

    @property
    def left_out(self) -> dict[str, str]:
        """Requested metrics that cannot be computed -> why."""
        missing = [name for name in METRICS if name in self.metrics and name not in self.measured]
        return {name: f"no weights: pass --{METRICS[name]}" for name in missing}


def read_ablation(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Parse --ablate: "init=dct,fft" -> [("init=dct", {"init": "dct"}), ...]. Raises ValueError."""
    name, _, values = text.partition("=")
    name = name.replace("-", "_")
    if name not in ABLATIONS or not values:
        raise ValueError(f"{text} is not an ablation; write NAME=VALUE,VALUE with a NAME of {', '.join(ABLATIONS)}")
    settings = []
    for value in values.split(","):
        try:
            settings.append((f"{name}={value}", {name: ABLATIONS[name](value)}))
        except ValueError:
            raise ValueError(f"{value} is not a valid {name}; give a number") from None
        if name == "init" and value not in INITS:
            raise ValueError(f"init {value} is unknown; use {', '.join(INITS)}")
    return settings


def scheme(model: str) -> str:
    """The kind of a model: one of BASELINES, REAL, or "cinemo"."""
    kind = model.partition(":")[0]
    return kind if kind in (*BASELINES, REAL) else "cinemo"


def variants(config: EvaluateConfig) -> list[Variant]:
    """All variants to compare, the real clips first; only Cinemo models are ablated."""
    compared = [Variant(REAL, "", {})]
    for model in config.model:
        ablation = read_ablation(config.ablate) if config.ablate and scheme(model) == "cinemo" else [("", {})]
        compared += [Variant(model, name, settings) for name, settings in ablation]
    return compared
