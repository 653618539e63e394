"""The recipe of the built-in model, at tiny size: it trains, stops, goes on, and exports what the pipeline loads."""

import re

import numpy as np
import pytest
import torch

from cinemo.motion import motion_score
from cinemo.pipeline import CinemoPipeline
from cinemo.synthetic import make_clip, render
from cinemo.synthetic.plan import make_plan
from recipes.builtin_tiny import probe
from recipes.builtin_tiny.clips import CELL, SIZE, clip_flow, mean_ssim
from recipes.builtin_tiny.common import MAX_FILE_BYTES, Training, load_checkpoint, save_checkpoint
from recipes.builtin_tiny.evaluate import MOVES, agrees, fitted_photo, overlap, slide
from recipes.builtin_tiny.export import write_model
from recipes.builtin_tiny.finish_decoder import Predictions, finish_decoder
from recipes.builtin_tiny.train_autoencoder import load_pictures, make_autoencoder, start_linear, train_autoencoder
from recipes.builtin_tiny.train_unet import Lesson, load_trained, train_unet

LESSONS = (
    Lesson(0.5, ("pan",), 0.5, num_frames=2, span=3, batches=1, drop_prompt=0.0),
    Lesson(1.0, ("pan", "still"), 1.0, num_frames=4, span=16, batches=1, drop_prompt=0.5),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints after three steps of each stage, the third in a second call."""
    out = tmp_path_factory.mktemp("tiny")
    for total in (4, 6):
        assert train_autoencoder(out, minutes=5, total=total, batch=2, pictures=4) == total
    for total in (4, 6):
        seen = train_unet(out, minutes=5, total=total, base_batch=2, reuse=4, curriculum=LESSONS, capacity=4)
        assert seen == total
    for total in (4, 6):
        assert finish_decoder(out, minutes=5, total=total, batch=2, pictures=4) == total
    return out


@pytest.mark.parametrize("stage", ["autoencoder", "unet", "decoder"])
def test_a_second_call_continues_from_the_checkpoint(trained, stage):
    saved = load_checkpoint(trained / stage)
    assert saved["counters"].tolist() == [6, 3]
    assert stage != "unet" or any(name.startswith("exp_avg_sq.") for name in saved)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved.values())


def test_the_autoencoder_starts_as_the_principal_components_of_blocks():
    pictures = load_pictures(8, torch.device("cpu"))
    autoencoder = make_autoencoder().eval()
    start_linear(autoencoder, pictures)

    def to_rows(pixels: torch.Tensor) -> np.ndarray:  # of 8 x 8 blocks
        return torch.nn.functional.unfold(pixels, 8, stride=8).transpose(1, 2).reshape(-1, 192).double().numpy()

    photos = [part[::2, :, : part.shape[2] // 8 * 8, : part.shape[3] // 8 * 8] / 127.5 - 1 for part in pictures[:2]]
    rows = np.concatenate([to_rows(photo) for photo in photos])
    middle = rows.mean(0)
    basis = np.linalg.svd(rows - middle, full_matrices=False)[2][:40]
    image = torch.tensor(fitted_photo("coffee.png")).permute(2, 0, 1)[None] / 127.5 - 1
    expected = (to_rows(image) - middle) @ basis.T @ basis + middle
    with torch.no_grad():
        found = to_rows(autoencoder.decode(autoencoder.encode(image).latent).sample)
    assert np.abs(found - expected).max() < 0.02  # of a range of 2: the last norm changes bright pixels a little
    assert np.sqrt(np.square(found - expected).mean()) < 0.005


def test_the_decoder_is_finished_on_what_the_unet_says(trained):
    def predicted() -> Predictions:
        predictions = Predictions(trained)
        for seed in range(3):
            predictions.add(seed)
        return predictions

    predictions = predicted()
    (latents, pixels), again = (part.crops(4, torch.Generator().manual_seed(0)) for part in (predictions, predicted()))
    assert (latents.shape, pixels.shape) == ((4, 44, 8, 8), (4, 3, 64, 64))
    assert torch.equal(latents, again[0])
    assert torch.equal(pixels, again[1])
    said, frames = predictions.clips[0]
    exact = predictions.vae.encode(frames).latent
    assert not torch.allclose(said[:, :40], exact[:, :40], atol=1e-3)  # what it says, not what is
    shared = torch.corrcoef(torch.stack([said[:, 0].flatten(), exact[:, 0].flatten()]))[0, 1]
    assert shared > 0.5  # of the same frames
    finished, before = load_checkpoint(trained / "decoder"), load_checkpoint(trained / "autoencoder")
    names = [name for name in finished if name.startswith("average.decoder.")]
    assert names
    assert any(not torch.equal(finished[name], before[name]) for name in names)
    loaded = load_trained(trained)[0].decoder.state_dict()
    name = "conv_in.weight"
    assert torch.equal(loaded[name], finished[f"average.decoder.{name}"].float())


def test_checkpoint_files_can_travel(trained):
    files = [path for path in trained.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 16 * 2**20
    assert all(len(path.relative_to(trained).parts) <= 2 for path in files)


def test_the_exported_directory_animates(trained, tmp_path):
    write_model(trained, tmp_path / "model")
    pipe = CinemoPipeline.from_pretrained(tmp_path / "model")
    frames = pipe(fitted_photo("coffee.png"), "the camera pans left", num_inference_steps=1, guidance_scale=1).frames
    assert frames.shape == (1, 16, 128, 192, 3)
    assert pipe.scheduler.config.prediction_type == "sample"


def test_the_probe_says_what_each_move_gets_under_both_prompts(trained, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["probe.py", "--out", str(trained), "--clips", "1"])
    probe.main()
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("6 clips seen")
    assert [line[:11].split() for line in lines] == [list(move) for move in MOVES]
    shares = np.array([re.findall(r"[0-9.]+", line[11:]) for line in lines], float)
    assert shares.shape == (6, 9)  # the picture and the motion, four times; and cells moved by the true motion
    assert (shares[:4, 8] < 0.5).all()
    assert (shares[:, :2] > 0.5).all()  # it has learned nothing yet


def test_training_goes_on_as_if_it_had_not_stopped():
    def make() -> tuple[torch.nn.Linear, Training]:
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 8)
        return model, Training(model.named_parameters(), lr=1e-2, betas=(0.0, 0.99))  # no first moment to lose

    def run(model: torch.nn.Linear, training: Training, steps: range) -> None:
        for step in steps:
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
            training.step((model(x) - x).square().mean(), 1e-2, batch_size=4, ema_samples=8)

    whole, training = make()
    run(whole, training, range(6))
    halves, first = make()
    run(halves, first, range(3))
    resumed, second = make()
    second.restore(first.state())
    run(resumed, second, range(3, 6))
    assert torch.allclose(whole.weight, resumed.weight, atol=2e-3)
    assert torch.allclose(training.average["weight"], second.average["weight"], atol=2e-3)


def test_a_checkpoint_of_another_model_is_refused():
    small, large = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2)
    state = Training(small.named_parameters(), lr=1e-3, betas=(0.9, 0.99)).state()
    with pytest.raises(ValueError, match="another model"):
        Training(large.named_parameters(), lr=1e-3, betas=(0.9, 0.99)).restore(state)


def test_large_checkpoints_are_split_and_replaced_as_a_whole(tmp_path):
    tensors = {f"t{i}": torch.full((2**21,), float(i)) for i in range(4)}  # 8 MiB each
    save_checkpoint(tmp_path / "state", tensors)
    save_checkpoint(tmp_path / "state", tensors | {"t3": torch.zeros(3)})
    files = list((tmp_path / "state").iterdir())
    assert max(path.stat().st_size for path in files) < 16 * 2**20
    assert load_checkpoint(tmp_path / "state")["t3"].tolist() == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    with pytest.raises(ValueError, match="t9"):
        save_checkpoint(tmp_path / "state", {"t9": torch.zeros(MAX_FILE_BYTES // 4 + 1)})


def test_the_fast_ssim_is_the_motion_score():
    frames = render([make_plan(seed) for seed in (1, 2, 3)], (64, 96), 4)
    expected = [motion_score(clip.numpy()) for clip in frames]
    assert np.allclose(mean_ssim(frames).numpy(), expected, atol=1e-3)


def test_the_judge_of_directions_knows_true_motion():
    found = 0
    for seed in range(12):
        clip = make_clip(seed, kinds=("pan", "zoom"), held_out=True)
        opposite = clip.frames[::-1]  # time backwards: every direction turns around
        found += agrees(clip.frames, clip.kind, clip.direction) and not agrees(opposite, clip.kind, clip.direction)
    assert found >= 10


def test_a_slide_is_a_pan_of_the_photo():
    clip = slide("coffee.png", 3.0)
    assert agrees(clip, "pan", "right")
    np.testing.assert_array_equal(clip[5][:, :-15], fitted_photo("coffee.png")[:, 15:])
    assert (slide("coffee.png", 0.0) == fitted_photo("coffee.png")).all()


@pytest.mark.parametrize(("down", "right"), [(5, -9), (-7, 12), (0, 0)])
def test_a_camera_that_moved_is_moved_back(down, right):
    wide = np.roll(fitted_photo("coffee.png"), (down, right), axis=(0, 1))
    before, after = fitted_photo("coffee.png")[16:-16, 16:-16], wide[16:-16, 16:-16]
    first, last = overlap(before, after)
    np.testing.assert_array_equal(first, last)
    assert first.shape == (96 - abs(down), 160 - abs(right), 3)


@pytest.mark.parametrize("kind", ["pan", "zoom", "rotate", "shake", "still"])
def test_the_flow_of_a_clip_says_where_each_cell_came_from(kind):
    plan = make_plan(3, kinds=(kind,), held_out=True, max_strength=0.5)
    frames = render([plan], SIZE)[0].permute(0, 3, 1, 2).float()
    flow = clip_flow(plan)[:2].transpose(0, 1)  # (N, 2, h, w), in cells
    assert not flow[0].any()
    pixels = torch.nn.functional.interpolate(flow, size=SIZE, mode="bilinear", align_corners=False) * CELL
    y, x = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    looks = torch.stack([2 * (x + pixels[:, 0]) / SIZE[1] - 1, 2 * (y + pixels[:, 1]) / SIZE[0] - 1], dim=-1)
    first = frames[:1].expand(len(frames), -1, -1, -1)
    moved = torch.nn.functional.grid_sample(first, looks, align_corners=False)
    inside = (looks.abs() < 0.95).all(dim=-1)[:, None].expand_as(moved)
    inside = inside & (torch.arange(SIZE[1]) > CELL) & (torch.arange(SIZE[1]) < SIZE[1] - CELL)
    wrong, change = ((other - frames)[inside].abs().mean() for other in (moved, first))
    assert wrong < 0.5 * change if kind != "still" else wrong < 0.01  # of 255; interpolating twice costs a little
