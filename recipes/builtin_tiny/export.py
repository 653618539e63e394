"""From checkpoint files to a model directory, and to a picture of what it does.

    python recipes/builtin_tiny/export.py --out out/tiny --model cinemo/builtin/tiny

Knows the directory's layout. Trains nothing.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, Python sees only its own folder

from cinemo.checkpoint import ModelCard, write_card
from cinemo.pipeline import CinemoPipeline
from cinemo.sheet import contact_sheet
from cinemo.synthetic.images import HELD_OUT_PHOTOS
from recipes.builtin_tiny.clips import NUM_FRAMES, SIZE
from recipes.builtin_tiny.evaluate import SETTINGS, fitted_photo
from recipes.builtin_tiny.text import write_tokenizer
from recipes.builtin_tiny.train_unet import SCHEDULER, load_trained

SHEET_PROMPTS = ("the camera pans left", "the camera pans up", "the camera zooms out")


def write_model(out: Path, directory: Path) -> None:
    """Write the averaged weights of the checkpoints in `out` as a model directory, float16, replacing what is there."""
    vae, _, text_encoder, unet, samples = load_trained(out)
    aside = directory.with_name(directory.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write_tokenizer(aside / "tokenizer")
    for name, part in (("vae", vae), ("text_encoder", text_encoder), ("unet", unet)):
        part.half().save_pretrained(aside / name)
    DDIMScheduler(**SCHEDULER).save_pretrained(aside / "scheduler")
    lineage = {"recipe": "recipes/builtin_tiny", "samples": samples}
    write_card(aside, ModelCard(sizes=[SIZE], lengths=[NUM_FRAMES], sampling=SETTINGS, lineage=lineage))
    for path in aside.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that their owner alone can read
    shutil.rmtree(directory, ignore_errors=True)
    aside.rename(directory)


def load_pipeline(out: Path, device: torch.device | str = "cpu") -> CinemoPipeline:
    """The pipeline of the checkpoints in `out`, without a model directory between."""
    vae, tokenizer, text_encoder, unet, _ = load_trained(out)
    parts = [part.to(device) for part in (vae, text_encoder, unet)]
    card = ModelCard(sizes=[SIZE], lengths=[NUM_FRAMES], sampling=SETTINGS)
    pipe = CinemoPipeline(parts[0], parts[1], tokenizer, parts[2], DDIMScheduler(**SCHEDULER), card)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_sheet(pipe: CinemoPipeline, path: Path, bucket: int = 12) -> None:
    """A picture of animations: a row for each held-out photo, under a prompt of its own."""
    images = [fitted_photo(name, SIZE) for name in HELD_OUT_PHOTOS]
    clips = pipe(images, list(SHEET_PROMPTS), motion_bucket=bucket, seed=0, **SETTINGS).frames
    labels = [f"{name}: {prompt}" for name, prompt in zip(HELD_OUT_PHOTOS, SHEET_PROMPTS, strict=True)]
    rows = list(zip(labels, clips, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--model", type=Path, required=True, help="model directory to write")
    arguments = parser.parse_args()
    write_model(arguments.out, arguments.model)
    pipe = CinemoPipeline.from_pretrained(arguments.model)
    write_sheet(pipe, arguments.out / "sheet.png")


if __name__ == "__main__":
    main()
