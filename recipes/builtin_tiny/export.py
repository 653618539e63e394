"""Export a checkpoint as the model directory that ships.

python recipes/builtin_tiny/export.py --out out/tiny --model cinemo/builtin/tiny
"""

import argparse
import shutil
import sys
from pathlib import Path

from diffusers import DDIMScheduler

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, Python sees only its own folder

from cinemo.autoencoder import AutoencoderMotion
from cinemo.checkpoint import ModelCard, write_card
from recipes.builtin_tiny.pool import NUM_FRAMES, SIZES
from recipes.builtin_tiny.text import write_tokenizer
from recipes.builtin_tiny.train import SCHEDULER, load_trained

PROMPTS = ["the camera zooms in", "the camera pans left", "the camera rotates clockwise", "clouds drift to the left"]
SAMPLING = {"num_inference_steps": 2, "guidance_scale": 1.0, "motion_bucket": 6}


def make_card(samples: int) -> ModelCard:
    """Make the card without the motion calibration, which calibrate.py adds."""
    lineage = {"recipe": "recipes/builtin_tiny", "samples": samples}
    sizes, lengths = list(SIZES), [NUM_FRAMES]
    return ModelCard(sizes=sizes, lengths=lengths, sampling=dict(SAMPLING), prompts=PROMPTS, lineage=lineage)


def write_model(out: Path, directory: Path) -> None:
    """Write the averaged weights of the checkpoint in `out` as a model directory in float16, replacing an old one."""
    _, text_encoder, unet, samples = load_trained(out)
    aside = directory.with_name(directory.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write_tokenizer(aside / "tokenizer")
    for name, part in (("vae", AutoencoderMotion(code_refinements=1)), ("text_encoder", text_encoder), ("unet", unet)):
        part.half().save_pretrained(aside / name)
    DDIMScheduler(**SCHEDULER).save_pretrained(aside / "scheduler")
    write_card(aside, make_card(samples))
    for path in aside.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    shutil.rmtree(directory, ignore_errors=True)
    aside.rename(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--model", type=Path, required=True, help="model directory to write")
    arguments = parser.parse_args()
    write_model(arguments.out, arguments.model)


if __name__ == "__main__":
    main()
