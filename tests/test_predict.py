"""`tiramisu.predict`, called as users call it."""

import csv
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.odd_images import write_odd_folder
from tiramisu.data.camvid import CamVid
from tiramisu.data.streets import draw_scene
from tiramisu.evaluate import main as evaluate
from tiramisu.files import atomic_path
from tiramisu.inference import folder as folder_module
from tiramisu.predict import main


def write_scenes(root: Path, count: int, size: tuple[int, int] = (48, 64)) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(draw_scene(5, number, *size)[0]).save(root / f"{number:04d}.png")
    return root


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def contents(root: Path) -> dict[str, bytes]:
    """Every file that does not tell the time."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith((".", "summary")))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def command(weights: Path, images: Path, output: Path, *more: str) -> list[str]:
    return [str(images), f"--output={output}", f"--weights={weights}", *more]


@pytest.fixture(scope="module")
def weights(trained_run: Path) -> Path:
    return trained_run / "model"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 6)


def test_masks_are_index_pngs_in_the_colours_of_the_classes(
    weights: Path, scenes: Path, tmp_path: Path, capsys
) -> None:
    main(command(weights, scenes, tmp_path / "masks"))
    with Image.open(tmp_path / "masks" / "0003.png") as mask:
        assert mask.mode == "P" and mask.size == (64, 48)
        assert mask.getpalette()[: 3 * 11] == list(np.ravel(CamVid.labels.palette))
        shares = np.bincount(np.asarray(mask).ravel(), minlength=11) / mask.size[0] / mask.size[1]
    row = rows(tmp_path / "masks" / "areas.csv")[3]
    assert row["image"].endswith("0003.png") and row["result"] == "0003.png"
    np.testing.assert_allclose([float(row[name]) for name in CamVid.labels.names], shares, atol=1e-6)
    summary = json.loads((tmp_path / "masks" / "summary.json").read_text())
    assert (summary["images"], summary["done"], summary["failed"]) == (6, 6, 0)
    printed = capsys.readouterr()
    assert "6 segmented" in printed.out and "Segmenting with" in printed.err
    assert not list((tmp_path / "masks").rglob("*tmp*")), "no half-written files"


def test_masks_score_as_evaluate_says(weights: Path, shared_camvid_like: Path, tmp_path: Path) -> None:
    main(command(weights, shared_camvid_like / "val", tmp_path / "masks", "--engine=torch", "--precision=fp32"))
    data = [f"--data.root={shared_camvid_like}", "--workers=0", f"--output={tmp_path / 'scores'}"]
    evaluate([f"--weights={weights}", "--precision=fp32", *data])
    confusion = np.zeros((11, 11), int)
    for file in sorted((shared_camvid_like / "valannot").iterdir()):
        truth, found = np.asarray(Image.open(file)), np.asarray(Image.open(tmp_path / "masks" / file.name))
        np.add.at(confusion, (truth[truth < 11], found[truth < 11]), 1)
    assert json.loads((tmp_path / "scores" / "evaluation.json").read_text())["confusion"] == confusion.tolist()


def test_everything_else_that_can_be_written(weights: Path, scenes: Path, tmp_path: Path) -> None:
    everything = ["--overlay", "--opacity=0.7", "--uncertainty=entropy", "--probabilities"]
    main(command(weights, scenes, tmp_path, *everything, "--annotations=coco,coco-panoptic,labelme", "--tta=flip"))
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(("0", "."))} == {
        *("areas.csv", "failures.csv", "summary.json", "review.csv", "coco.json", "panoptic.json"),
        *("overlays", "uncertainty", "probabilities", "panoptic", "labelme"),
    }
    assert np.asarray(Image.open(tmp_path / "overlays" / "0000.jpg")).shape == (48, 64, 3)
    assert Image.open(tmp_path / "uncertainty" / "0000.png").mode == "L"
    probabilities = np.load(tmp_path / "probabilities" / "0000.npz")["probabilities"]
    mask = np.asarray(Image.open(tmp_path / "0000.png"))
    assert probabilities.shape == (11, 48, 64) and np.mean(probabilities.argmax(0) == mask) > 0.99
    uncertainties = [float(row["uncertainty"]) for row in rows(tmp_path / "review.csv")]
    assert len(uncertainties) == 6 and uncertainties == sorted(uncertainties, reverse=True)
    labelme = json.loads((tmp_path / "labelme" / "0000.json").read_text())
    assert (tmp_path / "labelme" / labelme["imagePath"]).resolve() == (scenes / "0000.png").resolve()


@pytest.mark.parametrize("executor", ["local"])
def test_bad_images_are_reported_and_the_run_goes_on(weights: Path, tmp_path: Path, capsys, executor: str) -> None:
    good, bad = write_odd_folder(tmp_path / "odd", copies=2)
    with pytest.raises(SystemExit) as ended:
        main(command(weights, tmp_path / "odd", tmp_path / "masks", f"--executor={executor}"))
    assert ended.value.code == 3
    failures = rows(tmp_path / "masks" / "failures.csv")
    assert len(failures) == bad and all(row["reason"] and "\n" not in row["reason"] for row in failures)
    done = rows(tmp_path / "masks" / "areas.csv")
    assert len(done) == good and len({row["result"] for row in done}) == good
    for row in done:
        with Image.open(tmp_path / "masks" / row["result"]) as mask:
            assert mask.size == (int(row["width"]), int(row["height"]))
    captured = capsys.readouterr()
    assert f"{good} segmented" in captured.out and f"{bad} failed" in captured.out and "Traceback" not in captured.err


def test_finished_images_are_skipped_and_changed_ones_are_not(weights: Path, tmp_path: Path, capsys) -> None:
    images, masks = write_scenes(tmp_path / "images", 4), tmp_path / "masks"
    main(command(weights, images, masks))
    first = contents(masks)
    main(command(weights, images, masks))
    assert "0 segmented" in capsys.readouterr().out.splitlines()[-1] and contents(masks) == first
    Image.fromarray(draw_scene(9, 9, 50, 70)[0]).save(images / "0001.png")
    (masks / "0002.png").unlink()
    main(command(weights, images, masks, "--overlay=png"))
    assert "4 segmented" in capsys.readouterr().out.splitlines()[-1], "the overlays were missing"
    assert Image.open(masks / "0001.png").size == (70, 50)
    main(command(weights, images, masks, "--overwrite"))
    assert "4 segmented" in capsys.readouterr().out.splitlines()[-1]


def test_other_settings_do_not_mix_into_a_folder(weights: Path, scenes: Path, tmp_path: Path, capsys) -> None:
    main(command(weights, scenes, tmp_path))
    with pytest.raises(SystemExit):
        main(command(weights, scenes, tmp_path, "--tta=flip"))
    assert "was made with tta none, not flip" in capsys.readouterr().err
    main(command(weights, scenes, tmp_path, "--tta=flip", "--overwrite"))


def damage_journal(masks: Path, how: str) -> None:
    file = masks / ".tiramisu.sqlite"
    data = bytearray(file.read_bytes())
    if how == "other":
        file.unlink()
        with sqlite3.connect(file) as connection:
            connection.execute("CREATE TABLE recipes (name TEXT)")
        return
    start = 0 if how == "whole" else 4096
    data[start:] = b"\x5a" * (len(data) - start)
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["whole", "middle", "other"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_after_a_damaged_journal_nothing_is_ours(
    weights: Path, scenes: Path, tmp_path: Path, capsys, how: str, more: list[str]
) -> None:
    main(command(weights, scenes, tmp_path / "masks"))
    damage_journal(tmp_path / "masks", how)
    before = everything(tmp_path / "masks")
    with pytest.raises(SystemExit) as ended:
        main(command(weights, scenes, tmp_path / "masks", *more))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 1 and ("is damaged" in error or "was not written by tiramisu" in error), error
    assert "choose another --output" in error and everything(tmp_path / "masks") == before


def everything(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_videos_overlay_and_areas(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    writer = cv2.VideoWriter(str(tmp_path / "in" / "drive.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(5):
        writer.write(draw_scene(5, number, 48, 64)[0][:, :, ::-1])
    writer.release()
    (tmp_path / "in" / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(SystemExit) as ended:
        main(command(weights, tmp_path / "in", tmp_path / "out"))
    assert ended.value.code == 3 and "not a video" in rows(tmp_path / "out" / "failures.csv")[0]["reason"]
    capture = cv2.VideoCapture(str(tmp_path / "out" / "videos" / "drive.mp4"))
    frames = []
    while (frame := capture.read())[0]:
        frames.append(frame[1])
    assert len(frames) == 5 and frames[0].shape == (48, 64, 3) and capture.get(cv2.CAP_PROP_FPS) == 10
    table = rows(tmp_path / "out" / "videos" / "drive.csv")
    assert [row["frame"] for row in table] == ["0", "1", "2", "3", "4"] and table[3]["seconds"] == "0.300"
    assert sum(float(table[0][name]) for name in CamVid.labels.names) == pytest.approx(1, abs=1e-4)
    assert rows(tmp_path / "out" / "areas.csv")[0]["note"] == "video of 5 frames"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_summary(
    weights: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    images = write_scenes(tmp_path / "images", 30)
    decode = folder_module.decode_image

    def decode_and_interrupt(path: Path, *args, **options):
        if path.stem == "0010":
            os.kill(os.getpid(), number)
        return decode(path, *args, **options)

    monkeypatch.setattr(folder_module, "decode_image", decode_and_interrupt)
    with pytest.raises(SystemExit) as ended:
        main(command(weights, images, tmp_path / "masks"))
    assert ended.value.code == 128 + number
    done = len(rows(tmp_path / "masks" / "areas.csv"))
    assert 5 <= done < 30 and f"with {30 - done} of 30 to go" in capsys.readouterr().err
    monkeypatch.undo()
    main(command(weights, images, tmp_path / "masks"))
    main(command(weights, images, tmp_path / "whole"))
    assert contents(tmp_path / "masks") == contents(tmp_path / "whole")


def run_in_process(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tiramisu.predict", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def kill_and_compare(weights: Path, tmp_path: Path, images: Path, kills: int, *more: str) -> None:
    """Kill the command at random moments, run it again, and compare with a run that nothing disturbed."""
    main(command(weights, images, tmp_path / "whole", *more))
    generator = np.random.default_rng(0)
    for _ in range(kills):
        process = run_in_process(command(weights, images, tmp_path / "masks", *more))
        time.sleep(float(generator.uniform(0.4, 2.0)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    main(command(weights, images, tmp_path / "masks", *more))
    assert contents(tmp_path / "masks") == contents(tmp_path / "whole")
    assert not list((tmp_path / "masks").rglob("*tmp*"))


def test_a_kill_at_any_moment_loses_nothing(weights: Path, tmp_path: Path) -> None:
    kill_and_compare(weights, tmp_path, write_scenes(tmp_path / "images", 200), 2, "--overlay")


@pytest.mark.slow
def test_many_kills_lose_nothing(weights: Path, tmp_path: Path) -> None:
    images = write_scenes(tmp_path / "images", 700, (96, 128))
    kill_and_compare(weights, tmp_path, images, 8, "--overlay", "--annotations=coco,labelme")


def test_a_full_disk_ends_in_one_line(weights: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_scenes(tmp_path / "images", 12)
    written = []

    def full(path: Path, scratch: Path):
        written.append(path)
        if len(written) > 8:
            raise OSError(28, "No space left on device", str(path))
        return atomic_path(path, scratch)

    monkeypatch.setattr("tiramisu.inference.outputs.atomic_path", full)
    with pytest.raises(SystemExit) as ended:
        main(command(weights, images, tmp_path / "masks"))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 1 and "is full" in error and "run the same command again" in error
    assert len(list((tmp_path / "masks").glob("*.png"))) == 8
    monkeypatch.undo()
    main(command(weights, images, tmp_path / "masks"))
    assert len(rows(tmp_path / "masks" / "areas.csv")) == 12


def test_two_runs_do_not_write_into_one_folder(weights: Path, tmp_path: Path, scenes: Path, capsys) -> None:
    from tiramisu.inference.journal import Journal

    tmp_path.joinpath("masks").mkdir()
    with Journal(tmp_path / "masks", {}), pytest.raises(SystemExit):
        main(command(weights, scenes, tmp_path / "masks"))
    assert "another process writes into" in capsys.readouterr().err


MEMORY = """
import sys, resource
from tiramisu.predict import main
try:
    main(sys.argv[1:])
