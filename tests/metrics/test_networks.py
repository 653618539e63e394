"""Loading and preprocessing, with small networks that have the published ones' calls and widths."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cinemo.metrics import networks
from cinemo.synthetic.images import photo


class SmallI3D(nn.Module):
    """Means of colours, as 400 numbers."""

    width: int

    def __init__(self, width: int = 400) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert x.ndim == 5
        if rescale:
            x = x * 2 / 255 - 1
        return x.mean(dim=(2, 3, 4)).repeat(1, self.width)[:, : self.width]


class SmallC3D(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x.mean(dim=(1, 2, 3, 4))[:, None] / 255, torch.zeros(len(x), 100)), dim=1)


class Layers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x.mean(dim=(2, 3)), x.flatten(1)[:, :2045]), dim=1)


class SmallInception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        return self.layers(x)


class SmallVGG(nn.Module):
    def forward(self, x: Tensor, resize_images: bool = True, return_lpips: bool = False) -> Tensor:
        return x.mean(dim=(2, 3)) / 255


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    made = {
        "i3d": SmallI3D(),
        "wide": SmallI3D(512),
        "c3d": SmallC3D(),
        "inception": SmallInception(),
        "vgg": SmallVGG(),
    }
    for name, module in made.items():
        torch.jit.script(module).save(folder / f"{name}.pt")
    return folder


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return np.repeat(photo("coffee.png")[None, :64, :96], 16, axis=0)


def test_i3d_gets_bytes_and_is_told_to_rescale(weights: Path, clip: np.ndarray) -> None:
    found = networks.load_i3d(str(weights / "i3d.pt"))(clip)
    assert found.shape == (400,)
    assert found[:3] == pytest.approx(clip.mean(axis=(0, 1, 2)) * 2 / 255 - 1, abs=1e-4)
    with pytest.raises(ValueError, match="at least 10 frames, got 9"):
        networks.load_i3d(str(weights / "i3d.pt"))(clip[:9])


def test_c3d_gives_probabilities_of_16_frames(weights: Path, clip: np.ndarray) -> None:
    found = networks.load_c3d(str(weights / "c3d.pt"))(clip)
    assert found.shape == (101,)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="at least 16 frames, got 15"):
        networks.load_c3d(str(weights / "c3d.pt"))(clip[:15])


def test_inception_sees_what_clean_fid_would_show_it(weights: Path, clip: np.ndarray) -> None:
    """PIL's bicubic of each channel in float: near the resize of the 8-bit picture, without its rounding."""
    found = networks.load_inception(str(weights / "inception.pt"))(clip)
    assert found.shape == (16, 2048)
    resized = networks.clean_resize(clip[0])
    by_bytes = np.asarray(Image.fromarray(clip[0]).resize((299, 299), Image.Resampling.BICUBIC), np.float32)
    assert resized.shape == (3, 299, 299)
    assert np.abs(resized.clip(0, 255) - by_bytes.transpose(2, 0, 1)).max() < 1.5
    assert not np.array_equal(resized, resized.round())
    assert found[0, :3] == pytest.approx((resized.mean(axis=(1, 2)) - 128) / 128, abs=1e-4)


def test_lpips_is_the_squared_distance_of_the_features(weights: Path, clip: np.ndarray) -> None:
    distance = networks.load_lpips(str(weights / "vgg.pt"))
    darker = clip[0] // 2
    expected = np.square((clip[0].mean(axis=(0, 1)) - darker.mean(axis=(0, 1))) / 255).sum()
    assert distance(clip[0], darker) == pytest.approx(expected, rel=1e-3)
    assert distance(clip[0], clip[0]) == 0


def test_clipsim_is_the_mean_cosine_of_prompt_and_frames(clip: np.ndarray, tmp_path: Path, checkpoint: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
    text = {**small, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = {**small, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = CLIPProcessor(images, tokenizer)
    model.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")

    moving = np.stack([np.roll(clip[0], 8 * k, axis=1) for k in range(4)])
    similar, consistent = networks.load_clip(str(tmp_path / "clip"))(moving, "a cup of coffee")
    inputs = processor(text=["a cup of coffee"], images=list(moving), return_tensors="pt", padding=True)
    with torch.no_grad():
        seen = model.vision_model(inputs["pixel_values"]).pooler_output
        seen = torch.nn.functional.normalize(model.visual_projection(seen))
        said = model.text_model(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        said = torch.nn.functional.normalize(model.text_projection(said))
    assert similar == pytest.approx(float((seen @ said.T).mean()), abs=1e-5)
    neighbours = torch.nn.functional.cosine_similarity(seen[1:], seen[:-1]).mean()
    assert consistent == pytest.approx(float(neighbours), abs=1e-5)
    assert networks.load_clip(str(tmp_path / "clip"))(clip[:2], "x")[1] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("load", "file", "words"),
    [
        ("load_i3d", "none.pt", "does not exist; pass a TorchScript file"),
        ("load_i3d", "text.pt", "is not a TorchScript file, which I3D needs"),
        ("load_i3d", "wide.pt", "it gives 512 numbers for a clip, I3D gives 400"),
        ("load_i3d", "c3d.pt", "is not I3D: it does not take its input"),
        ("load_c3d", "i3d.pt", "is not C3D: it gives 400 numbers"),
        ("load_inception", "i3d.pt", "is not Inception"),
        ("load_lpips", "c3d.pt", "is not the VGG of LPIPS"),
        ("load_clip", "none", "cannot be loaded"),
    ],
)
def test_weights_of_another_network_are_refused(
    weights: Path, load: str, file: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (weights / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=words):
        getattr(networks, load)(str(weights / file))
