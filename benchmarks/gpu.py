"""Training steps on GPUs: seconds, clips a second and memory by precision, ZeRO stage and checkpointing.

    python benchmarks/gpu.py                                  # preset base on one GPU: half an hour
    python benchmarks/gpu.py --gpus 8 --stages 2 3 --precisions bf16
    python benchmarks/gpu.py --size tiny --device cpu         # tries the script itself, on a U-Net of the tests' size

Each line of the table is a run of its own, with random weights and clips, by the train job's engine and optimizer. A
step has --rounds rounds of gradient accumulation with --micro-batch clips on every GPU. Seconds are the median of
--steps steps after two. Memory is the most that PyTorch allocated on a GPU (on CPUs, what the process grew by);
computed is that of train_memory.py.
"""

import argparse
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from train_memory import activations, states

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Arguments of CinemoUNet, shape (C, N, h, w) of a clip's latents, and width of the text.
SIZES: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "base": ({}, (4, 16, 40, 64), 768),
    "tiny": (
        {
            "block_out_channels": (32, 64),
            "attention_head_dim": 1,
            "layers_per_block": 1,
            "cross_attention_dim": 48,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        (4, 4, 8, 8),
        48,
    ),
}


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the settings of every run: flags of the train job."""
    for precision, stage, checkpointing in itertools.product(options.precisions, options.stages, (False, True)):
        if precision == "fp16" and not (stage and options.device == "cuda"):
            continue
        for compiled in (False, True) if options.compile and stage < 3 else (False,):
            yield {
                "precision": precision,
                "zero_stage": stage,
                "gradient_checkpointing": checkpointing,
                "compile": compiled,
            }


def measure(settings: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train on this rank: seconds of each step, the loss of each, and bytes of memory; or "error"."""
    from cinemo.memory import peak_rss
    from cinemo.residual import training_loss
    from cinemo.unet import CinemoUNet
    from pipelines.core.precision import allow_tf32
    from pipelines.train.config import TrainConfig
    from pipelines.train.engine import cast_inputs, start_engine, take_step

    world, on_gpu = int(os.environ["WORLD_SIZE"]), options.device == "cuda"
    config = TrainConfig(
        dataset="none",
        output="none",
        num_workers=world,
        gpu=on_gpu,
        total_batch=world * options.micro_batch * options.rounds,
        micro_batch=options.micro_batch,
        learning_rate=1e-4,
        **settings,
    )
    device = torch.device(options.device, int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        allow_tf32(config.arithmetic != "fp32")
    unet_config, shape, width = SIZES[options.size]
    before = peak_rss()
    torch.manual_seed(0)
    unet = CinemoUNet(**unet_config).train()
    draw = torch.Generator().manual_seed(int(os.environ["RANK"]))
    count, (channels, frames, *cells) = options.micro_batch, shape
    latents = torch.randn(count, *shape, generator=draw).to(device)
    text = torch.randn(count, 77, width, generator=draw).to(device)
    noise = torch.randn(count, channels, frames - 1, *cells, generator=draw).to(device)
    buckets, timesteps = torch.full((count,), 10, device=device), torch.full((count,), 500, device=device)
    alphas = torch.linspace(0.999, 0.01, 1000, device=device)
    seconds, losses = [], []
    try:
        engine, optimizer = start_engine(config, unet, world)
        call = cast_inputs(engine)
        for _ in range(2 + options.steps):
            began = time.perf_counter()
            for number in range(options.rounds):
                loss = training_loss(call, latents, text, buckets, timesteps, noise, alphas)
                engine.backward(loss)
                if number == options.rounds - 1:
                    take_step(engine, optimizer)
                else:
                    engine.step()
            losses.append(loss.item())  # waits for the GPU
            seconds.append(time.perf_counter() - began)
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    memory = torch.cuda.max_memory_allocated(device) if on_gpu else peak_rss() - before
    return {"seconds": seconds, "losses": losses, "memory": memory}


def run(settings: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Run `measure` in a process for each GPU; returns what rank 0 measured, or "error"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    same = ["--size", options.size, "--device", options.device, "--steps", str(options.steps)]
    same += ["--micro-batch", str(options.micro_batch), "--rounds", str(options.rounds)]
    command = [sys.executable, __file__, *same, "--rank", "--case", json.dumps(settings)]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(options.gpus)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(options.gpus)
    ]
    outputs = [process.communicate() for process in processes]
    for process, (out, error) in zip(processes, outputs, strict=True):
        if process.returncode:
            return {"error": (error.strip() or out.strip() or "died").splitlines()[-1]}
    return json.loads(outputs[0][0].splitlines()[-1])


def computed(settings: dict[str, Any], options: argparse.Namespace, known: dict[tuple[Any, ...], int]) -> int:
    """Bytes that train_memory.py computes for a run. known: activations that were computed before."""
    from cinemo.unet import CinemoUNet

    unet_config, shape, width = SIZES[options.size]
    precision, stage = "fp32" if settings["precision"] == "fp32" else "bf16", settings["zero_stage"]
    kind = (precision, settings["gradient_checkpointing"], precision == "bf16" and stage == 0)
    if kind not in known:
        latents = (options.micro_batch, *shape)
        known[kind] = activations(unet_config, latents, *kind, text=(77, width))
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in CinemoUNet(**unet_config).parameters())
    return states(parameters, stage, precision, options.gpus, gpu=options.device == "cuda").peak(known[kind])


def lines(options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the table, as they are measured."""
    clips = options.gpus * options.micro_batch * options.rounds
    on_gpu = options.device == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    yield (
        f"{options.gpus} x {name}, PyTorch {torch.__version__}, U-Net of preset {options.size}, "
        f"{options.micro_batch} clips at a time on each, {clips} in a step:"
    )
    yield ""
    yield "| precision | ZeRO | checkpointing | compiled | s a step | clips/s | GiB | computed GiB |"
    yield "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: |"
    known: dict[tuple[Any, ...], int] = {}
    for settings in cases(options):
        found = run(settings, options)
        if "error" in found:
            numbers = [found["error"], "", ""]
        else:
            seconds = statistics.median(found["seconds"][2:])
            numbers = [f"{seconds:.3f}", f"{clips / seconds:.2f}", f"{found['memory'] / 2**30:.1f}"]
        flags = ["yes" if settings[key] else "no" for key in ("gradient_checkpointing", "compile")]
        expected = f"{computed(settings, options, known) / 2**30:.1f}"
        yield f"| {' | '.join([settings['precision'], str(settings['zero_stage']), *flags, *numbers, expected])} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gpus", type=int, default=1, help="processes, each with a GPU of this machine")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16", "fp16"), default=["fp32", "bf16"])
    parser.add_argument("--stages", nargs="+", type=int, choices=range(4), default=[0, 1, 2, 3])
    parser.add_argument("--compile", action="store_true", help="measure each with torch.compile, too")
    parser.add_argument("--micro-batch", type=int, default=1, help="clips on a GPU at a time")
    parser.add_argument("--rounds", type=int, default=2, help="gradient accumulation steps of a step")
    parser.add_argument("--steps", type=int, default=5, help="steps to time")
    parser.add_argument("--case", type=json.loads, help="print one run's numbers as JSON; its flags, as a JSON object")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)  # be a process of that run
    options = parser.parse_args(arguments)
    if options.device == "cuda" and torch.cuda.device_count() < options.gpus:
        parser.error(f"--gpus {options.gpus}: PyTorch sees {torch.cuda.device_count()}; give fewer, or --device cpu")
    if options.case is not None:
        print(json.dumps((measure if options.rank else run)(options.case, options)))
        return 0
    for line in lines(options):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
