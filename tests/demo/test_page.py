"""The page in a real browser, without a head: what a user sees and does, on a tiny model."""

import io
import urllib.request

import numpy as np
import pytest
from chromium import open_browser, requested
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: mtl_diffusion[demo]")
pytest.importorskip("selenium", reason="selenium is not installed")

import gradio as gr
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from mtl_diffusion.demo.page import build
from mtl_diffusion.demo.serve import serve
from mtl_diffusion.demo.studio import Studio
from mtl_diffusion.pipeline.chains import default_chains

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::Warning:gradio.queueing"),  # of pandas
]

SECONDS = 120  # of a busy machine


@pytest.fixture(scope="module")
def url(build_pipe):
    page = serve(build_pipe(), "tiny", wait=False)
    yield page.local_url.rstrip("/")
    page.close()


@pytest.fixture(scope="module")
def browser(url):
    browser = open_browser()
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, url):
    """The page, opened anew; no test may cause a request to another machine."""
    browser.get(url)
    yield browser
    asked = requested(browser)
    assert len(asked) > 20
    assert not [u for u in asked if not u.startswith((url, "data:", "blob:"))]


def wait(browser, condition):
    # An element may go between being found and being read, or be covered while something loads.
    passing = [StaleElementReferenceException, ElementClickInterceptedException]
    patient = WebDriverWait(browser, SECONDS, ignored_exceptions=passing)
    return patient.until(lambda _: condition())


def find(browser, selector):
    """Those that are displayed."""
    found = browser.find_elements(By.CSS_SELECTOR, selector)
    return [element for element in found if element.is_displayed()]


def click(browser, selector, text=None):
    def clicked():
        for element in find(browser, selector):
            if text is None or element.text.strip() == text:
                browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
                element.click()
                return True

    wait(browser, clicked)


def results(browser, task, count):
    """The pictures of a gallery, at the model's size, once there are so many of them."""
    selector = f"#{task}-results .grid-wrap img"
    wait(browser, lambda: len(find(browser, selector)) == count)
    return [picture(element.get_attribute("src")) for element in find(browser, selector)]


def picture(address):
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address) as answer:
        image = Image.open(io.BytesIO(answer.read())).convert("RGB")
    assert image.size == (384, 384)
    return np.asarray(image.resize((8, 8), Image.Resampling.NEAREST))


def message(browser, words):
    """Waits for a message on the page, and closes it."""
    wait(browser, lambda: any(words in e.text for e in find(browser, ".toast-body")))
    click(browser, ".toast-close")
    wait(browser, lambda: not find(browser, ".toast-body"))


@pytest.fixture(scope="module")
def upload(tmp_path_factory):
    """Wide, and not of the model's size; of eight by eight coloured squares in its middle."""
    path = tmp_path_factory.mktemp("upload") / "wide.png"
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    wide = Image.new("RGB", (320, 160), "white")
    wide.paste(Image.fromarray(colours).resize((160, 160), Image.Resampling.NEAREST), (80, 0))
    wide.save(path)
    return str(path), colours


def test_generate(page):
    click(page, "#generate-draw")
    images = results(page, "generate", 8)
    menu = "input[aria-label='Class']"
    assert find(page, menu)[0].get_attribute("value") == "cat"
    click(page, menu)

    def lines():  # fewer while the menu opens
        return [e.text.lstrip("✓ \n") for e in find(page, "ul[role=listbox] li")]

    wait(page, lambda: lines() == ["any class", "cat", "dog", "ship"])
    assert len({image.tobytes() for image in images}) == 8


def test_a_mask_is_painted_and_inpainted(page, upload):
    path, colours = upload
    click(page, "button[role=tab]", "Inpaint")
    wait(page, lambda: find(page, "#inpaint-source canvas"))
    page.find_element(By.CSS_SELECTOR, "#inpaint-source input[type=file]").send_keys(path)
    # Cropped in view of the user: then the corner of the canvas is a colour of the middle.
    canvas = find(page, "#inpaint-source canvas")[0]
    wait(page, lambda: shows_a_square(canvas))
    click(page, "#inpaint-draw")
    message(page, "paint over what is to be replaced")

    stroke = ActionChains(page).move_to_element(canvas).click_and_hold()
    stroke.move_by_offset(80, 0).move_by_offset(0, 20).release().perform()
    click(page, "#inpaint-draw")
    given, *images = results(page, "inpaint", 6)
    painted = (given == 128).all(axis=-1)
    assert 2 <= painted.sum() <= 40 and painted[4, 4]
    for image in images:
        assert (image[~painted] == colours[~painted]).all()
        assert (image[painted] != colours[painted]).any()
    assert len({image.tobytes() for image in images}) == 5


def shows_a_square(canvas):
    """Whether what is not white on a canvas is as wide as it is high."""
    image = Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("L")
    coloured = np.flatnonzero(np.asarray(image)[image.height // 2] < 250)
    return len(coloured) and abs(np.ptp(coloured) + 1 - image.height) < 0.2 * image.height


def test_a_file_that_is_no_picture_is_told_of(page, tmp_path):
    click(page, "button[role=tab]", "Edit")
    (tmp_path / "text.png").write_text("no picture")
    file = page.find_element(By.CSS_SELECTOR, "#edit-source input[type=file]")
    file.send_keys(str(tmp_path / "text.png"))
    message(page, "can't be read")


def test_an_example_is_edited(page):
    click(page, "button[role=tab]", "Edit")
    wait(page, lambda: len(find(page, ".examples img")) == 3)
    find(page, ".examples img")[1].click()
    shown = wait(page, lambda: find(page, "#edit-source img"))
    example = picture(shown[0].get_attribute("src"))
    click(page, "#edit-draw")
    message(page, "Choose the class")

    menu = find(page, "input[aria-label='Turn it into']")[0]
    menu.send_keys("ship\n")
    click(page, "#edit-draw")
    source, *images = results(page, "edit", 6)
    assert (source == example).all()
    assert len({image.tobytes() for image in images}) == 5
    captions = [e.text for e in find(page, "#edit-results .caption-label")]
    assert captions == ["source", *(f"strength {s}" for s in (0.5, 0.6, 0.7, 0.8, 0.9))]


def test_the_steps_that_a_model_of_few_offers(build_pipe):
    pipe = build_pipe()
    pipe.unet.register_to_config(_chains=default_chains(80.0), _edits_at_once=True)
    blocks = build(Studio(pipe), "tiny").blocks.values()
    steps = [[n for _, n in block.choices] for block in blocks if isinstance(block, gr.Radio)]
    assert steps == [[1, 2, 4], [1, 2, 4], [1, 2]]  # generate, inpaint, edit


def test_telemetry_is_off(url):
    from gradio import analytics

    assert not analytics.analytics_enabled()


def test_a_port_that_cannot_be():
    with pytest.raises(ValueError, match="port is 80000; it must be from 1 to 65535"):
        serve(None, "tiny", port=80000)
