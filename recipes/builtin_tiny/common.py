"""Parts of a training: the device, checkpoint files, optimizer and average of the weights, the log."""

import csv
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

MAX_FILE_BYTES = 15 * 2**20  # keeps each checkpoint file under 16 MiB
LOG_SECONDS = 20.0


def save_checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write the tensors to folder/part-0.safetensors and so on, in files under 16 MiB.

    A stop at any moment leaves the old checkpoint or the new one: the files are written to a second folder, which then
    replaces the first. Raises ValueError for a tensor that is too large for one file.
    """
    parts: list[dict[str, torch.Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > MAX_FILE_BYTES:
            raise ValueError(f"tensor {name} has {size} bytes, more than {MAX_FILE_BYTES}; make the model smaller")
        if used + size > MAX_FILE_BYTES:
            parts.append({})
            used = 0
        parts[-1][name] = tensor.detach().cpu().contiguous()
        used += size
    aside, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir(parents=True)
    for number, part in enumerate(parts):
        save_file(part, aside / f"part-{number}.safetensors")
    if folder.exists():
        os.rename(folder, old)
    os.rename(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Load the tensors that save_checkpoint wrote; empty if there is no checkpoint."""
    if not folder.exists():  # a stop between the two renames leaves the checkpoint under this name
        folder = folder.with_name(folder.name + ".old")
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("part-*.safetensors")):
        tensors.update(load_file(path))
    return tensors


class Training:
    """Parameters, AdamW and the running average of the weights; can be saved and restored."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, torch.nn.Parameter]],
        lr: float,
        betas: tuple[float, float],
        shares: Mapping[str, float],
    ) -> None:
        """shares: prefix of parameter names -> their share of the learning rate; 1 for all others."""
        self.parameters = {name: p for name, p in parameters if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        groups: dict[float, list[torch.nn.Parameter]] = {}
        for name, p in self.parameters.items():
            share = next((share for prefix, share in shares.items() if name.startswith(prefix)), 1.0)
            groups.setdefault(share, []).append(p)
        self.optimizer = torch.optim.AdamW(
            [{"params": members, "share": share} for share, members in groups.items()],
            lr=lr, betas=betas, weight_decay=0.01,
        )  # fmt: skip
        self.samples = 0  # seen so far: schedules count samples, so that they do not depend on the batch size
        self.steps = 0

    def step(self, loss: torch.Tensor, lr: float, batch_size: int, ema_samples: float, max_norm: float = 1.0) -> float:
        """Update from a scalar loss; returns the gradient's norm. The average spans about ema_samples samples."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), max_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        self.optimizer.step()
        self.steps += 1
        self.samples += batch_size
        # Early on, the window is a tenth of the samples, so that the average forgets the random first weights.
        window = min(ema_samples, self.samples / 10) / batch_size
        share = min(1.0, 1.0 / max(window, 1.0))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), share)
        return float(norm)

    def state(self, finished: bool = False) -> dict[str, torch.Tensor]:
        """State for a restart, in half precision; if the training is finished, only the averaged weights.

        Adam's second moments have a wide range, so they are bfloat16. First moments span only ten steps and are left
        out, which makes the files a quarter smaller and the first steps after a restart shorter.
        """
        tensors = {"counters": torch.tensor([self.samples, self.steps])}
        tensors |= {f"average.{name}": p.half() for name, p in self.average.items()}
        if not finished:
            tensors |= {f"weights.{name}": p.detach().half() for name, p in self.parameters.items()}
            for name, p in self.parameters.items():
                if "exp_avg_sq" in self.optimizer.state.get(p, {}):
                    tensors[f"exp_avg_sq.{name}"] = self.optimizer.state[p]["exp_avg_sq"].bfloat16()
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what state() returned. Raises ValueError if the checkpoint is of another model."""
        missing = [name for name in self.parameters if f"average.{name}" not in tensors]
        if missing:
            raise ValueError(f"the checkpoint lacks {missing[0]}: it is of another model; choose another --out folder")
        self.samples, self.steps = (int(n) for n in tensors["counters"])
        with torch.no_grad():
            for name, p in self.parameters.items():
                average = tensors[f"average.{name}"]
                self.average[name].copy_(average)
                p.copy_(tensors.get(f"weights.{name}", average))
                if f"exp_avg_sq.{name}" in tensors:
                    self.optimizer.state[p] = {
                        "step": torch.tensor(float(self.steps)),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(p),
                    }


def learning_rate(samples: int, total: int, peak: float, warmup: int, hold: float = 0.0) -> float:
    """Learning rate: linear warm-up, the peak until a share `hold` of all samples, then a cosine down to peak / 50."""
    if samples < warmup:
        return peak * (samples + 1) / warmup
    start = max(warmup, hold * total)
    progress = min(1.0, max(0.0, (samples - start) / max(1, total - start)))
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


class Log:
    """A CSV file with a line about every 20 seconds: means of the values since the last line, without NaN."""

    def __init__(self, path: Path):
        self.path = path
        self.started = self.last = time.monotonic()
        self.noted: dict[str, list[float]] = {}

    def note(self, samples: int, **values: float) -> None:
        """Add values of one step; write and print a line when it is due."""
        for key, value in values.items():
            self.noted.setdefault(key, []).append(value)
        if time.monotonic() - self.last >= LOG_SECONDS:
            self.flush(samples)

    def flush(self, samples: int) -> None:
        """Write the line now."""
        now = time.monotonic()
        line: dict[str, float] = {"samples": samples, "seconds": round(now - self.started, 1)}
        line |= {key: round(float(np.nanmean(v)), 6) for key, v in self.noted.items()}
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, line)
            if fresh:
                writer.writeheader()
            writer.writerow(line)
        print("  ".join(f"{key} {value}" for key, value in line.items()), flush=True)
        self.noted, self.last = {}, now
