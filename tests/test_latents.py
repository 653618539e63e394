"""Decoding: in calls that fit into memory, and with the same frames whatever fits."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cinemo import latents
from cinemo.checkpoint import load_vae
from cinemo.latents import decode_latents

SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from cinemo import checkpoint, latents

torch.set_num_threads(1)
latents.free_memory = lambda: 1 << 40  # as though nothing else would take any
vae = checkpoint.load_vae(Path(sys.argv[1]), "frame")
sizes, decode = [], vae.decode
def watched(part):
    sizes.append(len(part))
    return decode(part)
clip = torch.randn(1, vae.config.latent_channels, 14, 40, 64, generator=torch.Generator().manual_seed(0))
expected = latents.decode_latents(vae, clip, 1)
vae.decode = watched
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[2]) * (1 << 20), most))
try:
    frames = latents.decode_latents(vae, clip, 14)
except RuntimeError as error:
    print("no room", sizes, latents.is_out_of_memory(error), error)
else:
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    print("same" if np.abs(frames.astype(int) - expected).max() <= 1 else "other", sizes)
"""


@pytest.fixture(scope="module")
def vae(checkpoint: Path) -> Any:
    return load_vae(checkpoint, "frame")


def calls(vae: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames each later call of the VAE decodes."""
    sizes: list[int] = []
    decode = vae.decode

    def watched(part: torch.Tensor) -> Any:
        sizes.append(len(part))
        return decode(part)

    monkeypatch.setattr(vae, "decode", watched)
    return sizes


def test_a_call_decodes_what_fits_into_free_memory_and_the_frames_are_the_same(
    vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = torch.randn(2, vae.config.latent_channels, 7, 8, 8)
    expected = decode_latents(vae, clip, 7)
    sizes = calls(vae, monkeypatch)
    monkeypatch.setattr(latents, "free_memory", lambda: 1 << 40)
    frame = (1 << 40) // latents.frames_that_fit(vae, clip)
    monkeypatch.setattr(latents, "free_memory", lambda: 3 * frame + frame // 2)
    frames = decode_latents(vae, clip, 7)
    assert sizes == [3, 3, 1, 3, 3, 1]
    assert np.abs(frames.astype(int) - expected).max() <= 1
    monkeypatch.setattr(latents, "free_memory", lambda: 0)
    assert np.abs(decode_latents(vae, clip, 7).astype(int) - expected).max() <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits on memory")
def test_a_call_that_finds_no_room_is_made_again_with_half_the_frames(checkpoint: Path) -> None:
    def attempt(megabytes: int) -> str:
        program = [sys.executable, "-c", SHORT_OF_MEMORY, str(checkpoint), str(megabytes)]
        return subprocess.run(program, check=True, capture_output=True, text=True).stdout

    with_little = attempt(250)
    assert with_little.startswith("same [14, 7, "), with_little
    with_less = attempt(5)  # not even for one frame: the error itself
    assert with_less.startswith("no room [14, 7, "), with_less
    assert "1] True" in with_less, with_less


def test_other_errors_are_not_tried_again(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = calls(vae, monkeypatch)
    with pytest.raises(RuntimeError, match="channels"):
        decode_latents(vae, torch.randn(1, vae.config.latent_channels + 1, 4, 8, 8))
    assert sizes == [4]
