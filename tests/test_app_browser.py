"""The app as people see it: a real server, a real browser. Screenshots land in screenshots/."""

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tiramisu.data.streets import draw_scene
from tiramisu.inference import Segmenter
from tiramisu.weights import shipped_weights

ROOT = Path(__file__).parent.parent
SCREENSHOTS = ROOT / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
expect.set_options(timeout=30_000)
VISITORS = 8
UPLOADS = 200
# fmt: off
BROWSER_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
]
# fmt: on


def png(number: int, size: tuple[int, int] = (360, 480)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_scene(5, number, *size)[0]).save(buffer, "PNG")
    return buffer.getvalue()


def two_megapixels(number: int) -> bytes:
    """A photo-like JPEG of 1632 x 1224 pixels, different from all others."""
    image = Image.fromarray(draw_scene(5, number, 204, 272)[0]).resize((1632, 1224), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


class Server(NamedTuple):
    """A running app."""

    address: str
    pid: int


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("TIRAMISU_REQUIRE_BROWSER"):
            pytest.fail("there is no Chromium, and TIRAMISU_REQUIRE_BROWSER is set")
        pytest.skip("there is no Chromium; install one, such as Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(trained_run.parent.parent, tmp_path_factory.mktemp("server")) as server:
        yield server


@contextlib.contextmanager
def serve(runs: Path, folder: Path) -> Iterator[Server]:
    """Serve a copy of the app without the shipped weights: the tests' own model is smaller, and may be missing."""
    for part in ("tiramisu", "configs", ".streamlit"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", *shipped_weights()))
    shutil.copy(ROOT / "app.py", folder)
    log = folder / "log.txt"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"TIRAMISU_RUNS": str(runs)}
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless=true", f"--server.port={port}"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{address}/_stcore/health")
            break
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    yield Server(address, process.pid)
    process.send_signal(signal.SIGINT)
    process.wait(20)
    assert not re.search(r'File ".*(app\.py|tiramisu/.*)", line', log.read_text()), log.read_text()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, accept_downloads=True)
    page = open_page(context, server.address)
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    yield page
    context.close()
    assert not troubles


def open_page(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.goto(address)
    expect(page.get_by_text("Drop images here")).to_be_visible(timeout=60_000)
    return page


def upload(page: Page, *files: tuple[str, bytes]) -> None:
    payload: Any = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files]
    page.locator("input[type=file]").first.set_input_files(payload)


def viewer(page: Page, name: str) -> Any:
    canvas = page.locator(f"canvas[aria-label*='{name}']")
    expect(canvas).to_have_count(1, timeout=60_000)
    expect(canvas).to_be_visible()
    return canvas


def pixels(canvas: Any) -> np.ndarray:
    """What is drawn at this moment, (H, W, 4)."""
    url = canvas.evaluate("canvas => canvas.toDataURL()")
    with urllib.request.urlopen(url) as response:
        return np.asarray(Image.open(response).convert("RGBA")).astype(int)


def change(page: Page, canvas: Any, script: str) -> float:
    """Run a script in the page, and return the milliseconds until the canvas looks different."""
    return canvas.evaluate(
        """async (canvas, script) => {
            const before = canvas.toDataURL();
            const start = performance.now();
            (new Function("root", script))(canvas.getRootNode());
            while (canvas.toDataURL() === before) await new Promise(requestAnimationFrame);
            return performance.now() - start;
        }""",
        script,
    )


