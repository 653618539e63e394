"""What a frame looks like when it is shown: interlaced, anamorphic, HDR, rotated and transparent ones."""

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cinemo import hdr
from cinemo.video import VideoError, load_clip, sample_clip, shown_size
from tests.videos import corners, encode, quadrants

CORNERS = corners(quadrants())


def disc(width: int, height: int, aspect: float) -> np.ndarray:
    """A white disc of radius 40 on black, uint8 (H, W, 3), round where a pixel is `aspect` times as wide as high."""
    y, x = np.mgrid[:height, :width]
    inside = np.hypot((x - width / 2 + 0.5) * aspect, y - height / 2 + 0.5) < 40
    return np.repeat(255 * inside[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "aspect"), [("wide.mp4", "4/3"), ("dv.mkv", "64/45"), ("narrow.ts", "8/9"), ("kinetics.mp4", "64/51")]
)
def test_pixels_that_are_not_square_are_shown_as_they_were_meant(tmp_path: Path, name: str, aspect: str) -> None:
    wide, high = (int(part) for part in aspect.split("/"))
    options = {"crf": "4", "x264-params": f"sar={aspect}"}
    path = encode(tmp_path / name, [disc(128, 96, wide / high)] * 4, options=options)
    for size, radius in ((None, 40), ((48, 48), 20), ((192, 384), 40 * max(2, 384 / (128 * wide / high)))):
        picture = sample_clip(path, 0, 1, 2, size)[1][..., 0] > 127
        assert picture.shape == (size or (96, round(128 * wide / high)))
        assert abs(picture.any(axis=0).sum() - 2 * radius) <= 4  # the disc's width, and its height
        assert abs(picture.any(axis=1).sum() - min(2 * radius, len(picture))) <= 4
    assert load_clip(path, 0, 1, 2, None).traits.sample_aspect_ratio == pytest.approx(wide / high)


@pytest.mark.parametrize("aspect", ["1/10", "10/1"])
def test_an_absurd_shape_of_pixels_counts_as_square(tmp_path: Path, aspect: str) -> None:
    path = encode(tmp_path / "odd.mp4", [quadrants()] * 4, options={"x264-params": f"sar={aspect}"})
    assert sample_clip(path, 0, 1, 2).shape == (2, 64, 96, 3)


def stripes(moment: int) -> np.ndarray:
    """Upright stripes that move to the right, uint8 (96, 128, 3)."""
    x = np.arange(128) - 4 * moment
    return np.broadcast_to((128 + 100 * np.sin(x / 6))[None, :, None], (96, 128, 3)).astype(np.uint8)


