"""A replica loads one model and makes the frames of rows, several of one shape at once.

A batch that fails is tried again row by row, so that a bad row does not affect others. A row whose process dies is
given up after DEATHS processes, which a ledger counts.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from cinemo import CinemoPipeline
from cinemo.editing import inverted_noise
from cinemo.errors import first_line
from cinemo.latents import decode_latents, encode_pixels, to_frames
from cinemo.memory import keep_freed_memory
from cinemo.metrics import psnr
from cinemo.residual import join
from cinemo.sidecar import Request
from pipelines.animate import files, request, requested_adapters, videos
from pipelines.animate.config import AnimateConfig
from pipelines.animate.records import light, reject, table
from pipelines.core import models
from pipelines.core.output import Reason
from pipelines.core.precision import allow_tf32

Row = dict[str, Any]
DEATHS = 5  # processes that may die while working on a row alone, for whatever reason, before it is given up


class DeadlyError(Exception):
    """Too many processes died while they worked on a row."""


class Animator:
    """One replica; the model is loaded once."""

    def __init__(
        self, config: AnimateConfig, facts: dict[str, Any], ledger: Any, loras: Mapping[str, str] | None = None
    ) -> None:
        """config: after job.placed. facts: for every sidecar. ledger: a flow.Ledger or flow.RemoteLedger.

        loras: as in plan.Plan. Raises ValueError if the model here is not the one whose fingerprint is in the facts.
        """
        if not config.num_gpus:
            keep_freed_memory()  # this process does nothing else, and needs as much for every video
        device = "cuda" if config.num_gpus else "cpu"
        allow_tf32(config.arithmetic != "float32")
        directory = models.resolve(config.model)
        self.pipe = CinemoPipeline.from_pretrained(directory, getattr(torch, config.arithmetic), device)
        models.check_unchanged(config.model, directory, facts["model_fingerprint"])
        self.pipe.set_progress_bar_config(disable=True)
        self.adapters = requested_adapters.Switch(self.pipe, loras)
        self.batch, self.output, self.facts = config.batch_size, config.output, facts
        self.ledger = ledger

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Replace pixels by frames, or reject the row; rows without pixels pass through."""
        passing = pc.is_null(block["pixels"])
        if pc.any(passing).as_py():
            yield block.filter(passing)
        rows = block.filter(pc.invert(passing)).to_pylist()
        waiting = [(request.shape_of(json.loads(row["request"]), row["clip"] is not None), row) for row in rows]
        waiting.sort(key=lambda pair: pair[0])
        for _, same in groupby(waiting, key=lambda pair: pair[0]):
            group = [row for _, row in same]
            for first in range(0, len(group), self.batch):
                for row in self.animate(group[first : first + self.batch]):
                    yield table([row])  # one by one: a retry then gives the same tables, and frames are large

    def animate(self, rows: Sequence[Row]) -> Iterator[Row]:
        """Animate rows of one shape; yields rows with frames, or rejects."""
        names = [row["id"] for row in rows]
        if len(rows) > 1 and not self.ledger.died(names):
            made = self.attempt(rows)
            if not isinstance(made, Exception):
                yield from made
                return
        for row in rows:
            made = self.attempt([row])
            if isinstance(made, DeadlyError):
                yield reject(row, "animate", Reason.CRASHED, str(made))
            elif isinstance(made, Exception):
                yield reject(row, "animate", Reason.FAILED, f"{type(made).__name__}: {first_line(made)}")
            else:
                yield from made

    def attempt(self, rows: Sequence[Row]) -> list[Row] | Exception:
        """Return the rows from `make` or its exception, or a DeadlyError if too many processes died of these rows.

        Raises OSError when the storage fails, which is not a row's fault.
        """
        names = [row["id"] for row in rows]
        try:
            if max(self.ledger.begin(names)) >= DEATHS:
                return DeadlyError(f"{DEATHS} processes died while they worked on it")
            return self.make(rows)
        except OSError:
            raise
        except Exception as error:
            self.recover()
            return error
        finally:
            self.ledger.end(names)

    @torch.no_grad()
    def make(self, rows: Sequence[Row]) -> list[Row]:
        """Make the frames of rows of one shape. Raises whatever the model raises."""
        asked: list[Request] = [json.loads(row["request"]) for row in rows]
        loras = self.adapters.use(asked[0].get("lora", []))
        height, width = asked[0]["height"], asked[0]["width"]
        pixels = np.stack([np.frombuffer(row["pixels"], np.float32).reshape(3, height, width) for row in rows])
        images = torch.from_numpy(pixels)
        photos, image_latents = to_frames(images), encode_pixels(self.pipe.vae, images)[:, :, None]
        image_latents = image_latents.to(self.pipe.device, self.pipe.unet.dtype)
        began = time.perf_counter()
        latents = self.residuals(rows, asked, image_latents)
        sample_s = (time.perf_counter() - began) / len(rows)
        done = []
        for index, row in enumerate(rows):
            began, known = time.perf_counter(), json.loads(row["facts"])
            own = image_latents[index : index + 1]
            whole = join(own, latents[index : index + 1])
            frames = decode_latents(self.pipe.vae, whole, images=images[index : index + 1])[0]
            inputs = {"image": row["image"], "image_digest": row["image_digest"]}
            if row["clip"] is not None:
                inputs |= {"video": row["source_video"], "video_digest": row["video_digest"]}
            facts = {
                "id": row["id"],
                **self.facts,
                **({"loras": loras} if loras else {}),
                "request": {**asked[index], **inputs},
                "versions": videos.versions(),
                "batch": len(rows),
                "psnr_first_frame": round(psnr(frames[0], photos[index]), 3),
                "cut_away": known["cut_away"],
                "timings": {
                    **known["timings"],
                    "sample_seconds": round(sample_s, 4),
                    "decode_seconds": round(time.perf_counter() - began, 4),
                },
            }
            done.append({**light(row), "frames": frames.tobytes(), "facts": json.dumps(facts)})
        return done

    def residuals(self, rows: Sequence[Row], asked: Sequence[Request], image_latents: torch.Tensor) -> torch.Tensor:
        """Residual latents (B, C, F, h, w): those kept earlier, else newly sampled ones, which are kept."""
        found = [files.kept(self.output, row["id"]) for row in rows]
        new = [index for index, latents in enumerate(found) if latents is None]
        if new:
            wanted = [asked[index] for index in new]
            sampled = self.pipe(
                None,
                image_latents=image_latents[new],
                latents=self.noise([rows[index] for index in new], wanted, image_latents[new]),
                output_type="latent",
                **request.own(wanted),
                **request.shared(asked[0]),
            ).frames
            for index, latents in zip(new, sampled.float().cpu().numpy(), strict=True):
                files.keep(self.output, rows[index]["id"], latents)
                found[index] = latents
        return torch.tensor(np.stack([latents for latents in found if latents is not None])).to(image_latents)

    def noise(self, rows: Sequence[Row], asked: Sequence[Request], image_latents: torch.Tensor) -> torch.Tensor | None:
        """Initial noise inverted from the clips of rows, which carries their motion; None for rows without clips."""
        if rows[0]["clip"] is None:
            return None
        same = request.shared(asked[0])
        shape = [same[name] for name in ("num_frames", "height", "width")]
        return inverted_noise(
            self.pipe,
            np.stack([np.frombuffer(row["clip"], np.uint8).reshape(*shape, 3) for row in rows]),
            image_latents,
            [one["prompt"] for one in asked],
            [one["motion_bucket"] for one in asked],
            **{name: same[name] for name in ("num_inference_steps", "dct_init", "dct_cutoff", "dct_timestep")},
        )

    def recover(self) -> None:
        """Free memory after a failure. If the GPU no longer responds, end the process: Ray starts another."""
        if self.pipe.device.type != "cuda":
            return
        try:
            torch.cuda.empty_cache()
            torch.zeros(1, device=self.pipe.device).item()
        except Exception:
            os._exit(1)
