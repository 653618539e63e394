"""The arithmetic of training's memory: what a real run takes, what live tensors are, and that the page says so."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import paper_run, train_memory
from benchmarks.train_memory import Live, activations, states
from cinemo import lora
from cinemo.unet import CinemoUNet

ROOT = Path(__file__).parents[3]
UNET: dict[str, Any] = {
    "block_out_channels": (64, 128, 256),
    "attention_head_dim": 2,
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
}
BUCKET = 1_000_000  # a CPU takes only as much of the default's 500 million as is used


# In float32, activations are nearly half of all. Many a CPU computes bfloat16 slowly: fewer frames.
@pytest.mark.parametrize(
    ("stage", "precision", "checkpointing", "frames", "lora_rank"),
    [(2, "fp32", False, 16, 0), (3, "bf16", True, 8, 0), (2, "fp32", False, 4, 16)],
)
def test_a_real_run_takes_what_was_computed(
    tmp_path: Path, stage: int, precision: str, checkpointing: bool, frames: int, lora_rank: int
) -> None:
    latents = (1, 4, frames, 16, 16)
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": BUCKET}}))
    settings = {"zero_stage": stage, "precision": precision, "gradient_checkpointing": checkpointing}
    settings |= {"lora_rank": lora_rank} if lora_rank else {}
    arguments = [json.dumps(value) for value in ({**settings, "deepspeed": str(own)}, UNET, latents)]
    # What is freed goes back to the system at once, and oneDNN keeps no kernels: the process is as large as what lives.
    eager = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
    eager["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "0"
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipelines.train.measure_step", *arguments],
        cwd=ROOT, env=os.environ | eager | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.splitlines()[-1])

    unet = CinemoUNet(**UNET)
    parameters, frozen = sum(weight.numel() for weight in unet.parameters()), 0
    assert parameters > 1e7
    if lora_rank:
        lora.add_adapter(unet, lora_rank, lora_rank, "attention")
        parameters, frozen = sum(w.numel() for w in unet.parameters() if w.requires_grad), parameters
    live = activations(UNET, latents, precision, checkpointing, text=(77, 64), lora_rank=lora_rank)
    memory = states(parameters, stage, precision, world_size=1, bucket=BUCKET, gpu=False, frozen=frozen)
    computed = memory.peak(live)
    print(f"activations {live / computed:.0%} of {computed / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB")
    assert computed == pytest.approx(measured, rel=0.15)


def test_live_tensors_are_counted_once_and_only_while_they_live() -> None:
    known = torch.ones(1000)
    with Live([known]) as live:
        first = known * 2  # 4000 bytes
        view = first.view(10, 100)[3:]
        assert live.now == 4000
        second = view.double() + known.view(10, 100)[3:]  # 5600 bytes, and the doubles for a moment
        assert live.now == 9600
        del first, view
        assert live.now == 5600
        known.add_(1)
        del second
    assert (live.now, live.peak) == (0, 4000 + 2 * 5600)


@pytest.mark.parametrize("command", [train_memory, paper_run], ids=["memory", "paper"])
def test_the_page_is_what_the_command_prints(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--check"]) == 0, capsys.readouterr().out
