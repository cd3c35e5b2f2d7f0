"""The page that runs in the browser: each task to its pixels, which are those of onnxruntime."""

import functools
import http.server
import json
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from chromium import open_browser, requested
from huggingface_hub import RepoCard
from PIL import Image

onnxruntime = pytest.importorskip("onnxruntime", reason="it is in mtl_diffusion[onnx]")
pytest.importorskip("onnxscript", reason="it is in mtl_diffusion[onnx]")
pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402
from stranger import files  # noqa: E402
from test_onnx import SMALL, few_steps, session  # noqa: E402

from mtl_diffusion.commands import publish  # noqa: E402
from mtl_diffusion.publishing.static import PACKAGE, VERSION, write_page  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SECONDS = 240  # of a busy machine
FROM_PAGE = "const page = await import('./page.js'); const [seed, purpose] = arguments;"
NOISE = FROM_PAGE + "return [...page.normal(seed, 3 * 8 * 8, purpose)]"
PAINTED = """const {data} = arguments[0].getContext("2d").getImageData(0, 0, 8, 8);
return Array.from({length: 64}, (_, i) => Number(data[4 * i + 3] > 0))"""
PIXELS = FROM_PAGE + "return [...page.readPixels(arguments[0], 3)]"


@pytest.fixture(scope="module")
def folder(build_pipe, tmp_path_factory):
    if "ONNXRUNTIME_WEB" not in os.environ:
        pytest.skip(f"set ONNXRUNTIME_WEB to the folder of the npm package {PACKAGE} {VERSION}")
    package = Path(os.environ["ONNXRUNTIME_WEB"])
    pipe = build_pipe(tasks=("generate", "inpaint", "edit"), **SMALL)
    few_steps(pipe, _edits_at_once=True)
    saved, target = (tmp_path_factory.mktemp("static") / name for name in ("tiny", "page"))
    pipe.save_pretrained(saved)
    flags = ["--pipeline", saved, "--static", target, "--onnxruntime_web", package]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mtl-diffusion publish", *map(str, flags)])
        publish.main()
    return target


@pytest.fixture(scope="module")
def url(folder):
    kind = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    kind.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(url):
    # No other host has an address there, for the worker's requests too.
    browser = open_browser("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    browser.set_script_timeout(SECONDS)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def page(browser, url):
    """The page, once it is loaded; it may ask no other host for anything."""
    browser.get(url)
    yield browser
    asked = requested(browser)
    assert f"{url}model.json" in asked
    assert not [u for u in asked if not u.startswith((url, "data:", "blob:"))]


def find(page, selector):
    return page.find_elements(By.CSS_SELECTOR, selector)


def said(page, selector=".said"):
    return next((e.text for e in find(page, selector) if e.is_displayed()), "")


def results(page, task):
    """The pictures of a tab (n, 3, 8, 8), when all are drawn."""
    done = f"#{task} .said"
    WebDriverWait(page, SECONDS).until(lambda _: said(page, done).endswith("s for a picture"))
    canvases = find(page, f"#{task} .pictures canvas")
    return np.array([page.execute_script(PIXELS, one) for one in canvases]).reshape(-1, 3, 8, 8)


def click(page, text, inside=""):
    buttons = [b for b in find(page, f"{inside} button") if b.is_displayed() and b.text == text]
    buttons[0].click()


def expected(page, folder, task, seeds, **inputs):
    """What onnxruntime draws from the same noise."""
    noise = [page.execute_script(NOISE, seed, "noise") for seed in seeds]
    feeds = {"noise": np.array(noise, np.float32).reshape(-1, 3, 8, 8)}
    feeds |= {name: np.repeat(value, len(seeds), 0) for name, value in inputs.items()}
    return session(folder / f"{task}.onnx").run(None, feeds)[0]


def source(page, task):
    canvas = find(page, f"#{task} .source canvas")[0]
    pixels = page.execute_script(PIXELS, canvas)
    return np.array(pixels, np.float32).reshape(1, 3, 8, 8)


def assert_same(found, wanted):
    assert found.shape == wanted.shape and np.abs(found - wanted).max() < 2 / 255


def test_every_task_to_its_pixels(page, folder):
    images = results(page, "generate")
    facts = json.loads((folder / "model.json").read_text())
    assert facts["weights_bytes"] < 3 * facts["parameters"]  # float16
    assert "runs by WebAssembly" in said(page, "#state") and page.title == "tiny"
    labels = f"{FROM_PAGE} const facts = await (await fetch('model.json')).json();"
    labels += "return [0, 1, 2, 3, 4, 5, 6, 7].map((seed) => page.drawClass(seed, facts))"
    drawn = np.array(page.execute_script(labels), np.int64)
    assert {*drawn} == {0, 1}
    for seed in (0, 7):
        wanted = expected(page, folder, "generate", [seed], **{"class": drawn[seed : seed + 1]})
        assert_same(images[seed : seed + 1], wanted)

    find(page, "#generate .pictures button")[2].click()
    click(page, "Inpaint this")
    assert said(page, "#inpaint .said") == "Paint over what is to be replaced."
    image = source(page, "inpaint")
    assert_same(image, images[2:3])
    brush = find(page, "#inpaint .brush")[0]
    ActionChains(page).click_and_hold(brush).move_by_offset(30, 10).release().perform()
    brush.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.SPACE)
    images = results(page, "inpaint")
    # What the brush has painted is coloured on its canvas.
    mask = np.array(page.execute_script(PAINTED, brush))
    mask = mask.reshape(1, 1, 8, 8).astype(np.float32)
    assert 2 <= mask.sum() <= 32 and mask[0, 0, 4, 4]
    null = np.full(1, -1)
    wanted = expected(page, folder, "inpaint", range(4), image=image, mask=mask, **{"class": null})
    assert_same(images, wanted)
    kept = np.broadcast_to(mask == 0, images.shape)
    assert (images[kept] == np.broadcast_to(image, images.shape)[kept]).all()

    click(page, "Edit this")
    before = results(page, "edit")
    slider = find(page, "#edit input[type=range]")[-1]
    slider.send_keys(Keys.ARROW_LEFT * 9)
    find(page, "#edit select option")[2].click()
    strength = float(slider.get_attribute("value"))
    assert strength == pytest.approx(0.81)
    WebDriverWait(page, SECONDS).until(lambda _: np.abs(results(page, "edit") - before).max())
    inputs = {"image": source(page, "edit"), "mask": np.ones((1, 1, 8, 8), np.float32)}
    inputs |= {"strength": np.float32([strength]), "class": np.array([2])}
    assert_same(results(page, "edit"), expected(page, folder, "edit", [0], **inputs))


