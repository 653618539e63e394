"""Settings of one animation, from an HTTP request, a row of a catalog or flags, completed with the model's defaults."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, Field

from cinemo.image import cut_away, fitting_size
from cinemo.samplers import SPEEDS, Speed
from cinemo.sidecar import Request
from pipelines.core.models import Facts

MAX_SEED = 2**63 - 1
VideoFormat = Literal["mp4", "webm", "gif", "webp"]  # of the catalog's videos and the service's
FPS = 8.0  # default


def _storable(text: Any) -> Any:
    if isinstance(text, str) and "\0" in text:
        raise ValueError("should not contain the character NUL")
    if isinstance(text, str) and text.encode(errors="ignore").decode() != text:  # no database or response takes it
        raise ValueError("should not contain half of a surrogate pair")
    return text


Text = Annotated[str, BeforeValidator(_storable)]


def _listed(value: Any) -> Any:
    """Split a text, or each text of a list, at commas; anything else is returned as it is."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        return value  # for pydantic to refuse
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


Adapters = Annotated[list[Text], BeforeValidator(_listed)]  # PLACE[:weight] each


class Settings(BaseModel, frozen=True, extra="forbid"):
    """What may be asked for beside the image and the prompt; what is None is the model's or the caller's to fill in."""

    size: str | None = Field(
        None, pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$",
        description="WIDTHxHEIGHT in pixels; auto, the default: the model's size that is nearest to the image's aspect",
    )  # fmt: skip
    fps: float | None = Field(None, ge=1, le=60, allow_inf_nan=False, description="frames a second; default: 8")
    num_frames: int | None = Field(None, ge=2, le=64, description="frames, the image included; default: the model's")
    negative_prompt: Text = Field("", description="what should not happen; used when guidance_scale is above 1")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="the same seed gives the same video; default: 0")
    num_inference_steps: int | None = Field(None, ge=1, le=999, description="denoising steps; default: the model's")
    speed: Speed | None = Field(
        None, description="sampler, steps and what they share: paper (50 steps of DDIM), balanced (4 times as fast, "
        "near to it), fast (8 times, less near); default: the model's steps of DDIM",
    )  # fmt: skip
    guidance_scale: float | None = Field(
        None, ge=0, le=50, allow_inf_nan=False,
        description="how strongly the prompt acts; 1 or less: not at all; default: the model's",
    )  # fmt: skip
    fit: Literal["crop", "pad", "auto"] = Field(
        "crop", description="an image of another aspect than the size. crop: its centre fills the frame; pad: all of "
        "it, between blurred bars; auto: an older name of crop",
    )  # fmt: skip
    lora: Adapters = Field(
        [], description="LoRA adapters of the model, PATH[:weight]: a folder that training wrote, a file, a hub id, "
        "models:/...; several are separated by commas",
    )  # fmt: skip
    motion_bucket: int | None = Field(None, ge=0, le=19, description="motion: 0 (still) to 19; default: the model's")
    dct_init: bool = Field(True, description="refine the initial noise with the image's low frequencies (DCTInit)")
    dct_cutoff: float = Field(
        0.23, ge=0, le=1, allow_inf_nan=False, description="share of the frequencies that DCTInit takes"
    )
    dct_timestep: int = Field(975, ge=0, le=999, description="noise level of the image in DCTInit")