@pytest.mark.slow
def test_from_upload_to_download(page: Page, tmp_path: Path) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "empty.png")
    start = time.monotonic()
    upload(page, ("street.png", png(1)))
    canvas = viewer(page, "street.png")
    seconds = time.monotonic() - start
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / "overlay.png")

    opacity = change(
        page,
        canvas,
        """
        const input = root.querySelector('.opacity input');
        input.value = 90;
        input.dispatchEvent(new Event('input', {bubbles: true}));
    """,
    )
    shown = page.locator(".classes button").filter(has_not_text="–").first
    name = shown.inner_text().split("\n")[0]
    with_class = pixels(canvas)
    index = shown.get_attribute("data-index")
    toggle = change(page, canvas, f"root.querySelector('.classes [data-index=\"{index}\"]').click()")
    expect(shown).to_have_attribute("aria-pressed", "false")
    assert (pixels(canvas) != with_class).any()
    print(f"first overlay {seconds:.2f} s, opacity {opacity:.0f} ms, class {toggle:.0f} ms")
    assert opacity < 1000
    assert toggle < 1000

    page.wait_for_url("**opacity=90**")
    page.wait_for_url(f"**hidden={name}**")
    canvas.hover(position={"x": 200, "y": 200})
    tip = page.locator(".tip")
    expect(tip).to_be_visible()
    expect(tip).to_have_text(re.compile(r"^\w+ \d+ % · uncertainty \d+ %$"))

    for view in ("Compare", "Side by side", "Mask", "Uncertainty", "Original"):
        before = pixels(canvas)
        page.get_by_role("radio", name=view).click()
        page.wait_for_timeout(200)
        assert pixels(canvas).shape != before.shape or (pixels(canvas) != before).any(), view
        page.screenshot(path=SCREENSHOTS / f"{view.lower().replace(' ', '_')}.png")
    page.wait_for_url("**view=image**")

    before = pixels(canvas)
    page.get_by_role("button", name="Zoom in").click()
    assert (pixels(canvas) != before).any()
    canvas.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".status")).to_contain_text("%")

    with page.expect_download() as download:
        page.get_by_role("button", name="Download all results").click()
    file = tmp_path / "results.zip"
    download.value.save_as(file)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert {"street.png", "overlays/street.jpg", "areas.csv", "coco.json"} <= set(archive.namelist())


def look_at(page: Page, name: str) -> None:
    """Take a picture of a state, and check that everybody can use it."""
    page.wait_for_timeout(1000)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    violations = Axe().run(page).response["violations"]
    serious = [
        (violation["id"], [node["html"][:200] for node in violation["nodes"]])
        for violation in violations
        if violation["impact"] in ("serious", "critical")
    ]
    assert not serious, name


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_anyone_can_use_it(browser: Browser, server: Server, theme: Any, tmp_path: Path, trained_run: Path) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    context = browser.new_context(viewport={"width": 1400, "height": 2000}, color_scheme=theme)
    page = open_page(context, server.address)
    look_at(page, f"{theme}_empty")
    upload(page, ("street.png", png(1)), ("bad.png", b"no image"))
    viewer(page, "street.png")
    expect(page.get_by_text("bad.png: not an image")).to_be_visible()
    page.get_by_text("Measure it").click()
    mask = io.BytesIO()
    Image.fromarray(Segmenter.load(trained_run / "model")(draw_scene(5, 2, 360, 480)[0]).mask).save(mask, "PNG")
    page.locator("input[type=file]").last.set_input_files(
        [{"name": "street.png", "mimeType": "image/png", "buffer": mask.getvalue()}]
    )
    expect(page.get_by_text("Pixel accuracy")).to_be_visible()
    page.get_by_text("About this model").click()
    look_at(page, f"{theme}_one")
    upload(page, *((f"street{number}.png", png(number, (120, 160))) for number in range(2, 5)))
    expect(page.get_by_text("Most uncertain first")).to_be_visible()
    expect(page.get_by_text("Segmenting")).to_have_count(0)
    look_at(page, f"{theme}_many")
    page.goto(f"{server.address}/?source=Video")
    expect(page.get_by_text("Drop a video here")).to_be_visible()
    page.locator("input[type=file]").set_input_files(write_video(tmp_path / "drive.mp4"))
    look_at(page, f"{theme}_before_video")
    page.get_by_role("button", name="Segment the video").click()
    expect(page.get_by_role("button", name="Overlay video")).to_be_visible(timeout=60_000)
    page.wait_for_function("document.querySelector('video')?.readyState >= 2")
    look_at(page, f"{theme}_video")
    context.close()


def write_video(path: Path) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, (320, 240))
    for number in range(10):
        writer.write(np.ascontiguousarray(draw_scene(1, number, 240, 320)[0][:, :, ::-1]))
    writer.release()
    return path


@pytest.mark.slow
def test_a_model_can_be_trained_where_there_is_none(browser: Browser, tmp_path: Path) -> None:
    with serve(tmp_path / "runs", tmp_path / "app") as server:
        context = browser.new_context(viewport={"width": 1000, "height": 600})
        page, other = context.new_page(), context.new_page()
        page.goto(server.address)
        page.get_by_role("button", name="Train a small model").click()
        expect(page.get_by_text(re.compile(r"Epoch \d+ of 16"))).to_be_visible()
        look_at(page, "training")
        other.goto(server.address)
        expect(other.get_by_text(re.compile(r"Epoch \d+ of 16"))).to_be_visible()
        expect(other.get_by_role("button", name="Stop training")).to_have_count(0)
        page.get_by_role("button", name="Stop training").click()
        expect(page.get_by_role("button", name="Train a small model")).to_be_visible()
        context.close()


