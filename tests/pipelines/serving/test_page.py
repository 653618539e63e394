"""The page in a real browser: choose a photo, animate it, see the video play, cancel another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from pipelines.serving.animator import Animator
from pipelines.serving.settings import ServeSettings
from tests.browser import chromium, until
from tests.pipelines.serving.conftest import application, free_port, in_thread, png

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The whole application with its page, on a port of this process."""
    settings = ServeSettings(output=str(tmp_path_factory.mktemp("serve")))
    animator = Animator(settings.model_dump(), "builtin:tiny", "builtin:tiny")
    app = application(settings, animator, with_page=True)
    port = free_port()
    with in_thread(uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


def test_a_photo_is_animated_and_plays_and_another_is_cancelled(browser: Any, address: str, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    (tmp_path / "photo.png").write_bytes(png((384, 256)))
    browser.get(f"{address}/ui/")

    def text() -> str:
        return browser.find_element(By.ID, "status").text

    until(lambda: browser.find_elements(By.CSS_SELECTOR, "#photo input[type=file]"))
    browser.find_element(By.CSS_SELECTOR, "#photo input[type=file]").send_keys(str(tmp_path / "photo.png"))
    until(lambda: browser.find_elements(By.CSS_SELECTOR, "#photo img"))
    browser.find_element(By.ID, "animate").click()
    until(lambda: "%" in text(), 30)
    until(lambda: "measured" in text(), 90)
    video = until(lambda: browser.find_elements(By.CSS_SELECTOR, "#video video"))[0]
    until(lambda: browser.execute_script("return arguments[0].currentTime > 0.2", video), 30)
    assert browser.execute_script("return arguments[0].videoWidth", video) == 192
    assert browser.find_elements(By.CSS_SELECTOR, "#first img")
    assert until(lambda: browser.find_elements(By.CSS_SELECTOR, "#history img"))
    browser.save_screenshot(str(tmp_path / "page.png"))

    browser.find_element(By.ID, "animate").click()
    until(lambda: "%" in text(), 30)
    browser.find_element(By.ID, "cancel").click()
    until(lambda: "Cancelled" in text(), 30)

    asked = [entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]]
    outside = [message for message in asked if '"url":"http' in message and f'"url":"{address}' not in message]
    assert not outside, outside
