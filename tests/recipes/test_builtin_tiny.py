"""The recipe of the built-in model, at tiny size: it draws a pool, trains, stops, goes on, exports what animates."""

import numpy as np
import pytest
import torch
from PIL import Image

from cinemo.autoencoder import AutoencoderMotion
from cinemo.autoencoder import channels as ch
from cinemo.checkpoint import read_card
from cinemo.latents import to_pixels
from cinemo.metrics import psnr
from cinemo.motion import motion_score
from cinemo.pipeline import CinemoPipeline
from cinemo.synthetic import make_clip
from cinemo.synthetic.images import photo
from recipes.builtin_tiny import calibrate, pool, regions, train
from recipes.builtin_tiny.common import MAX_FILE_BYTES, Training, load_checkpoint, save_checkpoint
from recipes.builtin_tiny.evaluate import overlap
from recipes.builtin_tiny.export import write_model
from recipes.builtin_tiny.motions import Motion, camera, describe, draw_motion, waving
from recipes.builtin_tiny.photos import JUDGING, TRAINING, training_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder like the one that photos.py fills, with other pictures."""
    folder = tmp_path_factory.mktemp("photos")
    for names in (*TRAINING.values(), *JUDGING.values()):
        for name in names:
            Image.fromarray(photo("coffee.png")).save(folder / f"{name}.jpg")
    return folder


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A pool of five pictures, and a checkpoint after two calls."""
    folder = tmp_path_factory.mktemp("tiny")
    pool.make_pool(folder / "pool", photos, 3)
    pool.make_pool(folder / "pool", photos, 5)
    clips = pool.Pool(folder / "pool")
    assert len(clips) == 5 * pool.MOTIONS
    for total in (6, 12):
        assert train.train(clips, folder / "out", minutes=5, total=total, follow=False) >= total
    return folder


