"""Turn a checkpoint into a U-Net, a model directory or a LoRA, and sheets of samples.

The weights are read from a checkpoint's folder, so that neither the ZeRO stage nor other workers matter. A sheet shows
animations by a model in training beside the clips that they should resemble, as one picture.
"""

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import cinemo
from cinemo import checkpoint, lora
from cinemo.image import fit_pixels, read_image
from cinemo.latents import decode_latents
from cinemo.sheet import contact_sheet
from cinemo.unet import CinemoUNet
from pipelines.core import models, storage, tracking
from pipelines.dataset import reader
from pipelines.dataset.reader import Clip
from pipelines.train import data
from pipelines.train.batch import named_generator, with_trigger_words
from pipelines.train.config import TrainConfig
from pipelines.train.state import read_fragments, trained_weights

SHOWN = 3  # clips on a sheet
STEPS = 10  # inference steps: enough to see motion
CHUNK = 4  # frames that the VAE decodes at once, in the memory that training leaves


def show_samples(
    config: TrainConfig,
    saved: str | Path,
    step: int,
    clips: Sequence[Clip],
    motion: dict[str, str],
    device: torch.device,
    output: str,
    log: tracking.Log,
) -> str | None:
    """Draw a sheet from a checkpoint's folder to OUTPUT/samples/step_000100.png and MLflow.

    clips: their first frames are animated. Returns None, or the reason why there is no sheet. Leaves the global random
    state as it was.
    """
    try:
        with torch.random.fork_rng(devices=[]):  # making a network draws random weights, before it loads its own
            picture = draw_sheet(config, saved, clips, motion, device)
    except torch.OutOfMemoryError:
        return f"no samples of step {step}: training leaves too little memory on {device}"
    except FloatingPointError as error:
        return f"no samples of step {step}: {error}"
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    storage.put(storage.join(output, "samples", f"step_{step:06d}.png"), buffer.getvalue())
    log.image("samples", picture, step)
    return None


def draw_sheet(
    config: TrainConfig, saved: str | Path, clips: Sequence[Clip], motion: dict[str, str], device: torch.device
) -> Image.Image:
    """Draw two rows for each clip: as the VAE decodes it, and its first frame animated by its caption and bucket."""
    from cinemo.pipeline import CinemoPipeline  # takes 1.3 s to import, and only rank 0 needs it

    source = data.directory(config)
    tokenizer, text_encoder = checkpoint.load_text(source, device=str(device))
    pipe = CinemoPipeline(
        vae=checkpoint.load_vae(source, device=str(device)),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=trained_unet(config, saved).to(device).eval(),
        scheduler=checkpoint.load_scheduler(source, data.prediction_type(config)),
        card=checkpoint.ModelCard(motion=motion),
    )
    rows = []
    for clip in clips:  # one at a time: a sheet needs the memory of one animation
        latents = torch.from_numpy(clip.latents).to(device).transpose(0, 1)[None]
        size = [side * checkpoint.vae_factor(pipe.vae.config) for side in latents.shape[-2:]]
        image, pixels = None, None
        if clip.first_frame is not None:
            image = read_image(clip.first_frame)
            pixels = fit_pixels(image, size[0], size[1], exact=True)
        sampled = pipe(
            image,
            with_trigger_words(clip.caption, config.trigger_words),
            motion_bucket=clip.bucket,
            num_frames=latents.shape[2],
            num_inference_steps=STEPS,
            guidance_scale=1.0,  # guidance amplifies the errors of a model that is still learning
            seed=named_generator(clip.clip_id).initial_seed(),
            image_latents=latents[:, :, :1],
            decode_chunk_size=CHUNK,
        ).frames[0]
        true = decode_latents(pipe.vae, latents, CHUNK, pixels)[0]
        rows.append((f"true, motion bucket {clip.bucket}: {clip.caption}", true))
        rows.append(("sampled", sampled))
    return contact_sheet(rows)


