"""Flags of the train job, and its presets."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from pipelines.core import models
from pipelines.prepare.config import ExtractConfig

# Defaults that a preset replaces; a flag or a line of YAML wins over them.
PRESETS: dict[str, dict[str, Any]] = {
    # The built-in model's architecture: a run takes minutes on two cores.
    "tiny": {},
    # The paper's run (section 4.1): all weights from LaVie, batch 80, on a dataset of 320 x 512 pixels.
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
    """Parse a count to a number, and check a range "LOW:HIGH", which stays text. Raises ValueError."""
    low, colon, high = str(given).partition(":")
    if not low.isdecimal() or (colon and not high.isdecimal()):
        raise ValueError("should be a number such as 2, or a range such as 1:8")
    if int(low) < 1 or (colon and int(high) < int(low)):
        raise ValueError("should be at least 1, and a range should rise, such as 1:8")
    return f"{int(low)}:{int(high)}" if colon else int(low)


class TrainConfig(BaseModel, frozen=True, extra="forbid", populate_by_name=True):
    """Settings of the train job."""

    dataset: str = Field(
        description="output of ray_jobs/prepare.py (folder or URI); or videos, as for its --input, to stream clips from"
    )
    stream: ExtractConfig = Field(
        default_factory=lambda: ExtractConfig.model_validate({}),
        description="how clips are made when --dataset names videos",
    )
    output: str = Field(description="folder or URI of the run; the same command resumes it from its last checkpoint")
    preset: Literal["tiny", "base"] = Field("tiny", description="defaults for a small run, or for the paper's")
    init: str = Field("builtin:tiny", description="initial weights of the U-Net: a model, lavie:PATH, or none (random)")
    components: str = Field("builtin:tiny", description="model of the other parts when --init is none or lavie:PATH")
    lora_rank: int | None = Field(
        None, ge=1, description="train LoRA adapters of this rank on the model of --init, not the weights themselves"
    )
    lora_alpha: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="adapters are multiplied by this over the rank; default: the rank"
    )
    lora_targets: Literal["attention", "motion", "all"] = Field(
        "attention",
        description="layers with adapters: attention; motion: temporal attention; all: linear layers and convolutions",
    )
    trigger_words: str = Field(
        "", description="text put before every caption that lacks it; the LoRA's card names it, for use in prompts"
    )
    zero_stage: int = Field(2, ge=0, le=3, description="DeepSpeed ZeRO stage; may change when a run is resumed")
    num_workers: Annotated[int | str, BeforeValidator(_worker_range)] = Field(
        2, description="training processes; LOW:HIGH follows the size of the cluster; may change when a run is resumed"
    )
    resize_every: float = Field(
        60, gt=0, description="seconds between checks whether a LOW:HIGH run can grow, which needs a restart"
    )
    gpu: bool = Field(False, description="use one GPU for each worker")
    max_steps: int = Field(100, ge=1, description="optimizer steps of the whole run, including those before a resume")
    prediction_type: Literal["auto", "epsilon", "v_prediction", "sample"] = Field(
        "auto",
        description="what the U-Net learns to predict; auto: as the model of --init, or the noise (Eq. 3) without one",
    )
    total_batch: int = Field(8, ge=1, description="clips in a step, over all workers and gradient accumulation steps")
    micro_batch: int = Field(
        4, ge=1, description="most clips that a worker computes at once; gradients are accumulated"
    )
    learning_rate: float = Field(
        2e-3,
        gt=0,
        description="Adam's, after the warm-up; default from trained weights: 1e-4, or 5e-3 for a LoRA of builtin:tiny",
    )
    warmup_steps: int = Field(5, ge=0, description="steps over which the learning rate rises to its value")
    lr_schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="learning rate after the warm-up: constant, or falling to --min-learning-rate"
    )
    decay_steps: int | None = Field(
        None, ge=1, description="steps of the whole cosine or linear schedule, warm-up included; default: --max-steps"
    )
    min_learning_rate: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="learning rate at the end of a cosine or linear schedule"
    )
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="AdamW's, of all weights; 0: plain Adam")
    grad_clip: float = Field(1.0, gt=0, description="norm that the gradient is clipped to")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="decay of the moving average of the weights, which is exported; 0: no average"
    )
    min_snr_gamma: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="weighs timesteps by min-SNR-gamma (its authors: 5); 0: Eq. 3"
    )
    noise_offset: float = Field(
        0.0, ge=0, le=1, description="deviation of noise that a channel's cells and frames share (often 0.1); 0: none"
    )
    balance_buckets: bool = Field(
        False, description="draw clips by the bucket weights of a dataset prepared with --balance, not in epochs"
    )
    prompt_drop: float = Field(0.5, ge=0, le=1, description="share of prompts replaced by the empty one (paper: 0.5)")
    seed: int = Field(0, ge=0, description="seed of noise, timesteps, prompt drops and order")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="precision of the arithmetic; weights are also kept in fp32; auto: as a run in fp32 or bf16 began, "
        "else bf16 with --gpu and fp32 without",
    )
    compile: bool = Field(False, description="compile the U-Net's layers with torch.compile (not with ZeRO 3)")
    gradient_checkpointing: bool = Field(False, description="compute activations twice: less memory, a third slower")
    offload_optimizer: Literal["none", "cpu"] = Field("none", description="where Adam's state is kept (ZeRO 1 to 3)")
    offload_params: Literal["none", "cpu"] = Field("none", description="where weights not in use are kept (ZeRO 3)")
    deepspeed: str | None = Field(None, description="JSON file of DeepSpeed settings, merged over this job's")
    log_every: int = Field(
        10, ge=1, description="steps between readings of the losses from a GPU, which idles then; CPUs: every step"
    )
    prefetch: int = Field(
        2, ge=0, description="steps whose clips are read ahead by threads; 0: none. Videos are decoded ahead anyway"
    )
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints; the last step always has one")
    validation_share: float = Field(
        0.05, ge=0, lt=1, description="share of the videos that are held out for validation; 0: none"
    )
    validation_clips: int = Field(64, ge=1, description="largest number of clips to validate on")
    validate_every: int = Field(0, ge=0, description="steps between validations; 0: with each checkpoint")
    sample_every: int = Field(
        0, ge=0, description="steps between sample sheets, each with a checkpoint; 0: only at the end"
    )
    max_failures: int = Field(2, ge=0, description="how often the run restarts by itself after a worker has failed")
    max_bad_steps: int = Field(
        10, ge=0, description="steps without a finite loss and gradient to skip before the run stops"
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
        if chosen.get("lora_rank") is not None and "init" not in given:  # adapters need a whole model
            chosen["init"] = chosen.get("components", "builtin:tiny")
        init = chosen.get("init", "builtin:tiny")
        if init != "none":  # trained weights need a smaller learning rate, adapters of a small model a larger one
            is_small = chosen.get("lora_rank") is not None and init.startswith("builtin:")
            chosen.setdefault("learning_rate", 5e-3 if is_small else 1e-4)
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
            raise ValueError("--offload-optimizer needs --zero-stage 1, 2 or 3: stage 0 shards nothing")
        if self.offload_params != "none" and self.zero_stage != 3:
            raise ValueError("--offload-params needs --zero-stage 3, which alone shards the weights")
        if self.compile and self.zero_stage == 3:
            raise ValueError("--compile needs --zero-stage 0, 1 or 2: stage 3 gathers weights within compiled layers")
        if self.lr_schedule == "constant":
            if self.decay_steps is not None or self.min_learning_rate:
                raise ValueError("--decay-steps and --min-learning-rate need --lr-schedule cosine or linear")
        else:
            self._check_decay()
        if self.stream.score_only:
            raise ValueError("--stream.score-only leaves nothing to train on; remove it")
        self._check_lora()
        return self

    def _check_lora(self) -> None:
        if self.lora_rank is not None and not self.has_model:
            raise ValueError(
                f"--lora-rank {self.lora_rank} trains adapters of a trained model, which --init {self.init} is not; "
                "give the name or directory of one"
            )
        if self.lora_rank is not None and self.compile:
            raise ValueError(
                "--compile does not go with --lora-rank, whose compiled layers are not tested; leave it out"
            )
        if self.lora_rank is None and (self.lora_alpha or self.lora_targets != "attention" or self.trigger_words):
            raise ValueError("--lora-alpha, --lora-targets and --trigger-words need --lora-rank, such as 16")

    def _check_decay(self) -> None:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"--min-learning-rate {self.min_learning_rate} is above --learning-rate {self.learning_rate}; lower it"
            )
        if self.warmup_steps >= self.decay_end:
            raise ValueError(
                f"--warmup-steps {self.warmup_steps} leave nothing of the {self.decay_end} steps of --lr-schedule "
                f"{self.lr_schedule}; lower them, or raise --decay-steps"
            )
        if self.max_steps > self.decay_end and not self.min_learning_rate:
            raise ValueError(
                f"--decay-steps {self.decay_end} end before --max-steps {self.max_steps}, at a learning rate of 0, so "
                "the last steps would change nothing; raise them, or --min-learning-rate"
            )

    @property
    def decay_end(self) -> int:
        """Steps of the whole schedule of the learning rate."""
        return self.decay_steps or self.max_steps

    @property
    def arithmetic(self) -> str:
        """Precision with "auto" resolved, for a run that begins: "fp32", "bf16" or "fp16"."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if self.gpu else "fp32"

    @property
    def workers(self) -> tuple[int, int]:
        """Smallest and largest number of workers."""
        low, _, high = str(self.num_workers).partition(":")
        return int(low), int(high or low)

    @property
    def has_model(self) -> bool:
        """True when the U-Net starts from a model directory, not from random or LaVie's weights."""
        return self.init != "none" and not self.init.startswith("lavie:")

    @property
    def alpha(self) -> float:
        """LoRA's alpha; the rank by default, as in diffusers."""
        return self.lora_alpha or float(self.lora_rank or 0)

    @property
    def product(self) -> Literal["model", "lora"]:
        """What a run makes, which is also the name of its folder in the output."""
        return "model" if self.lora_rank is None else "lora"

    @property
    def source_model(self) -> str:
        """Name of the model that gives all parts but, perhaps, the U-Net's weights."""
        return self.init if self.has_model else self.components
