"""Convert high dynamic range and wide colour to sRGB: PQ (SMPTE ST 2084), HLG (ARIB STD-B67), BT.2020, P3.

Light is relative to reference white, 203 cd/m2 (ITU-R BT.2408). Up to 0.75 it is kept; brighter light is rolled off
towards 1, so that white stays white and highlights keep some detail. The transfer functions are from ITU-R BT.2100.
"""

from functools import cache

import numpy as np

PQ, HLG = "pq", "hlg"
BT2020, P3 = "bt2020", "p3"

REFERENCE_WHITE = 203.0  # cd/m2
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2  # HLG's nominal display: peak in cd/m2, and system gamma
KNEE = 0.75  # share of reference white above which light is rolled off
ROWS = 64  # rows converted at a time, to save memory

# Linear RGB of other primaries to that of BT.709 and sRGB, white point D65 (computed from their chromaticities).
TO_BT709 = {
    BT2020: ((1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349), (-0.018151, -0.100579, 1.118730)),
    P3: ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274)),
}
LUMINANCE = (0.2627, 0.6780, 0.0593)  # weights of BT.2020's primaries


def to_srgb(picture: np.ndarray, transfer: str | None, primaries: str | None) -> np.ndarray:
    """Convert a picture to sRGB: uint16 (H, W, 3), full range, -> uint8 (H, W, 3).

    transfer: PQ, HLG, or None for sRGB's own. primaries: BT2020, P3, or None for BT.709.
    """
    shown = np.empty(picture.shape, np.uint8)
    for top in range(0, len(picture), ROWS):
        light = to_light(transfer)[picture[top : top + ROWS]]
        if transfer == HLG:  # the display's gamma acts on luminance, which keeps the hue
            luminance = light @ np.array(LUMINANCE, np.float32)
            light *= HLG_PEAK / REFERENCE_WHITE * luminance[..., None] ** np.float32(HLG_GAMMA - 1)
        if primaries is not None:
            light = np.maximum(light @ np.array(TO_BT709[primaries], np.float32).T, 0)
        if transfer is not None:
            light = roll_off(light)
        shown[top : top + ROWS] = from_light()[(np.minimum(light, 1) * 65535 + 0.5).astype(np.uint16)]
    return shown


def roll_off(light: np.ndarray) -> np.ndarray:
    """Compress light above KNEE to below 1, by the brightest channel of each pixel, so that hues are kept."""
    brightest = light.max(axis=-1, keepdims=True)
    over = np.maximum(brightest - KNEE, 0) / (1 - KNEE)
    return light * np.where(over > 0, (KNEE + (1 - KNEE) * over / (1 + over)) / np.maximum(brightest, KNEE), 1)


@cache
def to_light(transfer: str | None) -> np.ndarray:
    """Linear light of each code, float32 (65536,): for PQ relative to reference white, for HLG scene light, 0 to 1."""
    code = np.linspace(0, 1, 65536)
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = code ** (1 / m2)
        light = 10000 / REFERENCE_WHITE * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    else:
        light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@cache
def from_light() -> np.ndarray:
    """sRGB codes of linear light from 0 to 1, uint8 (65536,)."""
    light = np.linspace(0, 1, 65536)
    code = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * code).round().astype(np.uint8)
