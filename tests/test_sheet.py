"""Contact sheets."""

import numpy as np
import pytest

from cinemo.sheet import contact_sheet


def test_first_and_last_frame_are_always_on_the_sheet() -> None:
    clip = np.zeros((16, 20, 40, 3), np.uint8)
    clip[0], clip[-1] = (255, 0, 0), (0, 0, 255)
    sheet = np.asarray(contact_sheet([("a", clip), ("b", clip)], columns=3, frame_width=40))
    assert (sheet == (255, 0, 0)).all(axis=-1).sum() == 2 * 20 * 40
    assert (sheet == (0, 0, 255)).all(axis=-1).sum() == 2 * 20 * 40


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([])