def trained_unet(config: TrainConfig, saved: str | Path) -> CinemoUNet:
    """Load the U-Net of a checkpoint's folder: the moving average of its weights, or the last ones without average."""
    if config.lora_rank is not None:
        unet = data.load_unet(config)
    elif config.init.startswith("lavie:"):
        unet = CinemoUNet()
    else:
        unet = CinemoUNet.from_config(CinemoUNet.load_config(data.directory(config) / "unet"))
    fragments, steps = read_fragments(saved)
    key = "ema" if config.ema_decay and steps else "fp32"
    with torch.no_grad():
        for name, weight in trained_weights(unet):
            weight.copy_(torch.cat(fragments[name][key]).view_as(weight))
    return unet


def export(
    config: TrainConfig, dataset: dict[str, Any], saved: str | Path, motion: dict[str, str], run_id: str | None
) -> str:
    """Write OUTPUT/model or OUTPUT/lora from a checkpoint's folder; returns the fingerprint of what was written.

    dataset: its description when the job began. motion: direction of the motion ids, for a model's card. run_id: in
    MLflow.
    """
    if config.product == "lora":
        fingerprint = export_lora(config, dataset, saved, run_id)
    else:
        fingerprint = export_model(config, dataset, saved, motion, run_id)
    if storage.is_local(config.output):  # else a loss of power could leave a run that is finished, with empty weights
        storage.sync_folder(storage.join(config.output, config.product))
    return fingerprint


def export_model(
    config: TrainConfig, dataset: dict[str, Any], saved: str | Path, motion: dict[str, str], run_id: str | None
) -> str:
    """Write OUTPUT/model from a checkpoint's folder; returns the model's fingerprint."""
    source, unet, output = data.directory(config), trained_unet(config, saved), config.output
    shapes = reader.shapes_of(dataset)
    card = checkpoint.ModelCard(
        motion=motion,
        sizes=list(dict.fromkeys((height, width) for _, height, width in shapes)),
        lengths=list(dict.fromkeys(frames for frames, _, _ in shapes)),
        sampling=checkpoint.read_card(source).sampling if config.has_model else {},
        lineage=lineage_of(config, dataset, run_id),
    )
    if storage.is_local(output):
        model = checkpoint.export_model(source, unet, Path(output) / "model", card, data.prediction_type(config))
        return models.fingerprint(model)
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint.export_model(source, unet, Path(folder) / "model", card, data.prediction_type(config))
        return models.publish(model, storage.join(output, "model"))


def export_lora(config: TrainConfig, dataset: dict[str, Any], saved: str | Path, run_id: str | None) -> str:
    """Write OUTPUT/lora from a checkpoint's folder; returns the fingerprint of the adapters' file."""
    source, unet, output = data.directory(config), trained_unet(config, saved), config.output
    shapes = reader.shapes_of(dataset)
    assert config.lora_rank is not None
    card = lora.AdapterCard(
        base=models.plain(config.init),
        base_fingerprint=models.fingerprint(source),
        unet_fingerprint=models.fingerprint(source / "unet"),
        rank=config.lora_rank,
        alpha=config.alpha,
        targets=config.lora_targets,
        trigger_words=config.trigger_words,
        sizes=list(dict.fromkeys((height, width) for _, height, width in shapes)),
        lengths=list(dict.fromkeys(frames for frames, _, _ in shapes)),
        lineage=lineage_of(config, dataset, run_id),
    )
    with tempfile.TemporaryDirectory() as folder:
        local = Path(output) / "lora" if storage.is_local(output) else Path(folder)
        file = lora.write(local, lora.state_of(unet), lora.adapter_config(unet), card)
        if not storage.is_local(output):
            storage.upload(local, storage.join(output, "lora"))
        return lora.fingerprint(file)


def lineage_of(config: TrainConfig, dataset: dict[str, Any], run_id: str | None) -> dict[str, Any]:
    """Lineage of a card: what the training read and how. dataset: dataset.json. run_id: in MLflow."""
    return {
        "dataset": config.dataset,
        "dataset_fingerprint": dataset["fingerprint"],
        "sources": dataset["input"],
        "init": config.init,
        **({"init_fingerprint": models.fingerprint(data.directory(config))} if config.has_model else {}),
        "output": config.output,
        "steps": config.max_steps,
        "ema_decay": config.ema_decay,
        "run_id": run_id,
        "code_version": cinemo.__version__,
    }