def test_a_second_call_continues_from_the_checkpoint(trained):
    saved = load_checkpoint(trained / "out" / "checkpoint")
    assert saved["counters"][0] >= 12
    assert any(name.startswith("exp_avg_sq.") for name in saved)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved.values())
    files = [path for path in (trained / "out").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 16 * 2**20


def test_a_pool_is_the_same_whenever_it_is_drawn(trained, photos):
    item = pool.make_item(4, photos, training_photos(photos), AutoencoderMotion())
    stored = torch.load(trained / "pool" / "00004.pt", weights_only=False)
    assert torch.equal(item["latents"], stored["latents"])
    assert item["motions"] == stored["motions"]
    assert item["scores"] == stored["scores"]


def test_the_exported_directory_animates_and_is_calibrated(trained, photos, monkeypatch):
    model = trained / "model"
    write_model(trained / "out", model)
    monkeypatch.setattr(calibrate, "IDS", (-0.5, 4.0, 10.0, 19.5, 19.6))
    monkeypatch.setattr("sys.argv", ["calibrate.py", "--model", str(model), "--photos", str(photos), "--pictures", "1"])
    calibrate.main()
    ids = read_card(model).motion["ids"]
    assert len(ids) == 20
    assert ids == sorted(ids)
    pipe = CinemoPipeline.from_pretrained(model)
    frames = pipe(photo("coffee.png"), "the camera pans left", num_inference_steps=1, guidance_scale=1).frames
    assert frames.shape == (1, 16, 320, 512, 3)
    assert pipe.scheduler.config.prediction_type == "v_prediction"


def test_the_calibration_inverts_the_response():
    ids = np.array(calibrate.IDS)
    response = np.stack([0.5 * (ids + 0.5), 0.5 * (ids + 0.5) + 0.1, np.minimum(0.5 * (ids + 0.5), 3)])  # one cannot
    table = calibrate.invert(response)
    reached = [0.5 * (number + 0.5) for number in table]
    assert np.abs(np.array(reached[1:9]) - (np.arange(1, 9) + 0.5)).max() < 0.11
    assert table == sorted(table)


@pytest.mark.parametrize("seed", range(12))
def test_the_latents_of_a_motion_decode_to_its_frames(photos, seed):
    rng = np.random.default_rng(seed)
    image = to_pixels(np.asarray(Image.fromarray(photo("coffee.png")).resize((256, 160)))[None])[0]
    motion, vae = draw_motion(rng), AutoencoderMotion()
    times = torch.arange(1, pool.NUM_FRAMES)
    first = vae.encode_image(image[None])[0]
    made = vae.decode(torch.cat([first[None], first + pool.residuals_of(motion, first, {}, times)]), image)[1:]
    frames = pool.frames_at(image, motion, times, {})
    wrong, change = ((other - frames).abs().mean() for other in (made, image))
    assert wrong <= 0.35 * change + 0.01, motion.parts


def test_a_mirrored_picture_has_the_latents_of_the_mirrored_picture(photos):
    image = to_pixels(np.asarray(Image.fromarray(photo("coffee.png")).resize((256, 160)))[None])
    vae = AutoencoderMotion()
    for axis in (-1, -2):
        expected = vae.encode_image(image.flip(axis))[0]
        found = pool.mirrored(vae.encode_image(image)[0], axis)
        assert torch.allclose(found[ch.CODE], expected[ch.CODE], atol=1e-4)
        assert torch.equal(found[ch.CAMERA], expected[ch.CAMERA])  # places stay where they are
        assert (found[ch.LIKENESS] - expected[ch.LIKENESS]).abs().mean() < 0.3  # it looks to the right and down


def test_captions_name_the_motion_and_its_pace():
    rng = np.random.default_rng(0)
    said = [describe(camera(rng, "pan", 0.3, "left"), rng) for _ in range(60)]
    assert all("left" in text for text in said)
    assert any("slowly" in text for text in said)
    assert not any("quickly" in text for text in said)
    both = Motion((("pan", "up"), ("zoom", "in")), 3.0)
    assert all("up" in text for text in (describe(both, rng) for _ in range(20)))


def test_regions_are_judged_by_the_share_of_motion_inside():
    assert 0.2 < regions.mask_of(regions.MASKS["rocket", "sky"]).mean() < 0.6

    class Pipe:
        vae = AutoencoderMotion()

    def animate(pipe, jobs, **settings):  # everything moves: the share is that of the region's area
        residuals = torch.zeros(15, ch.CHANNELS, 10, 16)
        residuals[:, ch.CAMERA.start] = 3.0
        return [residuals.transpose(0, 1)]

    shares = regions.measure(Pipe(), [], animate)
    assert list(shares) == ["rocket sky"]
    assert abs(shares["rocket sky"] - regions.mask_of(regions.MASKS["rocket", "sky"]).mean()) < 1e-3


def test_waves_begin_at_rest():
    x, y = pool.grid(5, 8, 32)
    for kind in ("sway", "ripple", "breathe", "water"):
        motion = waving(kind, 4.0)
        assert not pool.local_displacement(motion, torch.zeros(1), x, y).any()


def test_scores_of_the_pool_are_motion_scores():
    clip = make_clip(5, (128, 192), 8, ("pan",))
    assert motion_score(clip.frames) < 1
    image = to_pixels(clip.frames[:1])[0]
    motion = camera(np.random.default_rng(0), "pan", 1.0, "right")
    frames = pool.to_frames(pool.frames_at(image, motion, torch.arange(pool.NUM_FRAMES), {}))
    assert abs(pool.score_of(image, motion, {}) - motion_score(frames)) < 0.02


@pytest.mark.parametrize(("down", "right"), [(5, -9), (-7, 12), (0, 0)])
def test_a_camera_that_moved_is_moved_back(down, right):
    image = np.asarray(Image.fromarray(photo("coffee.png")).resize((192, 128)))
    wide = np.roll(image, (down, right), axis=(0, 1))
    first, last = overlap(image[16:-16, 16:-16], wide[16:-16, 16:-16])
    assert psnr(first, last) == 100
    assert first.shape == (96 - abs(down) - 8, 160 - abs(right) - 8, 3)


def test_training_goes_on_as_if_it_had_not_stopped():
    def make() -> tuple[torch.nn.Linear, Training]:
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 8)
        return model, Training(model.named_parameters(), 1e-2, (0.0, 0.99), {})  # no first moment to lose

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
    state = Training(small.named_parameters(), 1e-3, (0.9, 0.99), {}).state()
    with pytest.raises(ValueError, match="another model"):
        Training(large.named_parameters(), 1e-3, (0.9, 0.99), {}).restore(state)


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
