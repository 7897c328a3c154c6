"""The app's logic, run by Streamlit's own AppTest; what only a browser can show is in test_app_browser.py."""

import dataclasses
import io
import json
import re
import shutil
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

from tiramisu.data.streets import draw_scene
from tiramisu.demo import viewer
from tiramisu.demo.gallery import Disk, Gallery, Setup, sweep
from tiramisu.demo.limits import Limits
from tiramisu.demo.models import find_models
from tiramisu.demo.package import relabelling_list, unique_names, write_package
from tiramisu.demo.quick_training import QuickTraining
from tiramisu.demo.service import BusyError, Queues, Service, Step, Turnstile
from tiramisu.errors import ImageError
from tiramisu.inference import Options, Segmenter
from tiramisu.labels import LabelSet
from tiramisu.visualize import with_safe_colors

from .conftest import TrainArgs
from .odd_images import BAD, GOOD

APP = Path(__file__).parent.parent / "app.py"
OPTIONS = Options(uncertainty="entropy", confidence=True)
AT_ITS_SIZE = dataclasses.replace(OPTIONS, fit=False)


def scene(number: int, size: tuple[int, int] = (48, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_scene(5, number, *size)[0]).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def restored_main() -> Iterator[None]:
    """AppTest leaves the app in place of the main module, which every process spawned later would then run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture
def runs(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = trained_run.parent.parent
    monkeypatch.setenv("TIRAMISU_RUNS", str(root))
    monkeypatch.setattr("tiramisu.weights.SHIPPED", root)  # where no weights lie
    st.cache_resource.clear()
    return root


@pytest.fixture
def app(runs: Path) -> AppTest:
    return AppTest.from_file(str(APP), default_timeout=60)


@pytest.fixture(scope="session")
def service(trained_run: Path) -> Service:
    return Service(Segmenter.load(trained_run / "model"), Queues())


def upload(app: AppTest, files: dict[str, bytes]) -> AppTest:
    app.run()
    app.file_uploader(key="files").set_value([(name, data, "image/png") for name, data in files.items()])
    return app.run()


def errors(app: AppTest) -> list[str]:
    assert not app.exception
    lines = [line for error in app.error for line in error.value.split("\n\n")]
    return [re.sub(r"\\(.)", r"\1", line) for line in lines]  # names are escaped for Markdown


def names(app: AppTest) -> list[str]:
    return list(app.dataframe[0].value["Image"])


def test_without_weights_it_offers_to_train(app: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIRAMISU_RUNS", str(tmp_path))
    app.run()
    assert not errors(app)
    assert "no weights yet" in app.info[0].value
    assert [button.label for button in app.button] == ["Train a small model"]


def test_the_shipped_weights_are_used_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIRAMISU_RUNS", str(tmp_path))
    app = AppTest.from_file(str(APP), default_timeout=60).run()
    assert not errors(app)
    assert app.selectbox(key="model").value == "camvid"
    app.button(key="sample1").click().run()
    assert not errors(app)
    assert [heading.value for heading in app.subheader] == ["scene 2.png"]


def test_a_sample_is_one_click_away_and_stays_in_the_address(app: AppTest) -> None:
    app.run()
    app.button(key="sample1").click().run()
    assert not errors(app)
    assert [heading.value for heading in app.subheader] == ["scene 2.png"]
    assert app.query_params["samples"] == "1"
    again = AppTest.from_file(str(APP), default_timeout=60)
    again.query_params["samples"] = "1"
    again.run()
    assert [heading.value for heading in again.subheader] == ["scene 2.png"]
    again.button(key="sample1").click().run()
    assert not again.subheader


def test_every_kind_of_image_beside_every_kind_of_defect(app: AppTest) -> None:
    upload(app, {name: make() for name, (make, _) in BAD.items()} | {name: make() for name, make in GOOD.items()})
    found = errors(app)
    assert len(found) == len(BAD)
    for name, (_, words) in BAD.items():
        line = next(error for error in found if error.startswith(name))
        assert re.search(words, line)
        assert "\n" not in line
        assert "/tmp" not in line
    kept = {make(): name for name, make in GOOD.items()}  # the same bytes are kept once
    assert len(names(app)) == len(kept)
    doubt = list(app.dataframe[0].value["Uncertainty"])
    assert doubt == sorted(doubt, reverse=True)


def test_images_outlive_a_look_at_another_source(app: AppTest) -> None:
    upload(app, {"a*b*.png": scene(0), "c.png": scene(1)})
    control = next(group for group in app.segmented_control if group.label == "Source")
    control.set_value("Video").run()
    next(group for group in app.segmented_control if group.label == "Source").set_value("Photos").run()
    assert not errors(app)
    assert sorted(names(app)) == ["a*b*.png", "c.png"]
    next(button for button in app.button if button.label == "Remove 2 earlier images").click().run()
    assert not app.dataframe


def test_a_result_that_cannot_be_stored_is_told_and_the_others_go_on(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = Service.segment

    def fail_once(self: Service, image: np.ndarray, *arguments: Any):
        if image.shape[0] == 40:
            raise RuntimeError("out of memory\nand so on")
        return segment(self, image, *arguments)

    monkeypatch.setattr(Service, "segment", fail_once)
    upload(app, {"a.png": scene(0, (40, 64)), "b.png": scene(1)})
    assert errors(app) == ["a.png: could not be segmented (out of memory)"]
    assert [heading.value for heading in app.subheader] == ["b.png"]


def test_removed_uploads_are_forgotten(app: AppTest) -> None:
    upload(app, {f"{number}.png": scene(number) for number in range(3)})
    assert sorted(names(app)) == ["0.png", "1.png", "2.png"]
    upload(app, {"1.png": scene(1)})
    assert [heading.value for heading in app.subheader] == ["1.png"]


def test_the_settings_change_the_result(app: AppTest) -> None:
    upload(app, {"a.png": scene(0)})
    for key, value in (("flip", True), ("dropout", True), ("safe", True)):
        app.toggle(key=key).set_value(value).run()
        assert not errors(app)
    assert "torch" in " ".join(line.value for line in app.sidebar.markdown)
    app.toggle(key="dropout").set_value(False).run()
    app.selectbox(key="engine").set_value("torch").run()
    assert not errors(app)
    assert any(re.match(r"\*\*\d+ ms\*\* · mean probability", line.value) for line in app.markdown)


def test_a_verdict_lands_in_the_list(app: AppTest) -> None:
    upload(app, {"a.png": scene(0)})
    control = next(group for group in app.segmented_control if group.label == "Is the mask right?")
    control.set_value("wrong").run()
    assert not errors(app)
    assert ["wrong"] in [list(marked.values()) for marked in app.session_state["verdicts"].values()]


def test_a_true_mask_is_compared(app: AppTest, service: Service) -> None:
    upload(app, {"a.png": scene(0)})
    image = np.asarray(Image.open(io.BytesIO(scene(0))))
    buffer = io.BytesIO()
    Image.fromarray(service.segment(image, OPTIONS)[0].mask).save(buffer, "PNG")
    app.file_uploader(key="masks").set_value([("A.png", buffer.getvalue(), "image/png")]).run()
    assert not errors(app)
    assert [metric.value for metric in app.metric if metric.label == "mIoU"] == ["100.0 %"]
    app.file_uploader(key="masks").set_value([("a.png", scene(0), "image/png")]).run()
    assert errors(app) == ["mask a.png is of mode RGB; masks must hold one class index per pixel (mode L or P)"]
    small = io.BytesIO()
    Image.new("L", (8, 8)).save(small, "PNG")
    app.file_uploader(key="masks").set_value([("a.png", small.getvalue(), "image/png")]).run()
    assert "give the mask of the same image" in errors(app)[0]


def test_cancel_and_go_on(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    app.session_state["cancelled"] = frozenset()
    app.run()

    def refuse(*_: Any) -> None:
        raise BusyError("busy")

    with monkeypatch.context() as busy:
        busy.setattr(Gallery, "analyse", refuse)
        upload(app, {"a.png": scene(0), "b.png": scene(1)})
        assert [warning.value for warning in app.warning] == ["busy"]
        app.button(key="cancel").click().run()
        assert "Cancelled: 2 of 2" in app.warning[0].value
    next(button for button in app.button if button.label == "Go on").click().run()
    assert not errors(app)


def test_a_video(app: AppTest, tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for number in range(4):
        writer.write(np.ascontiguousarray(draw_scene(1, number, 48, 64)[0][:, :, ::-1]))
    writer.release()
    app.query_params["source"] = "Video"
    app.run()
    app.file_uploader(key="video").set_value(("clip.mp4", file.read_bytes(), "video/mp4")).run()
    app.button[0].click().run()
    assert not errors(app)
    assert any("4 frames of 64 x 48" in line.value for line in app.markdown)
    app.file_uploader(key="video").set_value(("bad.mp4", b"no video", "video/mp4")).run()
    app.button[0].click().run()
    assert errors(app) == ["bad.mp4: not a video that can be read here"]


def test_models_are_found_and_damaged_ones_left_out(trained_run: Path, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        shutil.copytree(trained_run / "model", tmp_path / name / "version_0" / "model")
    (tmp_path / "bad" / "version_0" / "model" / "config.json").write_text("{")
    models = [model for model in find_models(tmp_path) if "/" in model.name]
    assert [model.name for model in models] == ["good/version_0"]
    assert "mIoU" in models[0].title
    assert {"Data set", "mIoU", "Network", "Epochs"} <= models[0].facts.keys()


def test_the_package_holds_what_predict_writes(service: Service, tmp_path: Path) -> None:
    gallery = Gallery()
    setup = Setup("w", "auto", OPTIONS)
    uploads = [("a/x.png", scene(0)), ("b/X.png", scene(1)), ("bad.png", b"nothing")]
    results = [gallery.analyse(gallery.add(name, data), service, setup) for name, data in uploads]
    write_package(gallery, results, service.labels, {results[0].picture.key: "wrong"}, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.testzip() is None
        files = set(archive.namelist())
        with Image.open(archive.open("x.png")) as picture:
            np.testing.assert_array_equal(np.asarray(picture), results[0].read("mask"))
            assert picture.mode == "P"
        tables = {name: archive.read(name).decode() for name in files if name.endswith((".csv", ".json"))}
        labelme = json.loads(archive.read("labelme/x.json"))
        with Image.open(archive.open(f"labelme/{labelme['imagePath']}".replace("labelme/../", ""))) as photo:
            np.testing.assert_array_equal(np.asarray(photo), np.asarray(Image.open(io.BytesIO(scene(0)))))
    assert {"x.png", "X-2.png", "overlays/x.jpg", "labelme/x.json", "coco.json", "areas.csv", "review.csv"} <= files
    assert "bad.png" in tables["failures.csv"]
    assert "a/x.png,wrong" in tables["verdicts.csv"]
    assert not [name for name, text in tables.items() if str(gallery.root) in text], "no path of the server"
    listed = relabelling_list(results, {results[0].picture.key: "good"}).splitlines()
    assert [line.split(",")[0] for line in listed] == ["image", "b/X.png"]
    root = gallery.root
    gallery.close()
    assert not root.exists()


def test_names_of_results_differ_also_without_case() -> None:
    assert unique_names(["a.png", "A.jpg", "../b", "...", "x<y>.png"]) == ["a", "A-2", "b", "image", "x_y_"]


def test_limits_are_told_with_the_file(service: Service) -> None:
    gallery = Gallery(Limits(image_mib=1, images=1, pixels=1000))
    with pytest.raises(ImageError, match=r"big.png: 2 MiB are more than the limit of 1 MiB"):
        gallery.add("big.png", bytes(2 * 2**20))
    first = gallery.add("a.png", scene(0))
    with pytest.raises(ImageError, match=r"b.png: 1 images are enough"):
        gallery.add("b.png", scene(1))
    result = gallery.analyse(first, service, Setup("w", "auto", OPTIONS))
    assert result.error == "a.png: 0 megapixels are more than the limit of 0.001; make it smaller"


def test_old_results_of_other_settings_make_room_and_none_that_is_shown(service: Service) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    gallery = Gallery(Limits(session_mib=2))
    picture = gallery.add("noise.png", buffer.getvalue())
    setups = [Setup(weights, "auto", AT_ITS_SIZE) for weights in "abc"]
    results = [gallery.analyse(picture, service, setup) for setup in setups]
    assert not any(result.error for result in results)
    assert not results[0].folder.exists()
    assert results[2].folder.exists()
    full = Gallery(Limits(), Disk(len(buffer.getvalue()) + 1000))
    result = full.analyse(full.add("noise.png", buffer.getvalue()), service, setups[0])
    assert result.error == "noise.png: this server is full right now; try again later"
    assert not result.folder.exists()
    full.close()
    assert full.disk.free == len(buffer.getvalue()) + 1000


def test_much_work_is_refused_and_less_is_not(service: Service) -> None:
    gallery = Gallery(Limits(seen=48 * 64 * 2))
    picture = gallery.add("a.png", scene(0))
    assert not gallery.analyse(picture, service, Setup("w", "auto", Options(tta="flip", confidence=True))).error
    options = Options(uncertainty="mc-dropout", confidence=True)
    assert "look at each 8 times" in gallery.analyse(picture, service, Setup("w", "torch", options)).error


def test_work_goes_on_beside_the_page_until_nobody_wants_it(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = Gallery()
    first, second = (gallery.add(f"{number}.png", scene(number)) for number in range(2))
    setup = Setup("w", "auto", OPTIONS)
    go_on = threading.Event()
    segment = Service.segment

    def wait(self: Service, image: np.ndarray, options: Options, tell: Any) -> Any:
        while not go_on.wait(0.01):
            tell(Step(0, 0.5))
        return segment(self, image, options, tell)

    monkeypatch.setattr(Service, "segment", wait)
    work = gallery.begin(first, service, setup)
    assert gallery.begin(first, service, setup) is work
    other = gallery.begin(second, service, setup)  # ends the first
    work.wait(10)
    assert not work.running
    assert gallery.find(first, setup) is None
    gallery.remove(second.key)
    other.wait(10)
    assert not other.running
    last = gallery.begin(first, service, setup)
    go_on.set()
    last.wait(10)
    assert last.error is None
    assert gallery.find(first, setup) is not None
    with service.queues.network.turn(lambda ahead: pytest.fail("somebody is still there")):
        pass


def test_what_a_killed_server_left_is_swept(tmp_path: Path) -> None:
    gallery = Gallery()
    gone = tmp_path / "tiramisu-4194304000-x"
    mine = tmp_path / gallery.root.name
    other = tmp_path / "tiramisu-x"
    for folder in (gone, mine, other):
        folder.mkdir()
        (folder / "file").touch()
    sweep(tmp_path)
    assert sorted(path for path in tmp_path.iterdir()) == sorted([mine, other])


def test_a_large_image_lets_others_through_and_can_be_cancelled(trained_run: Path) -> None:
    """Every tile waits for its turn; whoever was told how far it is may end it by raising."""
    queues = Queues()
    segmenter = Segmenter.load(trained_run / "model", engine="torch")
    large = Service(Segmenter(segmenter.engine, tile=64, overlap=16), queues)
    small = Service(segmenter, queues)
    image = draw_scene(1, 1, 300, 300)[0]
    steps: list[Step] = []
    done: list[str] = []

    def look(step: Step) -> None:
        steps.append(step)
        if len(steps) == 3:  # while the large one is at work
            small.segment(image[:48, :64], OPTIONS)
            done.append("small")

    result, seconds = large.segment(image, AT_ITS_SIZE, look)
    done.append("large")
    assert done == ["small", "large"]
    assert seconds > 0
    np.testing.assert_array_equal(result.mask, large.segmenter(image, AT_ITS_SIZE).mask)
    assert [step.share for step in steps] == sorted(step.share for step in steps)
    assert steps[-1] == Step(0, 1.0)

    class CancelledError(Exception):
        pass

    def cancel(step: Step) -> None:
        raise CancelledError

    for options in (AT_ITS_SIZE, Options(uncertainty="mc-dropout", fit=False)):
        with pytest.raises(CancelledError):
            large.segment(image, options, cancel)
    with queues.network.turn(lambda ahead: pytest.fail("the cancelled ones are gone")):
        pass


def test_who_waits_is_told_and_may_leave() -> None:
    turnstile = Turnstile()
    told: list[int] = []

    def tell(ahead: int) -> None:
        told.append(ahead)
        raise KeyboardInterrupt

    with turnstile.turn(), pytest.raises(KeyboardInterrupt), turnstile.turn(tell):
        pass
    assert told == [1]
    with turnstile.turn(tell):
        pass


def test_old_results_make_room(service: Service) -> None:
    gallery = Gallery(Limits(results=2))
    setup = Setup("w", "auto", OPTIONS)
    results = [gallery.analyse(gallery.add(f"{n}.png", scene(n)), service, setup) for n in range(3)]
    assert [result.folder.exists() for result in results] == [False, True, True]
    assert gallery.find(results[0].picture, setup) is None


def test_too_many_waiting_are_sent_away() -> None:
    turnstile = Turnstile(waiting=0)
    with turnstile.turn(), pytest.raises(BusyError, match="try again"), turnstile.turn():
        pass
    with turnstile.turn():
        pass


def test_settings_in_the_address_come_back_and_nonsense_is_ignored() -> None:
    labels = LabelSet.numbered(4)
    settings = {"opacity": 0.3, "view": "compare", "hidden": [1, 3]}
    assert viewer.read_settings(viewer.write_settings(settings, labels), labels) == settings
    default = viewer.read_settings({}, labels)
    assert viewer.write_settings(default, labels) == {}
    assert viewer.read_settings({"opacity": "9e9", "view": "<b>", "hidden": "x,,9"}, labels) == default


def test_safe_colors_differ_and_never_run_out() -> None:
    palette = with_safe_colors(LabelSet.numbered(40)).palette
    assert len(set(palette)) == 40


@pytest.mark.slow
def test_a_small_model_is_trained_in_the_background(train_args: TrainArgs, tmp_path: Path) -> None:
    training = QuickTraining(tmp_path / "runs", tuple(train_args("--trainer.max_epochs=2")), epochs=2)
    assert training.progress().state == "idle"
    training.start()
    assert training.progress().state == "running"
    assert training._process is not None
    training._process.wait(120)
    assert training.progress().state == "done", training.progress().text
    assert [model.name for model in find_models(tmp_path / "runs") if "/" in model.name] == ["tiny/version_0"]
    broken = QuickTraining(tmp_path / "runs", ("--nonsense",))
    broken.start()
    assert broken._process is not None
    broken._process.wait(120)
    assert broken.progress().state == "failed"
    assert "nonsense" in broken.progress().text
