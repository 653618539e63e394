"""The gallery: what is in it, that no prompt becomes markup, and how it works in a real browser."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.animate import gallery, listing, videos
from tests.browser import chromium, until
from tests.pipelines.animate.listing_rows import state

NASTY = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;\u2028'"
MANY = 10_000


def write(output: Path, rows: list[dict[str, Any]]) -> Path:
    writer = listing.Writer(str(output), ".mp4")
    for row in rows:
        writer.add(row)
    writer.close()
    path = output / "index.html"
    path.write_bytes(gallery.page(str(output), {"rows": len(rows) + 2, "rejected": 2}, ".mp4"))
    return path


def data_of(page: str) -> Any:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def test_the_page_holds_the_rows_in_order_and_no_text_of_a_stranger_as_markup(tmp_path: Path) -> None:
    page = write(tmp_path, [state(1, prompt="pan left"), state(0, prompt=NASTY)]).read_text()
    data = data_of(page)
    at = data["columns"].index("prompt")
    assert [row[at] for row in data["rows"]] == [NASTY, "pan left"]
    assert "onerror" in page
    assert "<img src=x" not in page
    assert page.count("<script") == 2
    assert (data["total"], data["rejected"]) == (4, 2)


def test_the_page_asks_no_network(tmp_path: Path) -> None:
    page = write(tmp_path, [state(0)]).read_text()
    assert not re.findall(r"https?://|//[a-z]+\.", page)
    assert "default-src 'none'" in page


def test_a_sheet_shows_videos_from_the_least_motion_to_the_most(tmp_path: Path, moving_frames: np.ndarray) -> None:
    (tmp_path / "videos").mkdir()
    rows = [state(number, score=0.9 - 0.1 * number) for number in range(8)]
    for row in rows:
        (tmp_path / "videos" / f"{row['id']}.mp4").write_bytes(videos.video(moving_frames[:4], 8))
    write(tmp_path, rows)
    png = gallery.sheet(str(tmp_path), ".mp4")
    assert png is not None
    assert png.startswith(b"\x89PNG")
    shown = [row["id"] for row in gallery._examples(str(tmp_path))]
    assert (shown[0], shown[-1], len(shown)) == ("id0", "id7", gallery.SHOWN)


def test_no_video_is_no_sheet(tmp_path: Path) -> None:
    assert gallery.sheet(str(tmp_path), ".mp4") is None


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of MANY rows; the first eight have files."""
    output = tmp_path_factory.mktemp("gallery")
    generator = np.random.default_rng(0)
    words = ("pan left", "pan right", "zoom in", "zoom out")
    rows = [
        state(number, score=float(generator.uniform(0.1, 1)), prompt=f"{words[number % 4]} over photo {number}")
        for number in range(MANY)
    ]
    rows[3] = state(3, score=0.05, prompt=NASTY)
    (output / "videos").mkdir()
    for row in rows[:8]:
        frames = np.stack([np.full((64, 96, 3), 30 * k + 20 * row["row"], np.uint8) for k in range(4)])
        for ending, data in ((".mp4", videos.video(frames, 8)), (".thumb.webp", videos.thumbnail(frames[0]))):
            (output / "videos" / f"{row['id']}{ending}").write_bytes(data)
    return write(output, rows)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.mark.long
def test_ten_thousand_rows_are_searched_and_sorted_in_a_browser(browser: Any, many: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    def prompts() -> list[str]:
        return [found.text for found in browser.find_elements(By.CSS_SELECTOR, ".prompt")]

    def count() -> str:
        return str(browser.find_element(By.ID, "count").text)

    browser.get(many.as_uri())
    until(lambda: count() == f"{MANY} videos")
    assert len(prompts()) < 400  # cards come as one scrolls
    assert browser.execute_script("return document.getElementsByTagName('*').length") < 4000
    assert many.stat().st_size < 150 * MANY  # bytes that a browser reads before it shows the first card
    assert NASTY[:20] in prompts()[3]
    assert browser.title == "Animations"

    before = len(prompts())
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    until(lambda: len(prompts()) > before)

    Select(browser.find_element(By.ID, "sort")).select_by_value("most")
    assert NASTY[:20] in until(lambda: prompts()[:1])[0]
    assert browser.title == "Animations"

    search = browser.find_element(By.ID, "search")
    search.send_keys("ZOOM photo 777")
    until(lambda: count().startswith(("1 of", "2 of", "3 of", "4 of", "5 of", "6 of")))
    assert all("zoom" in text and "777" in text for text in prompts())
    search.send_keys(" nothing like it")
    until(lambda: browser.find_element(By.ID, "none").is_displayed())
    search.send_keys(Keys.CONTROL, "a")
    search.send_keys(Keys.BACKSPACE)
    until(lambda: count() == f"{MANY} videos")

    Select(browser.find_element(By.ID, "sort")).select_by_value("catalog")
    first = browser.find_element(By.CSS_SELECTOR, ".card")
    loaded = (
        "return document.querySelector('.card img')?.naturalWidth || document.querySelector('.card video')?.videoWidth"
    )
    assert until(lambda: browser.execute_script(loaded)) == 96
    first.click()
    large = until(lambda: browser.find_elements(By.CSS_SELECTOR, "dialog video"))[0]
    until(lambda: browser.execute_script("return arguments[0].currentTime > 0", large))
    assert "pan left over photo 0" in browser.find_element(By.CSS_SELECTOR, "dialog dl").text

    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        message["params"]["request"]["url"] for message in asked if message["method"] == "Network.requestWillBeSent"
    }
    assert urls
    assert all(url.startswith(("file:", "data:", "chrome")) for url in urls), urls
