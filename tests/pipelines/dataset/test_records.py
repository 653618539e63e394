"""Rows of a dataset: ids, schemas, tensors that plain pyarrow reads."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dataset import records

SPAN = st.tuples(
    st.text(max_size=8), st.integers(0, 99), st.integers(1, 9), st.integers(2, 16), st.tuples(*[st.integers(1, 9)] * 2)
)


@given(SPAN, SPAN)
def test_two_clips_share_an_id_only_when_they_are_the_same(one: Any, other: Any) -> None:
    assert (records.clip_id(*one, "v1") == records.clip_id(*other, "v1")) == (one == other)


def test_another_sampling_version_gives_another_id() -> None:
    assert records.clip_id("a", 0, 3, 16, (8, 8), "v1") != records.clip_id("a", 0, 3, 16, (8, 8), "v2")


def row(name: str, latents: np.ndarray) -> dict[str, Any]:
    return {
        "uri": f"/{name}.mp4",
        "caption": "a car",
        "clip_id": name,
        "start_frame": 7,
        "interval": 3,
        "fps": 25.0,
        "num_frames": 2,
        "height": 24,
        "width": 40,
        "score": 0.5,
        "bucket": 10,
        "latents": latents.tobytes(),
        "latents_shape": latents.shape,
        "text_embeds": None,
        "text_shape": None,
    }


def test_plain_pyarrow_reads_latents_without_ray(tmp_path: Path) -> None:
    latents = np.arange(2 * 4 * 3 * 5, dtype=np.float16).reshape(2, 4, 3, 5)
    table = records.clip_table([row("b", latents + 1), row("a", latents)])
    pq.write_table(table, tmp_path / "part.parquet")
    code = f"""
import sys, pyarrow.parquet as pq
table = pq.read_table({str(tmp_path / "part.parquet")!r})
tensors = table["latents"].combine_chunks().to_numpy_ndarray()
assert tensors.shape == (2, 2, 4, 3, 5) and tensors.dtype == "float16" and tensors[0].flat[-1] == 119, tensors
assert table["clip_id"].to_pylist() == ["a", "b"] and "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_schema_is_the_documented_one() -> None:
    schema = records.clip_schema({"latents": (16, 4, 8, 12), "text_embeds": (77, 48)})
    assert schema.names == [
        *("clip_id", "uri", "caption", "start_frame", "interval", "fps", "num_frames", "height", "width"),
        *("score", "bucket", "first_frame", "segment", "latents", "text_embeds"),
        *("variable_rate", "sample_aspect_ratio", "transfer", "interlaced"),
    ]
    assert schema.field("score").type == pa.float32()
    assert schema.field("bucket").type == pa.uint8()
    assert schema.field("latents").type == pa.fixed_shape_tensor(pa.float16(), (16, 4, 8, 12))
    assert records.clip_schema({}).names == [n for n in schema.names if n not in ("latents", "text_embeds")]
    assert records.REJECT.names == ["uri", "start_frame", "stage", "reason", "message", "segment"]


def test_latents_of_another_shape_are_refused() -> None:
    small, large = np.zeros((2, 4, 3, 5), np.float16), np.zeros((2, 4, 3, 6), np.float16)
    with pytest.raises(ValueError, match="need 240 numbers, got 264"):
        records.clip_table([row("a", small), row("b", large)])