@pytest.mark.slow
def test_dark_and_small(browser: Browser, server: Server) -> None:
    context = browser.new_context(viewport={"width": 420, "height": 900}, color_scheme="dark")
    page = open_page(context, f"{server.address}/?safe=true&view=compare&samples=0")
    viewer(page, "scene 1.png")
    page.wait_for_timeout(800)
    expect(page.get_by_role("radio", name="Compare")).to_have_attribute("aria-checked", "true")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.screenshot(path=SCREENSHOTS / "dark.png", full_page=True)
    context.close()


@pytest.mark.slow
def test_many_images_and_the_camera(page: Page) -> None:
    upload(page, *((f"street{number}.png", png(number, (120, 160))) for number in range(6)))
    expect(page.get_by_text("Most uncertain first")).to_be_visible(timeout=60_000)
    page.wait_for_timeout(1500)
    page.screenshot(path=SCREENSHOTS / "many.png")
    first = page.get_by_role("heading", level=3).inner_text()
    table = page.locator("[data-testid='stDataFrame'] canvas").first.bounding_box()
    assert table is not None
    page.mouse.click(table["x"] + 200, table["y"] + 36 + 56 * 2.5)  # anywhere in the third row
    expect(page.get_by_role("heading", level=3)).not_to_have_text(first)
    page.wait_for_url("**image=street**")
    page.get_by_role("button", name="Camera").or_(page.get_by_role("radio", name="Camera")).first.click()
    page.wait_for_function("document.querySelector('video')?.readyState >= 2")
    page.get_by_role("button", name="Take Photo").click()
    viewer(page, "photo 1.jpg")
    page.screenshot(path=SCREENSHOTS / "camera.png")


@pytest.mark.slow
def test_each_visitor_gets_their_own(server: Server, trained_run: Path, browser: Browser) -> None:
    """Eight at once: nobody sees another's picture, and every mask is that of its own image."""
    segmenter = Segmenter.load(trained_run / "model")
    seconds: list[float] = []
    pages = []
    for number in range(VISITORS):
        context = browser.new_context(viewport={"width": 1000, "height": 800})
        pages.append((number, context, open_page(context, server.address)))
    started = time.monotonic()
    for number, _, page in pages:
        upload(page, (f"visitor{number}.png", png(number, (180, 240))))
    for number, _, page in pages:
        canvas = viewer(page, f"visitor{number}.png")
        seconds.append(time.monotonic() - started)
        image = draw_scene(5, number, 180, 240)[0]
        areas = segmenter(image).areas
        largest = max(areas, key=lambda name: areas[name])
        assert f"{largest} {100 * areas[largest]:.0f} %" in canvas.get_attribute("aria-label")
        assert page.locator("canvas[aria-label*='visitor']").count() == 1
    for _, context, _ in pages:
        context.close()
    print(f"{VISITORS} visitors at once: p95 {np.percentile(seconds, 95):.2f} s until their overlay")


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


@pytest.mark.load
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_memory_stays_flat(server: Server, browser: Browser) -> None:
    """200 uploads of two megapixels in one visit, and eight visits at once."""
    images = [two_megapixels(number) for number in range(UPLOADS)]
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    page = open_page(context, server.address)
    upload(page, ("first.jpg", images[0]))  # what is loaded once is not counted
    viewer(page, "first.jpg")
    before = resident_mib(server.pid)
    batch = 10
    for top in range(0, UPLOADS, batch):
        upload(page, *((f"{number}.jpg", images[number]) for number in range(top, top + batch)))
        expect(page.get_by_text("Segmenting")).to_have_count(0, timeout=120_000)
    page.wait_for_timeout(2000)
    one = resident_mib(server.pid)
    visitors = []
    for number in range(VISITORS):
        context = browser.new_context(viewport={"width": 1000, "height": 800})
        visitors.append(context)
        page = open_page(context, server.address)
        upload(page, (f"visitor{number}.jpg", images[number]))
    for context, number in zip(visitors, range(VISITORS), strict=True):
        viewer(context.pages[0], f"visitor{number}.jpg")
    many = resident_mib(server.pid)
    print(f"memory: {before:.0f} MiB, after {UPLOADS} uploads {one:.0f}, with {VISITORS} visitors more {many:.0f}")
    for context in browser.contexts:
        context.close()
    time.sleep(150)  # Streamlit keeps a visit for two minutes, in case its connection comes back
    print(f"memory after the visitors have gone: {resident_mib(server.pid):.0f} MiB")
    assert many - before < 300
