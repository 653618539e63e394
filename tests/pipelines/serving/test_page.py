"""The page in a real browser: choose a photo, animate it, see a preview and the video play, cancel another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.serving.replica import Animator
from pipelines.serving.settings import ServeSettings
from tests.browser import chromium, until
from tests.pipelines.serving.in_process import Steps, application, listening, png, watch

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def address(settings: ServeSettings, animator: Animator) -> Iterator[str]:
    """The whole application with its page, on a port of this process."""
    with listening(application(settings, animator, with_page=True)) as address:
        yield address


@pytest.fixture(scope="module")
def browser(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser that is closed before the service is: a server waits for its pages."""
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def steps(animator: Animator) -> Iterator[Steps]:
    with watch(animator) as steps:
        yield steps


def test_a_photo_is_animated_and_plays_and_another_is_cancelled(
    browser: Any, address: str, steps: Steps, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By

    (tmp_path / "photo.png").write_bytes(png((384, 256)))
    browser.get(f"{address}/ui/")

    def text() -> str:
        return browser.find_element(By.ID, "status").text

    until(lambda: browser.find_elements(By.CSS_SELECTOR, "#photo input[type=file]"))
    browser.find_element(By.CSS_SELECTOR, "#photo input[type=file]").send_keys(str(tmp_path / "photo.png"))
    until(lambda: browser.find_elements(By.CSS_SELECTOR, "#photo img"))
    browser.find_element(By.XPATH, "//*[text()='Advanced']").click()
    adapters = until(lambda: browser.find_elements(By.CSS_SELECTOR, "#lora input"))[0]
    adapters.click()
    until(lambda: browser.find_elements(By.XPATH, "//*[@id='lora']//li[contains(., 'ink')]"))[0].click()
    steps.hold()
    browser.find_element(By.ID, "animate").click()
    until(lambda: "%" in text())
    steps.go_on(one=True)
    assert until(lambda: browser.find_elements(By.CSS_SELECTOR, "#preview img"))
    steps.go_on()
    until(lambda: "measured" in text())
    until(lambda: not browser.find_elements(By.CSS_SELECTOR, "#preview img"))
    video = until(lambda: browser.find_elements(By.CSS_SELECTOR, "#video video"))[0]
    until(lambda: browser.execute_script("return arguments[0].currentTime > 0.2", video))
    assert browser.execute_script("return arguments[0].videoWidth", video) == 96
    assert browser.find_elements(By.CSS_SELECTOR, "#first img")
    assert until(lambda: browser.find_elements(By.CSS_SELECTOR, "#history img"))
    assert httpx.get(f"{address}/v1/videos").json()["data"][0]["lora"] == "ink:1.0"
    browser.save_screenshot(str(tmp_path / "page.png"))

    steps.hold()
    browser.find_element(By.ID, "animate").click()
    until(lambda: "%" in text())
    browser.find_element(By.ID, "cancel").click()
    until(lambda: "Cancelled" in text())

    asked = [entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]]
    outside = [message for message in asked if '"url":"http' in message and f'"url":"{address}' not in message]
    assert not outside, outside


def test_another_model_brings_its_motion_steps_and_guidance(settings: ServeSettings, animator: Animator) -> None:
    from pipelines.serving.page import Page

    page = Page(application(settings, animator).state.service)
    [name] = settings.served
    assert page.usual_settings(name) == {page.motion: 7, page.steps: 2, page.guidance: 1.4}