class SettingError(ValueError):
    """A setting that the model or the file cannot take; `field` is its name."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def complete(asked: Settings, prompt: str, model: Facts, ending: str = ".mp4") -> Request:
    """Complete the settings for a pipeline. Raises SettingError for what the model, or a file so named, cannot take.

    Only a size that depends on the image stays open: then `sizes` holds the choices, and `fitted` chooses.
    """
    from cinemo.arguments import check_length, check_settings, check_size  # torch, which `--help` does not need
    from cinemo.videowrite import check_fps

    card = model.card
    preset = speed_preset(asked)
    steps = preset.get("num_inference_steps") or asked.num_inference_steps or card.steps
    is_open = asked.size in (None, "auto")
    width, height = (None, None) if is_open else map(int, str(asked.size).split("x"))
    frames = asked.num_frames or card.length
    try:
        field = "size"
        height, width = check_size(height, width, model.factor, card.sizes)
        field = "num_frames"
        check_length(frames, card.lengths)
        field = "num_inference_steps"
        check_settings(steps, asked.dct_timestep, "np", 1, model.scheduler)
        field = "fps"
        check_fps(asked.fps or FPS, ending)
    except ValueError as error:
        raise SettingError(field, str(error)) from None
    made = {
        "prompt": prompt,
        "negative_prompt": asked.negative_prompt,
        "width": width,
        "height": height,
        "num_frames": frames,
        "fps": asked.fps or FPS,
        "seed": asked.seed or 0,
        "num_inference_steps": steps,
        "guidance_scale": card.guidance if asked.guidance_scale is None else asked.guidance_scale,
        "motion_bucket": card.bucket if asked.motion_bucket is None else asked.motion_bucket,
        **asked.model_dump(include={"dct_init", "dct_cutoff", "dct_timestep"}),
        **({"fit": "pad"} if asked.fit == "pad" else {}),
        # One size leaves no choice. Earlier versions stored it with fit pad or auto; so do we, to keep these ids.
        **({"sizes": card.sizes} if is_open and card.sizes and (len(card.sizes) > 1 or asked.fit != "crop") else {}),
        **preset,
    }
    return cast(Request, made)


def fitted(request: Request, tall: int, wide: int) -> Request:
    """Fix the size of a request for an image of tall x wide pixels: its own, or the nearest of `sizes` in aspect."""
    if "sizes" not in request:
        return request
    height, width = fitting_size(tall, wide, request["sizes"])
    made = {**request, "height": height, "width": width}
    return cast(Request, {name: value for name, value in made.items() if name != "sizes"})


def cut_of(request: Request, tall: int, wide: int) -> float:
    """Share of an image of tall x wide pixels that is cut away to fill the size of its video."""
    return 0.0 if "fit" in request else round(cut_away(tall, wide, request["height"], request["width"]), 4)


def speed_preset(asked: Settings) -> dict[str, Any]:
    """The settings that `speed` stands for; {} without it. Raises SettingError if steps are requested as well."""
    if asked.speed is None:
        return {}
    if asked.num_inference_steps is not None:
        raise SettingError("speed", f"speed {asked.speed} sets num_inference_steps itself; give one of the two")
    preset = {REQUEST_NAMES.get(name, name): value for name, value in SPEEDS[asked.speed].items()}
    return {"speed": asked.speed, **preset}


# Defaults of a row with a source video: those of `cinemo edit`.
EDITED = {"guidance_scale": 1.0, "dct_init": False, "dct_timestep": 985}

# Settings that must be equal in a batch.
SAME_FOR_ALL = ("height", "width", "num_frames", "num_inference_steps", "dct_init", "dct_cutoff", "dct_timestep")
OF_SOME = ("fit", "scheduler", "guidance_interval", "cache_interval")  # in requests with padding or a speed
CHAIN = " chain"
REQUEST_NAMES = {"cache_interval": "reuse"}  # the older name, kept in sidecars and so in the ids of videos


def own(asked: Sequence[Request]) -> dict[str, list[Any]]:
    """Arguments of CinemoPipeline that each request of a batch has for itself, as lists."""
    names = ("prompt", "negative_prompt", "motion_bucket", "seed", "guidance_scale")
    return {name: [one[name] for one in asked] for name in names}  # type: ignore[literal-required]


def shared(request: Request) -> dict[str, Any]:
    """The settings that all requests of a batch share with this one, as arguments of CinemoPipeline."""
    names = {name: REQUEST_NAMES.get(name, name) for name in (*SAME_FOR_ALL, *OF_SOME)}
    stored: Mapping[str, Any] = request
    return {name: stored[kept] for name, kept in names.items() if kept in stored}


def shape_of(request: Request, edited: bool = False) -> str:
    """Shape of a complete request: those of equal shape fit in one batch. edited: whether it has a source video.

    Chains of clips are animated one by one; their shape ends in CHAIN.
    """
    same = " ".join(f"{name}={value}" for name, value in shared(request).items())
    if "lora" in request:
        same += " lora=" + ",".join(f"{one['fingerprint']}:{one['weight']}" for one in request["lora"])
    guided = f"{same} guided={request['guidance_scale'] > 1}"
    if "extend" in request:
        return guided + CHAIN
    return f"{guided}{' edited' if edited or 'video_digest' in request else ''}"
