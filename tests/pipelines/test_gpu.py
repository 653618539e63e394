"""Everything that needs an NVIDIA GPU, in five minutes on one: `pytest -m gpu`. Skipped where there is none.

References are computed on the CPU in float32, where the other tests hold them to the official code.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cinemo import CinemoPipeline
from cinemo.metrics import psnr
from cinemo.residual import training_loss
from cinemo.synthetic.images import photo
from cinemo.unet import CinemoUNet
from pipelines.animate import job as animate
from pipelines.animate.config import AnimateConfig
from pipelines.core.precision import allow_tf32
from pipelines.train import job as train
from pipelines.train.engine import AdamWithAverage
from pipelines.train.losses import read_losses
from tests.pipelines.animate.conftest import QUICK, write_catalog, write_photo
from tests.pipelines.train.plain import run_plain, small_config
from tests.tiny import TINY

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU"),
]
ROOT = Path(__file__).parents[2]
STEPS = 3
# Precision, ZeRO stage, and further flags; relative tolerance of the loss of each step, which falls by a tenth a step.
RUNS: list[tuple[str, int, dict[str, bool], float]] = [
    ("fp32", 0, {}, 1e-4),
    ("fp32", 2, {}, 1e-4),
    ("fp32", 3, {"gradient_checkpointing": True}, 1e-4),
    ("fp32", 0, {"compile": True, "gradient_checkpointing": True}, 1e-4),
    ("bf16", 0, {}, 4e-2),
    ("bf16", 1, {}, 4e-2),
    ("bf16", 2, {"compile": True}, 4e-2),
    ("bf16", 3, {}, 4e-2),
    ("fp16", 2, {}, 1e-2),
]


@pytest.fixture(autouse=True)
def exact_float32() -> None:
    """Float32 as on CPUs; a test that wants TF32 allows it."""
    allow_tf32(False)


def official_case(golden: Any, checkpoint: Path, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """What the U-Net computes on the GPU, and the official code's output."""
    case = golden("unet_case_a")
    unet = CinemoUNet.from_pretrained(checkpoint / "unet").eval().to(DEVICE, dtype)
    names = ("sample", "encoder_hidden_states", "base_content", "motion_ids")
    sample, text, image, motion = (torch.from_numpy(case[name]).to(DEVICE, dtype) for name in names)
    with torch.no_grad():
        out = unet(sample, torch.from_numpy(case["timesteps"]).to(DEVICE), text, image, motion).sample
    return out.float().cpu().numpy(), case["output"]


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str
)
def test_the_unet_computes_the_official_numbers(
    golden: Any, checkpoint: Path, dtype: torch.dtype, bound: float
) -> None:
    ours, official = official_case(golden, checkpoint, dtype)
    assert np.abs(ours - official).max() < bound * np.abs(official).max()


def test_tf32_is_off_until_it_is_allowed() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    a, b = torch.randn(2, 256, 256, device=DEVICE)
    exact = (a.double() @ b.double()).float()
    errors = {}
    for allowed in (False, True):
        allow_tf32(allowed)
        errors[allowed] = ((a @ b - exact).norm() / exact.norm()).item()
    assert errors[False] < 1e-6 < 1e-4 < errors[True] < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_video_is_that_of_a_cpu_in_every_precision(dtype: torch.dtype) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 4, "height": 192, "width": 320, "seed": 3}
    image = photo("coffee.png")
    expected = CinemoPipeline.from_pretrained("builtin:tiny")(image, "the camera pans left", **settings).frames[0]
    pipe = CinemoPipeline.from_pretrained("builtin:tiny", dtype, DEVICE)
    frames = pipe(image, "the camera pans left", **settings).frames[0]
    assert psnr(frames, expected) > (40 if dtype == torch.float32 else 28)


def test_the_vae_is_float32_beside_float16(checkpoint: Path) -> None:
    pipe = CinemoPipeline.from_pretrained(checkpoint, torch.float16, DEVICE)
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.float16, torch.float32)
    frames = pipe(photo("coffee.png"), "a cup", height=64, width=64, num_frames=4, num_inference_steps=2).frames
    assert frames.shape == (1, 4, 64, 64, 3)