@pytest.mark.parametrize("first", ["tff", "bff"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_interlaced_frames_show_one_moment(tmp_path: Path, first: str, codec: str) -> None:
    upper, lower = (0, 1) if first == "tff" else (1, 0)
    woven = []
    for k in range(12):
        picture = stripes(2 * k + upper)
        picture[1::2] = stripes(2 * k + lower)[1::2]
        woven.append(picture)
    options = {"crf": "4", "x264-params": f"{first}=1"} if codec == "libx264" else {"flags": "+ildct+ilme"}
    path = encode(tmp_path / "woven.mov", woven, codec, options={**options, "qmin": "1", "qmax": "2"})
    clip = load_clip(path, 4, 3, 2, None)
    assert clip.traits.interlaced
    for k, picture in zip((4, 7), clip.frames, strict=True):
        assert np.abs(picture.astype(int) - stripes(2 * k + upper)).mean() < 3
        assert np.abs(picture.astype(int) - stripes(2 * k + lower)).mean() > 20
    assert not load_clip(encode(tmp_path / "plain.mov", woven), 0, 1, 2, None).traits.interlaced


def patches(*codes: tuple[float, float, float]) -> np.ndarray:
    """Four colours, each 0 to 1, in the quarters of a picture, uint16 (64, 96, 3)."""
    picture = np.empty((64, 96, 3), np.uint16)
    for k, code in enumerate(codes):
        picture[32 * (k // 2) : 32 * (k // 2) + 32, 48 * (k % 2) : 48 * (k % 2) + 48] = np.round(np.array(code) * 65535)
    return picture


def encode_wide(path: Path, picture: np.ndarray, transfer: int, primaries: int = 9, matrix: int = 9) -> Path:
    """uint16 (H, W, 3) as ten-bit HEVC, tagged with numbers of ITU-T H.273."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx265", rate=24, options={"x265-params": "qp=4:log-level=none"})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv444p10le"
        tags = stream.codec_context
        tags.color_trc, tags.color_primaries, tags.colorspace, tags.color_range = transfer, primaries, matrix, 1
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb48le")
            space = {9: "BT2020", 1: "ITU709"}[matrix]
            frame = frame.reformat(format="yuv444p10le", dst_colorspace=space, dst_color_range="MPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


PQ, HLG = 16, 18  # of H.273


@pytest.mark.parametrize(("transfer", "white"), [(PQ, 0.58), (HLG, 0.75)])
def test_high_dynamic_range_is_shown_with_its_reference_white_as_white(
    tmp_path: Path, transfer: int, white: float
) -> None:
    # ITU-R BT.2408, table 1: reference white is 203 cd/m2, at 58 % of PQ and 75 % of HLG; a grey card of 18 % is
    # 26 cd/m2, at 38 % of both. 26 / 203 is 100 in sRGB.
    path = encode_wide(tmp_path / "hdr.mp4", patches((white,) * 3, (0.38,) * 3, (0,) * 3, (1,) * 3), transfer)
    clip = load_clip(path, 0, 1, 2, None)
    shown = corners(clip.frames[1])
    assert clip.traits.transfer == {PQ: "pq", HLG: "hlg"}[transfer]
    assert all(max(colour) - min(colour) <= 2 for colour in shown)
    assert 235 <= shown[0][0] <= 245
    assert abs(shown[1][0] - 100) <= 4
    assert shown[2][0] <= 1
    assert shown[3][0] > shown[0][0]
    assert np.abs(np.subtract(corners(load_clip(path, 0, 1, 2, (32, 48)).frames[1]), shown)).max() <= 2


def test_wide_colours_are_those_of_srgb(tmp_path: Path) -> None:
    # Linear BT.2020 of BT.709's red, green, blue and grey (ITU-R BT.2087), at 203 cd/m2, by the inverse of PQ.
    linear = np.array([(0.6274, 0.0691, 0.0164), (0.3293, 0.9195, 0.0880), (0.0433, 0.0114, 0.8956), (0.2, 0.2, 0.2)])
    root = (linear * 203 / 10000) ** (2610 / 16384)
    codes = ((3424 / 4096 + 2413 / 128 * root) / (1 + 2392 / 128 * root)) ** (2523 / 32)
    path = encode_wide(tmp_path / "colours.mp4", patches(*codes.tolist()), PQ)
    grey = round(255 * (1.055 * 0.2 ** (1 / 2.4) - 0.055))
    expected = [(240, 0, 0), (0, 240, 0), (0, 0, 240), (grey,) * 3]
    assert np.abs(np.subtract(corners(sample_clip(path, 0, 1, 2)[1]), expected)).max() <= 8
    # Display P3 without HDR, as screens of Macs are recorded: CSS Color 4 has sRGB's red, green and blue in it.
    codes = [(0.9176, 0.2003, 0.1386), (0.4584, 0.9853, 0.2983), (0.0, 0.0, 0.9596), (0.5, 0.5, 0.5)]
    path = encode_wide(tmp_path / "p3.mp4", patches(*codes), 13, 12, 1)
    expected = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)]
    assert np.abs(np.subtract(corners(sample_clip(path, 0, 1, 2)[1]), expected)).max() <= 8
    assert load_clip(path, 0, 1, 2, None).traits.transfer is None


def test_transfer_functions_are_those_of_bt_2100() -> None:
    nits = hdr.to_light(hdr.PQ)[np.round(np.array([0.58, 0.7518, 0.9026]) * 65535).astype(int)] * hdr.REFERENCE_WHITE
    assert nits == pytest.approx([203, 1000, 4000], rel=0.01)
    assert hdr.to_light(hdr.HLG)[[0, 32768, 65535]] == pytest.approx([0, 1 / 12, 1], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("png.mov", "png", "rgba", {}),
        ("prores.mov", "prores_ks", "yuva444p10le", {}),
        ("ffv1.mkv", "ffv1", "yuva420p", {}),
        ("vp8.webm", "libvpx", "yuva420p", {"b": "4M", "auto-alt-ref": "0"}),
        ("vp9.webm", "libvpx-vp9", "yuva420p", {"crf": "4", "b": "0", "cpu-used": "8", "auto-alt-ref": "0"}),
        ("picture.apng", "apng", "rgba", {}),
    ],
)
def test_transparency_is_laid_over_white(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, options: dict[str, str]
) -> None:
    picture = np.dstack([quadrants(), np.full((64, 96), 255, np.uint8)])
    picture[:32, 48:, 3] = 0  # the black quarter becomes clear,
    picture[32:, :48, 3] = 128  # the red one half so
    path = encode(tmp_path / name, [picture] * 30, codec, pix_fmt, options={"g": "10", **options})
    expected = [CORNERS[0], CORNERS[0], [255, 127, 127], CORNERS[3]]
    for start, size in ((0, None), (25, (32, 48)), (3, None)):  # from before and after other keyframes
        got = corners(sample_clip(path, start, 2, 2, size)[1])
        assert np.abs(np.subtract(got, expected)).max() <= 8


def test_a_transparent_gif_is_over_white(tmp_path: Path) -> None:
    pictures = [quadrants() for _ in range(3)]
    for k, picture in enumerate(pictures):
        picture[k, :10] = (0, 255, 0)  # frames that are the same would be written as one
    frames = [Image.fromarray(picture).quantize(8) for picture in pictures]
    clear = frames[0].getpixel((90, 5))  # the black quarter's palette entry
    frames[0].save(
        tmp_path / "clear.gif", save_all=True, append_images=frames[1:], transparency=clear, disposal=2, duration=100
    )
    got = corners(sample_clip(tmp_path / "clear.gif", 0, 1, 3)[0])
    assert np.abs(np.subtract(got, [CORNERS[0], CORNERS[0], *CORNERS[2:]])).max() <= 1


def test_a_transparent_webp_is_over_white(tmp_path: Path) -> None:
    picture = np.dstack([quadrants(), np.full((64, 96), 255, np.uint8)])
    picture[:32, 48:, 3] = 0
    frames = [Image.fromarray(np.roll(picture, 3 * k, axis=0)) for k in range(3)]
    frames[0].save(tmp_path / "clear.webp", save_all=True, append_images=frames[1:], lossless=True, duration=100)
    got = corners(sample_clip(tmp_path / "clear.webp", 0, 1, 3)[0])
    assert np.abs(np.subtract(got, [CORNERS[0], CORNERS[0], *CORNERS[2:]])).max() <= 1


def with_display_matrix(path: Path, matrix: tuple[int, ...]) -> Path:
    """Change the display matrix (a, b, c, d) of an MP4 file's one track: (p, q) is shown at (ap + cq, bp + dq)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # 16.16 fixed point, in rows of three
    a, b, c, d = (n * 65536 for n in matrix)
    struct.pack_into(">6i", data, at, a, b, 0, c, d, 0)
    path.write_bytes(data)
    return path


def shown_by(matrix: tuple[int, ...]) -> list[list[int]]:
    """The colours of the four corners, row by row, after each has gone where the matrix puts it."""
    a, b, c, d = matrix
    places = [(-1, -1), (1, -1), (-1, 1), (1, 1)]  # to the right and down, from the centre
    moved = {(a * p + c * q, b * p + d * q): colour for (p, q), colour in zip(places, CORNERS, strict=True)}
    return [moved[place] for place in places]


@pytest.mark.parametrize(
    "matrix",
    [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0),
     (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)],
    ids=["upright", "90 right", "180", "90 left", "left-right", "upside down", "transposed", "transposed otherwise"],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"x264-params": "tff=1"}], ids=["progressive", "interlaced"])
def test_rotated_and_mirrored_pictures_are_shown_as_their_matrix_says(
    tmp_path: Path, matrix: tuple[int, ...], options: dict[str, str]
) -> None:
    path = encode(tmp_path / "phone.mp4", [quadrants()] * 3, options={"crf": "1", **options})
    with_display_matrix(path, matrix)
    assert shown_size(path) == ((96, 64) if matrix[0] == 0 else (64, 96))
    for size in (None, (40, 40)):
        picture = sample_clip(path, 0, 1, 2, size)[1]
        assert picture.shape[:2] == (size or shown_size(path))
        assert np.abs(np.subtract(corners(picture), shown_by(matrix))).max() <= 4


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (0, 1, 0, 1)])
def test_a_matrix_that_leaves_no_picture_is_ignored(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    path = with_display_matrix(encode(tmp_path / "odd.mp4", [quadrants()] * 3, options={"crf": "1"}), matrix)
    assert shown_size(path) == (64, 96)
    assert np.abs(np.subtract(corners(sample_clip(path, 0, 1, 2)[1]), CORNERS)).max() <= 4


@pytest.mark.parametrize("orientation", [1, 6])
def test_data_beside_a_frame_that_pyav_does_not_know_hides_no_rotation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation  # FFmpeg makes it a display matrix, and keeps the rest beside it
    exif[271] = "camera"
    photo = io.BytesIO()
    Image.fromarray(quadrants()).save(photo, "JPEG", quality=95, exif=exif)
    path = tmp_path / "camera.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for k in range(3):
            packet = av.Packet(photo.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, k, k, Fraction(1, 24)
            packet.is_keyframe = True
            container.mux(packet)
    expected = shown_by((0, 1, -1, 0)) if orientation == 6 else CORNERS
    assert np.abs(np.subtract(corners(sample_clip(path, 0, 1, 2)[1]), expected)).max() <= 4


def with_matrix(path: Path, matrix: int) -> Path:
    """Four colours in H.264, tagged with a colour matrix by its number in ITU-T H.273."""
    plain = encode(path.with_name("plain.mp4"), [quadrants()] * 4)
    with av.open(str(plain)) as reader, av.open(str(path), "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        tag = av.bitstream.BitStreamFilterContext(f"h264_metadata=matrix_coefficients={matrix}", stream, copy)
        for packet in reader.demux(stream):
            for tagged in tag.filter(packet if packet.size else None):
                tagged.stream = copy
                writer.mux(tagged)
    return path


@pytest.mark.parametrize(("matrix", "nearest"), [(10, 9), (12, 1), (13, 1)])
def test_a_matrix_that_the_scaler_lacks_is_read_as_the_nearest(tmp_path: Path, matrix: int, nearest: int) -> None:
    found, expected = (sample_clip(with_matrix(tmp_path / f"{one}.mp4", one), 0, 1, 4) for one in (matrix, nearest))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("matrix", [8, 14])  # YCgCo, ICtCp
def test_colours_that_cannot_be_converted_are_unsupported_and_not_corrupt(tmp_path: Path, matrix: int) -> None:
    with pytest.raises(VideoError, match="has colours of a kind that this FFmpeg cannot convert") as caught:
        sample_clip(with_matrix(tmp_path / "a.mp4", matrix), 0, 1, 4)
    assert caught.value.reason == "unsupported"
