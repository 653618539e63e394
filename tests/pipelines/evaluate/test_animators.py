"""Other pipelines of diffusers, small and with random weights, and finished videos: all animate alike."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cinemo.synthetic.images import photo
from cinemo.video import VideoError, write_video
from pipelines.core.output import Output
from pipelines.evaluate import animators
from pipelines.evaluate import job as evaluate
from pipelines.evaluate.config import EvaluateConfig
from tests.loras import write_adapter
from tests.pipelines.conftest import export_another
from tests.pipelines.evaluate import small


@pytest.fixture(scope="module")
def wanted() -> animators.AnimationRequest:
    return animators.AnimationRequest("case", photo("coffee.png")[:64, :64].copy(), "a cup of coffee", 10, 3, 4)


def config(**changes: object) -> EvaluateConfig:
    return EvaluateConfig(dataset="synthetic:1", output="none", **{"num_inference_steps": 2, **changes})


@pytest.mark.parametrize("kind", ["svd", "i2vgen-xl", "pia", "cogvideox-i2v"])
def test_a_baseline_animates_the_image_at_the_size_and_length_of_the_others(
    kind: str, wanted: animators.AnimationRequest, checkpoint: Path, tmp_path: Path
) -> None:
    small.make(kind, tmp_path / kind, checkpoint / "tokenizer")
    animate = animators.load(f"{kind}:{tmp_path / kind}", config(), "cpu")
    first, again = animate(wanted, {}), animate(wanted, {})
    assert first.shape == (4, 64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)  # by its seed
    assert not np.array_equal(first, animate(wanted._replace(seed=4), {}))
    assert not np.array_equal(first, animate(wanted._replace(image=255 - wanted.image), {}))


def test_a_cinemo_model_starts_as_the_ablation_says(wanted: animators.AnimationRequest, checkpoint: Path) -> None:
    animate = animators.load(str(checkpoint), config(), "cpu")
    wanted = wanted._replace(image=photo("coffee.png")[:96, :96].copy())  # of enough cells for a low corner of two
    clips = [animate(wanted, {"init": init}) for init in ("dct", "fft", "none")]
    assert np.array_equal(clips[0], animate(wanted, {}))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(clips[a], clips[b])


def test_adapters_act_as_strongly_as_the_ablation_says(
    wanted: animators.AnimationRequest, checkpoint: Path, tmp_path: Path
) -> None:
    from cinemo import CinemoPipeline

    lora = write_adapter(tmp_path / "lora", checkpoint)
    animate = animators.load(str(checkpoint), config(lora=[f"{lora}:0.5"], guidance_scale=1.0), "cpu")
    pipe = CinemoPipeline.from_pretrained(checkpoint)
    same = {"num_frames": 4, "height": 64, "width": 64, "seed": 3, "num_inference_steps": 2, "guidance_scale": 1.0}
    for settings, adapters in (({"lora": 0.0}, []), ({}, [(str(lora), 0.5)]), ({"lora": 2.0}, [(str(lora), 1.0)])):
        pipe.load_adapters(adapters)
        assert np.array_equal(animate(wanted, settings), pipe(wanted.image, wanted.prompt, **same).frames[0])


def test_finished_videos_are_found_by_the_case_s_name(
    wanted: animators.AnimationRequest, tmp_path: Path, bucket: Any
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 80, 80, 3), np.uint8).repeat(13, axis=0)
    frames[6:] = 0
    write_video(tmp_path / "case.mp4", frames)
    write_video(tmp_path / "second.webp", np.stack([np.full((64, 64, 3), 20 * k, np.uint8) for k in range(4)]))
    Image.new("RGB", (80, 80)).save(tmp_path / "case.webp")  # a thumbnail, which hides no video
    animate = animators.load(f"videos:{tmp_path}", config(), "cpu")
    found = animate(wanted, {})
    assert found.shape == (4, 64, 64, 3)
    bucket.pipe_file("videos/done/case.mp4", (tmp_path / "case.mp4").read_bytes())
    assert np.array_equal(animators.load("videos:s3://videos/done", config(), "cpu")(wanted, {}), found)
    assert found[0].mean() > 50 > found[-1].mean()  # spread over the whole video
    assert abs(animate(wanted._replace(name="second"), {})[3].mean() - 60) < 3
    with pytest.raises(VideoError, match="there is no video other in"):
        animate(wanted._replace(name="other"), {})
    with pytest.raises(VideoError, match="ends before frame"):
        animate(wanted._replace(num_frames=20), {})


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"svd:.* cannot be loaded by diffusers"):
        animators.load(f"svd:{tmp_path}", config(), "cpu")


def test_a_model_that_was_replaced_after_the_job_began_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    settings: dict[str, Any] = {"height": 64, "width": 64, "num_frames": 10, "num_inference_steps": 1}
    job = evaluate.resolve(
        EvaluateConfig(dataset="synthetic:1:pan", output=str(tmp_path / "out"), model=[str(model)], **settings)
    )
    [(name, facts)] = job.facts.items()
    export_another(model / "unet")
    with pytest.raises(ValueError, match=r"here, and .* when the job began; run the job again"):
        evaluate.Evaluator(job.config, name, job.size, job.loras, facts.fingerprint)


def test_rows_of_finished_videos_and_outputs_depend_on_the_files_and_the_metrics(
    checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    write_video(tmp_path / "made" / "a.mp4", np.zeros((4, 64, 64, 3), np.uint8), 8)
    before = animators.version(f"videos:{tmp_path / 'made'}")
    write_video(tmp_path / "made" / "a.mp4", np.full((4, 64, 64, 3), 200, np.uint8), 8)
    assert animators.version(f"videos:{tmp_path / 'made'}") != before
    assert animators.version("svd:a") == "svd:a"

    settings: dict[str, Any] = {"height": 64, "width": 64, "num_frames": 10, "model": [str(checkpoint)]}
    settings |= {"dataset": "synthetic:1:pan", "output": str(tmp_path / "out")}
    job = evaluate.resolve(EvaluateConfig(metrics="motion", **settings))
    Output(job.config.output).claim(job.identity)
    assert evaluate.resolve(EvaluateConfig(metrics="motion", **settings)).identity == job.identity
    with pytest.raises(ValueError, match=r"--metrics: .* was made with metrics"):
        evaluate.resolve(EvaluateConfig(metrics="motion,smoothness", **settings))
