"""The tokenizer and the text encoder of the built-in model.

The tokenizer is byte-level: it accepts any text, but only words of the caption grammar are single tokens.
"""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from recipes.builtin_tiny.motions import all_words

WIDTH = 128  # of the text features
MAX_TOKENS = 77  # as in every CLIP
END = "</w>"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def byte_characters() -> list[str]:
    """CLIP's 256 printable characters, one for each byte, in the order of its vocabulary."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in visible] + [chr(256 + n) for n in range(256 - len(visible))]


def learn_merges(texts: list[str]) -> list[tuple[str, str]]:
    """Learn byte-pair merges, the most frequent first, until every word of the texts is one token."""
    words = {word: [*word[:-1], word[-1] + END] for word in sorted({w for t in texts for w in t.lower().split()})}
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in words.values() for pair in pairwise(parts))
        if not pairs:
            return merges
        best = min(
            pairs, key=lambda pair: (-pairs[pair], pair)
        )  # ties broken by spelling, so that merges are the same on any machine
        merges.append(best)
        for word, parts in words.items():
            joined: list[str] = []
            for part in parts:
                if joined and (joined[-1], part) == best:
                    joined[-1] += part
                else:
                    joined.append(part)
            words[word] = joined


def write_tokenizer(directory: Path) -> CLIPTokenizer:
    """Write the four files of a CLIP tokenizer and load them back."""
    directory.mkdir(parents=True, exist_ok=True)
    merges = learn_merges([text.replace(",", " ") for text in all_words()])
    characters = byte_characters()
    tokens = [*characters, *(c + END for c in characters), *("".join(pair) for pair in merges), *SPECIAL]
    start, end = SPECIAL
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "do_lower_case": True}
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (directory / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(directory)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Make an untrained text encoder of 2 layers, which is trained together with the U-Net."""
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    start_as_bag_of_words(text_encoder, tokenizer.eos_token_id)
    return text_encoder


@torch.no_grad()
def start_as_bag_of_words(text_encoder: CLIPTextModel, pad: int) -> None:
    """Initialize the weights so that every token's feature is the sum of the caption's words, without positions.

    With the usual initialization, "left" instead of "right" changes the 70 padding tokens by only a tenth, and an
    untrained U-Net takes thousands of steps to notice. Positions are learned during training.
    """
    parameters = dict(text_encoder.named_parameters())
    for name, parameter in parameters.items():
        if name.endswith("position_embedding.weight") or name.endswith("fc2.weight"):
            parameter.zero_()
        elif name.endswith(("v_proj.weight", "out_proj.weight")):
            parameter.copy_(torch.eye(len(parameter)))
        elif name.endswith("token_embedding.weight"):
            parameter[pad] = 0  # layer norm keeps zero: padding adds nothing to the sum
