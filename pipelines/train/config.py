"""Flags of the train job, and its presets."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from pipelines.core import models
from pipelines.prepare.config import ExtractConfig

# What a preset changes of the defaults below; a flag or a line of YAML wins over both.
PRESETS: dict[str, dict[str, Any]] = {
    # Minutes on two cores: the built-in model's architecture.
    "tiny": {},
    # The paper's run (section 4.1): all parameters from LaVie's weights, batch 80. 320 x 512 is the dataset's size.
    "base": {
        "init": "lavie:lavie_base.pt",
        "components": "maxin-cn/Cinemo",
        "total_batch": 80,
        "micro_batch": 1,
        "learning_rate": 1e-4,
        "warmup_steps": 500,
        "checkpoint_every": 1000,
    },
}


def _worker_range(given: Any) -> Any:
    """A count as the number that it is; "LOW:HIGH" stays text. Raises ValueError for anything else."""
    low, colon, high = str(given).partition(":")
    if not low.isdecimal() or (colon and not high.isdecimal()):
        raise ValueError("should be a number such as 2, or a range such as 1:8")
    if int(low) < 1 or (colon and int(high) < int(low)):
        raise ValueError("should be at least 1, and a range should rise, such as 1:8")
    return f"{int(low)}:{int(high)}" if colon else int(low)


class TrainConfig(BaseModel, frozen=True, extra="forbid", populate_by_name=True):
    """What the train job takes."""

    dataset: str = Field(
        description="folder or URI that ray_jobs/prepare.py wrote; or videos, as its --input, to stream clips from"
    )
    stream: ExtractConfig = Field(
        default_factory=lambda: ExtractConfig.model_validate({}),
        description="how clips are made when --dataset names videos",
    )
    output: str = Field(description="folder or URI of the run; the same command again goes on from its last checkpoint")
    preset: Literal["tiny", "base"] = Field("tiny", description="defaults for a small run, or for the paper's")
    init: str = Field("builtin:tiny", description="where the U-Net starts: a model, lavie:PATH, or none for random")
    components: str = Field("builtin:tiny", description="model that gives all else when init is none or lavie:PATH")
    zero_stage: int = Field(2, ge=0, le=3, description="what DeepSpeed ZeRO shards over the workers; may change")
    num_workers: Annotated[int | str, BeforeValidator(_worker_range)] = Field(
        2, description="training processes; LOW:HIGH takes what the cluster has, and follows it; may change"
    )
    resize_every: float = Field(
        60, gt=0, description="seconds between looks at whether a LOW:HIGH run may grow, which costs a restart"
    )
    gpu: bool = Field(False, description="one GPU for each worker")
    max_steps: int = Field(100, ge=1, description="optimizer steps in all, those before a resume included")
    prediction_type: Literal["auto", "epsilon", "v_prediction", "sample"] = Field(
        "auto",
        description="what the U-Net learns to predict; auto: as init's model, and from nothing the noise (Eq. 3)",
    )
    total_batch: int = Field(8, ge=1, description="clips in a step, over all workers and accumulation rounds")
    micro_batch: int = Field(4, ge=1, description="most clips that a worker takes at once; the rest is accumulated")
    learning_rate: float = Field(2e-3, gt=0, description="Adam's, after the warm-up; 1e-4 from trained weights")
    warmup_steps: int = Field(5, ge=0, description="steps over which the learning rate rises to its value")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="moving average of the weights, which is what is exported; 0: the last weights"
    )
    prompt_drop: float = Field(0.5, ge=0, le=1, description="share of prompts replaced by the empty one (paper: 0.5)")
    seed: int = Field(0, ge=0, description="noise, timesteps, prompt drops and order come from (seed, step, clip)")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="arithmetic; weights are kept in fp32 too")
    gradient_checkpointing: bool = Field(False, description="compute activations twice: less memory, a third slower")
    offload_optimizer: Literal["none", "cpu"] = Field("none", description="where Adam's state lives (ZeRO 1 to 3)")
    offload_params: Literal["none", "cpu"] = Field("none", description="where idle weights live (ZeRO 3)")
    deepspeed: str | None = Field(None, description="JSON file of DeepSpeed settings, merged over this job's")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints; the last step always has one")
    validation_share: float = Field(
        0.05, ge=0, lt=1, description="share of the videos that are never trained on, but judged by; 0: none"
    )
    validation_clips: int = Field(64, ge=1, description="most clips of these videos that the loss is computed on")
    validate_every: int = Field(0, ge=0, description="steps between these losses; 0: with each checkpoint")
    sample_every: int = Field(
        0, ge=0, description="steps between sheets of animations, each with a checkpoint; 0: at the end alone"
    )
    max_failures: int = Field(2, ge=0, description="lost workers that the run gets over by itself")
    max_bad_steps: int = Field(
        10, ge=0, description="steps without a finite loss and gradient, all left out, before the run stops"
    )
    tracking_uri: str | None = Field(None, description="MLflow server or database; default: mlflow.db beside output")
    register_as: Annotated[str, AfterValidator(models.check_name)] | None = Field(
        None,
        alias="register",  # which every pydantic class has as a method
        description="NAME or NAME@ALIAS (default: candidate) for the finished model in MLflow's registry",
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_gives_defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        chosen = {**PRESETS.get(given.get("preset", "tiny"), {}), **given}
        if chosen.get("init", "builtin:tiny") != "none":  # trained weights are nudged, not thrown about
            chosen.setdefault("learning_rate", 1e-4)
        return chosen

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        if self.total_batch < self.workers[1]:
            raise ValueError(
                f"--total-batch {self.total_batch} has no clip for each of --num-workers {self.num_workers}; "
                "raise it, or take fewer workers"
            )
        if self.precision == "fp16" and not (self.gpu and self.zero_stage):
            raise ValueError("--precision fp16 needs --gpu and --zero-stage 1, 2 or 3; use bf16, which needs neither")
        if self.offload_optimizer != "none" and not self.zero_stage:
            raise ValueError("--offload-optimizer needs --zero-stage 1, 2 or 3: at 0 nothing is taken apart")
        if self.offload_params != "none" and self.zero_stage != 3:
            raise ValueError("--offload-params needs --zero-stage 3, which alone shards the weights")
        if self.stream.score_only:
            raise ValueError("--stream.score-only leaves nothing to train on; leave it out")
        return self

    @property
    def workers(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        low, _, high = str(self.num_workers).partition(":")
        return int(low), int(high or low)

    @property
    def has_model(self) -> bool:
        """Whether the U-Net starts from a model directory, not from nothing or LaVie's weights."""
        return self.init != "none" and not self.init.startswith("lavie:")

    @property
    def source_model(self) -> str:
        """The MODEL that gives everything but, perhaps, the U-Net's weights."""
        return self.init if self.has_model else self.components