finally:
    print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_memory(arguments: list[str]) -> int:
    """The largest memory of a run, in MiB."""
    result = subprocess.run([sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=True)
    return int(result.stdout.split("PEAK")[1])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(weights: Path, tmp_path: Path) -> None:
    images = write_scenes(tmp_path / "images", 100, (40, 48))
    few = peak_memory(command(weights, images, tmp_path / "few"))
    for number in range(100, 5000):
        os.link(images / f"{number % 100:04d}.png", images / f"{number:04d}.png")
    many = peak_memory(command(weights, images, tmp_path / "many"))
    assert many < few + 40, (few, many)
    assert len(rows(tmp_path / "many" / "areas.csv")) == 5000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["*.bmp"], "no file matches"),
        ([], "inputs"),
        (["{scenes}", "--weights=nowhere"], "no weights at nowhere"),
        (["{scenes}", "--engine=tpu"], "tpu"),
        (["{scenes}", "--opacity=3"], "--opacity"),
        (["{scenes}", "--uncertainty=mc-dropout", "--engine=openvino"], "mc-dropout"),
        (["{scenes}", "--annotations=voc"], "voc"),
        (["{scenes}", "--passes=1"], "--passes"),
        (["{empty}"], "no images in"),
        (["{scenes}", "--output=/dev/null/x"], "/dev/null"),
        (["{scenes}", "--output="], "is empty"),
        ([""], "is empty"),
        (["s3://bucket/photos"], "--executor ray"),
        (["{scenes}", "--ray_address=127.0.0.1:1"], "--executor ray"),
    ],
)
def test_mistakes_are_told_in_one_line(weights: Path, scenes: Path, tmp_path: Path, capsys, arguments, words) -> None:
    (tmp_path / "empty").mkdir()
    given = [argument.format(scenes=scenes, empty=tmp_path / "empty") for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        main([f"--weights={weights}", f"--output={tmp_path / 'out'}", *given])
    assert ended.value.code in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("tiramisu.predict: error: ") and words in error and len(error) < 400, error


def test_without_weights_the_shipped_ones_are_used(scenes: Path, tmp_path: Path, capsys) -> None:
    main([str(scenes / "0000.png"), f"--output={tmp_path}"])
    said = capsys.readouterr().err
    assert re.search("Using the weights in .*camvid", said) and "non-commercial" in said


def test_where_none_are_shipped_the_newest_run_is_used(
    trained_run: Path, scenes: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiramisu.weights.SHIPPED", tmp_path)
    monkeypatch.chdir(trained_run.parent.parent.parent)
    main([str(scenes / "0000.png"), f"--output={tmp_path}"])
    assert f"Using the weights in {Path('runs/tiny/version_0/model')}" in capsys.readouterr().err


def test_predict_does_not_wait_for_torch(weights: Path, scenes: Path, tmp_path: Path) -> None:
    main(command(weights, scenes, tmp_path / "first"))  # puts the graph into the cache
    check = "import sys; from tiramisu.predict import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check, *command(weights, scenes, tmp_path / "second")], check=True)


@pytest.mark.parametrize("given", ["d/a.png", "list.txt", "d/s"])
def test_files_that_are_no_results_are_never_overwritten(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path / "d" / "s", 1).joinpath("0000.png").rename(tmp_path / "d" / "s" / "a.png")
    write_scenes(tmp_path / "d", 1).joinpath("0000.png").rename(tmp_path / "d" / "a.png")
    (tmp_path / "list.txt").write_text("d/a.png\n")
    before = (tmp_path / "d" / "a.png").read_bytes()
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main([given, "--output=d", f"--weights={weights}"])
        assert ended.value.code == 3
        assert "was not written by tiramisu" in rows(tmp_path / "d" / "failures.csv")[0]["reason"]
    assert (tmp_path / "d" / "a.png").read_bytes() == before


def test_a_result_stays_ours_though_its_image_was_broken_for_a_while(weights: Path, tmp_path: Path, capsys) -> None:
    images = write_scenes(tmp_path / "images", 1)
    good = (images / "0000.png").read_bytes()
    main(command(weights, images, tmp_path / "masks"))
    (images / "0000.png").write_bytes(b"broken")
    with pytest.raises(SystemExit):
        main(command(weights, images, tmp_path / "masks"))
    (images / "0000.png").write_bytes(good)
    capsys.readouterr()
    main(command(weights, images, tmp_path / "masks"))
    assert segmented(capsys) == 1


def segmented(capsys: pytest.CaptureFixture[str]) -> int:
    """How many images the last run says it has segmented."""
    return int(capsys.readouterr().out.splitlines()[-1].split()[0])


def test_what_is_wanted_anew_is_done_anew(weights: Path, scenes: Path, tmp_path: Path, capsys) -> None:
    plain = command(weights, scenes, tmp_path)
    for more, expected in (
        ([], 6),
        (["--overlay"], 6),
        (["--overlay", "--opacity=1"], 6),
        ([], 0),
        (["--annotations", "coco"], 6),
        (["--annotations=coco"], 0),
    ):
        main([*plain, *more])
        assert segmented(capsys) == expected, more
    assert len(json.loads((tmp_path / "coco.json").read_text())["images"]) == 6


def test_another_image_of_the_same_name_size_and_time_is_done(weights: Path, tmp_path: Path, capsys) -> None:
    for number, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        Image.fromarray(draw_scene(5, number, 48, 64)[0]).save(tmp_path / folder / "a.bmp")
        os.utime(tmp_path / folder / "a.bmp", (1, 1))
        main(command(weights, tmp_path / folder, tmp_path / "masks"))
        assert segmented(capsys) == 1


def test_the_output_of_a_glob_is_no_input(weights: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path / "d", 2)
    for expected in (2, 0):
        main(["d/**", "--output=d/out", f"--weights={weights}"])
        assert segmented(capsys) == expected


def test_one_file_or_video_that_cannot_be_written_concerns_no_other(weights: Path, tmp_path: Path) -> None:
    images = write_scenes(tmp_path / "images", 2)
    writer = cv2.VideoWriter(str(images / "0000_wide.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (9000, 16))
    writer.write(np.zeros((16, 9000, 3), np.uint8))
    writer.release()
    (images / "0000.png").rename(images / "0000.jpg")
    write_scenes(images / "0000.png", 1)  # a folder
    with pytest.raises(SystemExit) as ended:
        main(command(weights, images, tmp_path / "masks"))
    assert ended.value.code == 3
    assert [Path(row["image"]).name for row in rows(tmp_path / "masks" / "failures.csv")] == ["0000_wide.avi"]
    assert len(rows(tmp_path / "masks" / "areas.csv")) == 3


def test_a_failure_that_was_taken_away_is_forgotten(weights: Path, tmp_path: Path) -> None:
    images = write_scenes(tmp_path / "images", 1)
    (images / "bad.png").write_bytes(b"")
    with pytest.raises(SystemExit):
        main(command(weights, images, tmp_path / "masks"))
    (images / "bad.png").unlink()
    main(command(weights, images, tmp_path / "masks"))
    assert not rows(tmp_path / "masks" / "failures.csv")


def test_a_damaged_graph_in_the_cache_is_made_again(weights: Path, scenes: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TIRAMISU_CACHE", str(tmp_path / "cache"))
    main(command(weights, scenes, tmp_path / "one"))
    (graph,) = (tmp_path / "cache").rglob("model.bin")
    graph.write_bytes(b"")
    main(command(weights, scenes, tmp_path / "two"))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