def test_files_are_opened(page, tmp_path):
    find(page, "#tab-inpaint")[0].click()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    (tmp_path / "text.png").write_text("no picture")
    file, before = find(page, "#inpaint input[type=file]")[0], source(page, "inpaint")
    file.send_keys(str(tmp_path / "picture.png"))
    WebDriverWait(page, SECONDS).until(lambda _: (source(page, "inpaint") != before).any())
    assert_same(source(page, "inpaint"), pixels.transpose(2, 0, 1)[None] / 255)
    words = said(page, "#inpaint .said")
    file.send_keys(str(tmp_path / "text.png"))
    WebDriverWait(page, SECONDS).until(lambda _: said(page, "#inpaint .said") != words)
    assert "can't be read" in said(page, "#inpaint .said")


def test_the_ten_lines_of_javascript_in_the_docs(browser, folder, url):
    text = (ROOT / "docs/publishing.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```js\n(.*?)^```", text, re.M | re.S)
    assert len(lines.splitlines()) <= 10
    lines = lines.replace("32 * 32", "8 * 8").replace("32, 32", "8, 8")
    code = f"{lines}\ndocument.title = images.dims.join()"
    (folder / "lines.html").write_text(f'<script type="module">{code}</script>')
    browser.get(f"{url}lines.html")
    WebDriverWait(browser, SECONDS).until(lambda _: browser.title == "1,3,8,8")


def test_a_static_space(hub, folder, tmp_path):
    code = "import pathlib, sys\nfrom mtl_diffusion.publishing.space import push_space\n"
    code += "push_space(pathlib.Path(sys.argv[1]), 'me/page', model=None, private=True)"
    done = hub.run([sys.executable, "-c", code, folder], tmp_path)
    assert done.returncode == 0, done.stderr
    pushed = hub.tree("me/page", kind="space")
    header = RepoCard(pushed.pop("README.md").decode()).data
    assert header.sdk == "static" and header.app_file == "index.html"
    assert pushed == files(folder)


def test_what_is_refused(tmp_path, pipe, build_pipe, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=rf"--static: {tmp_path} is neither empty nor"):
        write_page(pipe, tmp_path, name="x")
    with pytest.raises(ValueError, match="--static: this model draws 8x8 pixels, mode L"):
        write_page(build_pipe(image_mode="L"), tmp_path / "page", name="x")
    with pytest.raises(
        ValueError,
        match=f"--onnxruntime_web: .* is no package; give the folder of {PACKAGE} {VERSION}",
    ):
        write_page(pipe, tmp_path / "page", name="x", package=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="Install npm, or run that command where it works"):
        write_page(pipe, tmp_path / "page", name="x")
    assert not (tmp_path / "page").exists()