def steps_of(settings: dict[str, Any], device: str) -> dict[str, Any]:
    """Losses and memory of the first steps of the train job's engine, in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--size", "tiny", "--device", device]
    command += ["--precisions", settings["precision"], "--stages", str(settings["zero_stage"]), "--steps", str(STEPS)]
    done = subprocess.run([*command, "--case", json.dumps(settings)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "error" not in found, found["error"]
    return found


@pytest.fixture(scope="module")
def reference() -> list[float]:
    return steps_of({"precision": "fp32", "zero_stage": 0}, "cpu")["losses"]


@pytest.mark.parametrize(("precision", "stage", "flags", "tolerance"), RUNS)
def test_steps_have_the_losses_of_a_cpu(
    reference: list[float], precision: str, stage: int, flags: dict[str, bool], tolerance: float
) -> None:
    found = steps_of({"precision": precision, "zero_stage": stage, **flags}, DEVICE)
    losses = list(dict.fromkeys(found["losses"]))  # fp16 leaves steps out while it looks for its scale
    assert len(losses) == len(reference) or (precision == "fp16" and len(losses) > 1)
    np.testing.assert_allclose(losses, reference[: len(losses)], rtol=tolerance)
    print(f"{precision}, ZeRO {stage}, {flags}: {found['memory'] / 2**20:.0f} MiB")


def test_a_step_does_not_wait_for_the_gpu() -> None:
    """Our part of a step; under ZeRO 1 to 3 DeepSpeed waits once more, to clip the gradient."""
    unet = CinemoUNet(**TINY).train().to(DEVICE)
    optimizer = AdamWithAverage(unet.parameters(), 1e-4, 0.999)
    drawn = [torch.randn(2, 4, 4, 8, 8), torch.randn(2, 77, 48), torch.full((2,), 10), torch.full((2,), 500)]
    pinned = [tensor.pin_memory() for tensor in (*drawn, torch.randn(2, 4, 3, 8, 8))]
    alphas = torch.linspace(0.999, 0.01, 1000, device=DEVICE)

    def step() -> torch.Tensor:
        inputs = [tensor.to(DEVICE, non_blocking=True) for tensor in pinned]
        loss = training_loss(unet, *inputs, alphas, reduction="none", min_snr_gamma=5.0)
        loss.mean().backward()
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in unet.parameters() if weight.grad is not None])
        optimizer.found_inf = (~norm.isfinite()).float()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    step()  # makes the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses.isfinite().all()


@pytest.mark.ray
def test_a_training_on_a_gpu_resumes_with_the_losses_of_a_cpu(
    prepared: str, ray_cluster: None, tmp_path: Path, tracking_uri: str
) -> None:
    config = small_config(prepared, tmp_path)
    plain = run_plain(config, 8)
    same = {"gpu": True, "num_workers": 1, "tracking_uri": tracking_uri, "log_every": 3}
    for precision, tolerance in (("fp32", 1e-3), ("auto", 3e-2)):
        for stage, steps in ((0, 4), (2, 8)):  # 4 and 8 are no multiples of log_every
            changes = {**same, "output": str(tmp_path / precision), "zero_stage": stage, "max_steps": steps}
            train.run(train.resolve(config.model_copy(update={**changes, "precision": precision})))
            losses = read_losses(str(tmp_path / precision))
            np.testing.assert_allclose(losses, plain.losses[:steps], rtol=tolerance)
    stored = json.loads((tmp_path / "auto" / "settings.json").read_text())
    assert stored["precision"] == "bf16"


@pytest.mark.ray
def test_a_catalog_is_animated_on_a_gpu_in_bfloat16(checkpoint: Path, ray_cluster: None, tmp_path: Path) -> None:
    for number in range(2):
        write_photo(tmp_path / f"{number}.png", number)
    lines = [{"image": f"{number}.png", "prompt": "a photo"} for number in range(2)]
    config = AnimateConfig(
        catalog=write_catalog(tmp_path / "catalog.jsonl", lines),
        output=str(tmp_path / "out"),
        model=str(checkpoint),
        num_gpus=1,
        max_replicas=1,
        **QUICK,
    )
    assert animate.run(animate.resolve(config))["counts"]["videos"] == 2
    assert pq.read_table(tmp_path / "out" / "results").num_rows == 2
    sidecars = [json.loads(path.read_text()) for path in (tmp_path / "out" / "videos").glob("*.json")]
    assert {sidecar["precision"] for sidecar in sidecars} == {"bfloat16"}
