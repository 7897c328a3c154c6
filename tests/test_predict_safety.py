"""`tiramisu.predict` and other people's files: nothing is overwritten, nothing lands elsewhere, nothing ends a run."""

import csv
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.test_predict import command, everything, rows, segmented, write_scenes
from tiramisu.data.streets import draw_scene
from tiramisu.inference import inputs as inputs_module
from tiramisu.predict import main

ALL = ["--uncertainty=entropy", "--annotations=coco,coco-panoptic,labelme,label-studio", "--overlay"]
TABLES = (
    *("areas.csv", "failures.csv", "summary.json", "review.csv", "coco.json", "panoptic.json"),
    *("label-studio.json", "label-studio.xml"),
)


@pytest.fixture(scope="module")
def weights(trained_run: Path) -> Path:
    return trained_run / "model"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "images", 2)


def ends_with(arguments: list[str], capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return int(ended.value.code or 0), captured.err.strip().splitlines()[-1]


# ---- files of the user are never touched


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_not_ours_is_refused_before_anything_is_computed(
    weights: Path, images: Path, tmp_path: Path, capsys, name: str
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / name).write_text("weeks of work")
    for more in ([], ["--overwrite"]):
        code, error = ends_with(command(weights, images, masks, *ALL, *more), capsys)
        assert code == 1 and f"{masks / name} already exists and was not written by tiramisu" in error
    assert everything(masks) == {name: b"weeks of work"}, "nothing else appears"


def test_a_table_that_somebody_has_changed_is_refused(weights: Path, images: Path, tmp_path: Path, capsys) -> None:
    masks = tmp_path / "masks"
    main(command(weights, images, masks, "--annotations=coco"))
    main(command(weights, images, masks, "--annotations=coco"))
    (masks / "coco.json").write_text('{"edited": "by hand"}')
    code, error = ends_with(command(weights, images, masks, "--annotations=coco"), capsys)
    assert code == 1 and "coco.json already exists" in error
    assert (masks / "coco.json").read_text() == '{"edited": "by hand"}'
    main(command(weights, images, masks))


def test_a_file_beside_a_mask_of_ours_is_not_ours(weights: Path, images: Path, tmp_path: Path, capsys) -> None:
    """The masks of the first run do not make overlays of somebody else ours."""
    masks = tmp_path / "masks"
    main(command(weights, images, masks))
    (masks / "overlays").mkdir()
    (masks / "overlays" / "0000.jpg").write_bytes(b"a photo")
    code, _ = ends_with(command(weights, images, masks, "--overlay"), capsys)
    assert code == 3 and (masks / "overlays" / "0000.jpg").read_bytes() == b"a photo"
    assert "overlays/0000.jpg already exists" in rows(masks / "failures.csv")[0]["reason"]


def test_a_folder_of_an_earlier_version_is_taken_over(weights: Path, images: Path, tmp_path: Path, capsys) -> None:
    import sqlite3

    masks = tmp_path / "masks"
    main(command(weights, images, masks))
    with sqlite3.connect(masks / ".tiramisu.sqlite") as connection:
        connection.executescript("DROP TABLE files; DROP TABLE tables;")
    connection.close()
    Image.fromarray(draw_scene(9, 9, 50, 70)[0]).save(images / "0001.png")
    capsys.readouterr()
    main(command(weights, images, masks))
    assert segmented(capsys) == 1 and Image.open(masks / "0001.png").size == (70, 50)


@pytest.mark.parametrize("line", ["../outside/z.png", "in/../../outside/z.png", "link/z.png", "in/link/z.png"])
def test_nothing_is_written_outside_of_the_output(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    work = tmp_path / "work"
    for folder in (work / "in", tmp_path / "outside", work):
        write_scenes(folder, 1).joinpath("0000.png").rename(folder / "z.png")
    (work / "link").symlink_to(tmp_path / "outside")
    (work / "in" / "link").symlink_to(tmp_path / "outside")
    monkeypatch.chdir(work)
    (work / "list.txt").write_text(f"in/z.png\n{line}\n")
    before = everything(tmp_path)
    main(["list.txt", "--output=out", f"--weights={weights}", *ALL])
    after = everything(tmp_path)
    new = set(after) - set(before)
    assert all(name.startswith("work/out/") for name in new), sorted(new)
    assert all(after[name] == before[name] for name in before)
    results = [row["result"] for row in rows(Path("out/areas.csv"))]
    assert len(set(results)) == 2 and all((work / "out" / result).is_file() for result in results)


def test_a_linked_folder_in_the_output_is_not_followed(weights: Path, tmp_path: Path, capsys) -> None:
    images = write_scenes(tmp_path / "images" / "sub", 1).parent
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "sub").symlink_to(tmp_path / "elsewhere")
    code, _ = ends_with(command(weights, images, tmp_path / "masks"), capsys)
    assert code == 3 and not list((tmp_path / "elsewhere").iterdir())
    assert "would lie outside of --output" in rows(tmp_path / "masks" / "failures.csv")[0]["reason"]


def test_the_same_file_in_two_spellings_comes_once(weights: Path, images: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "list.txt").write_text(f"{images}/0000.png\n{images}/../images/0000.png\n{images}/0001.png\n")
    main(command(weights, tmp_path / "list.txt", tmp_path / "masks"))
    assert segmented(capsys) == 2


# ---- one bad entry never ends a run


def test_lists_with_impossible_lines(weights: Path, images: Path, tmp_path: Path, capsys) -> None:
    lines = [f"{images}/0000.png", "zero\0byte.png", "x" * 300 + ".png", "y/" * 2500 + "z.png", f"{images}/0001.png"]
    (tmp_path / "list.txt").write_bytes("\n".join([*lines, "", "  "]).encode())
    code, _ = ends_with(command(weights, tmp_path / "list.txt", tmp_path / "masks"), capsys)
    failures = rows(tmp_path / "masks" / "failures.csv")
    assert code == 3 and len(failures) == 3 and all(row["reason"] for row in failures)
    assert len(rows(tmp_path / "masks" / "areas.csv")) == 2


def test_names_do_not_speak_to_the_terminal(weights: Path, images: Path, tmp_path: Path, capsys) -> None:
    lines = [f"{images}/0000.png", "zero\0byte.png", "\x1b]0;title\x07.png", "z" * 2_000_000]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    with pytest.raises(SystemExit):
        main(command(weights, tmp_path / "list.txt", tmp_path / "masks"))
    said = capsys.readouterr().err
    assert not any(letter in said for letter in "\0\x1b\x07") and len(said) < 3000
    reasons = [row["reason"] for row in rows(tmp_path / "masks" / "failures.csv")]
    assert len(reasons) == 3 and "a name with a zero byte, which no file has" in reasons
    assert (tmp_path / "masks" / "failures.csv").stat().st_size < 3000


@pytest.mark.parametrize("encoding", ["utf-32", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_as_shells_write_them(weights: Path, tmp_path: Path, capsys, encoding: str, end: str) -> None:
    images = write_scenes(tmp_path / "größe", 2)
    (tmp_path / "list.txt").write_bytes("".join(f"{file}{end}" for file in sorted(images.iterdir())).encode(encoding))
    main(command(weights, tmp_path / "list.txt", tmp_path / "masks"))
    assert segmented(capsys) == 2


def test_long_names_beside_each_other(weights: Path, tmp_path: Path, capsys) -> None:
    scene = Image.fromarray(draw_scene(5, 0, 48, 64)[0])
    folder = tmp_path / "images" / ("f" * 255)
    folder.mkdir(parents=True)
    for name in ("a" * 251 + ".png", "a" * 251 + ".jpg", "a" * 251 + ".bmp", "a" * 250 + "b.png", "é" * 125 + ".png"):
        scene.save(folder / name)
    main(command(weights, tmp_path / "images", tmp_path / "masks", *ALL))
    results = [row["result"] for row in rows(tmp_path / "masks" / "areas.csv")]
    assert len(results) == len(set(results)) == 5 and all((tmp_path / "masks" / name).is_file() for name in results)
    assert len(list((tmp_path / "masks" / "labelme").rglob("*.json"))) == 5


def test_a_folder_without_permission_is_named(
    weights: Path, images: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "secret").mkdir()
    scandir = os.scandir

    def refuse(path):
        if not isinstance(path, int) and Path(path).name == "secret":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(inputs_module.os, "scandir", refuse)
    code, _ = ends_with(command(weights, images, tmp_path / "masks"), capsys)
    (failure,) = rows(tmp_path / "masks" / "failures.csv")
    assert code == 3 and failure["image"].endswith("secret")
    assert failure["reason"] == "the folder cannot be opened (Permission denied)"


def test_an_input_that_vanishes_is_listed(
    weights: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiramisu.inference import folder as folder_module

    images = write_scenes(tmp_path / "images", 5)
    decode = folder_module.decode_image

    def decode_and_remove(path: Path, *args, **options):
        if path.stem == "0003":
            path.unlink()
        return decode(path, *args, **options)

    monkeypatch.setattr(folder_module, "decode_image", decode_and_remove)
    code, _ = ends_with(command(weights, images, tmp_path / "masks"), capsys)
    (failure,) = rows(tmp_path / "masks" / "failures.csv")
    assert code == 3 and failure["image"].endswith("0003.png") and "No such file" in failure["reason"]
    monkeypatch.undo()
    main(command(weights, images, tmp_path / "masks"))
    assert not rows(tmp_path / "masks" / "failures.csv"), "the next run does not look for it"


def test_spreadsheets_run_nothing(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("=cmd|calc.png", "+1.png", "-2+3.png", "@SUM(A1).png"):
        Image.fromarray(draw_scene(5, 0, 48, 64)[0]).save(name)
    Path("=bad.png").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("\n".join(["=cmd|calc.png", "+1.png", "-2+3.png", "@SUM(A1).png", "=bad.png"]))
    assert ends_with(["list.txt", "--output=masks", f"--weights={weights}", "--uncertainty=entropy"], capsys)[0] == 3
    for table in ("areas.csv", "failures.csv", "review.csv"):
        with Path("masks", table).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        texts = [cell for cell in cells if cell and not cell.replace(".", "").isdigit()]
        assert texts and not any(cell[0] in "=+-@\t\r" for cell in texts), texts
    assert sorted(row["image"] for row in rows(Path("masks/areas.csv"))) == [
        "'+1.png", "'-2+3.png", "'=cmd|calc.png", "'@SUM(A1).png"
    ]  # fmt: skip


def limited(arguments: list[str], size: int) -> subprocess.CompletedProcess[str]:
    """Run a command whose files cannot grow beyond a size: like a full disk, it fails in the middle of a write."""
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )  # fmt: skip


@pytest.mark.parametrize("size", [0, 5000, 20_000])
def test_a_disk_that_is_full_from_the_start(weights: Path, images: Path, tmp_path: Path, size: int) -> None:
    result = limited(["tiramisu.predict", *command(weights, images, tmp_path / "masks", *ALL)], size)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("tiramisu.predict: error: "), result.stderr


@pytest.mark.parametrize("kind", ["openvino", "float16"])
def test_an_export_to_a_full_disk(weights: Path, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "model"
    result = limited(
        ["tiramisu.export", f"--weights={weights}", f"--format={kind}", f"--output={output}"], 4000
    )  # fmt: skip
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("tiramisu.export: error: "), result.stderr
    assert not output.exists() and not list(tmp_path.glob(".*"))


def test_kinds_that_are_not_read_are_counted(weights: Path, images: Path, tmp_path: Path, capsys) -> None:
    for name in ("a.psd", "b.CR2", "c.svg", "d.swf", "notes.txt", "app.ts"):  # of TypeScript
        (images / name).write_bytes(b"import x from 'y'" * 30)
    main(command(weights, images, tmp_path / "masks"))
    printed = capsys.readouterr()
    assert "2 segmented" in printed.out and "4 of kinds that are not read" in printed.out
    listed = rows(tmp_path / "masks" / "failures.csv")
    assert sorted(Path(row["image"]).name for row in listed) == ["a.psd", "b.CR2", "c.svg", "d.swf"]
    assert all(row["reason"].startswith("skipped: ") and "convert it to" in row["reason"] for row in listed)
    assert json.loads((tmp_path / "masks" / "summary.json").read_text())["not_read"] == 4


def test_photos_of_phones(weights: Path, tmp_path: Path, capsys) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    (tmp_path / "images").mkdir()
    pillow_heif.from_pillow(Image.fromarray(draw_scene(5, 0, 48, 64)[0])).save(tmp_path / "images" / "IMG_1.HEIC")
    main(command(weights, tmp_path / "images", tmp_path / "masks", "--overlay"))
    assert segmented(capsys) == 1 and Image.open(tmp_path / "masks" / "IMG_1.png").size == (64, 48)


def test_heic_is_counted_where_its_package_lacks(weights: Path, images: Path, tmp_path: Path, capsys) -> None:
    check = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'pillow_heif' else find(name, *rest)\n"
        "from tiramisu.predict import main; main(sys.argv[1:])"
    )
    (images / "IMG_1.HEIC").write_bytes(b"\0\0\0\x1cftypheic")
    arguments = command(weights, images, tmp_path / "masks")
    result = subprocess.run([sys.executable, "-c", check, *arguments], capture_output=True, text=True, check=True)
    assert "1 of kinds that are not read" in result.stdout
    (row,) = rows(tmp_path / "masks" / "failures.csv")
    assert row["image"].endswith("IMG_1.HEIC") and "pip install pillow-heif" in row["reason"]


# ---- annotations


def test_other_tools_find_the_images(weights: Path, tmp_path: Path) -> None:
    """File names are relative to the input, so that its folder is the root of the annotated images."""
    images = tmp_path / "photos"
    write_scenes(images / "one", 1)
    write_scenes(images / "two", 1)
    main(command(weights, images, tmp_path / "masks", *ALL))
    coco = json.loads((tmp_path / "masks" / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["one/0000.png", "two/0000.png"]
    assert all((images / image["file_name"]).is_file() for image in coco["images"])
    tasks = json.loads((tmp_path / "masks" / "label-studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == ["one/0000.png", "two/0000.png"]
    shutil.copy(tmp_path / "masks" / "coco.json", images / "coco.json")
    from tiramisu.data.folder import Folder, FolderOptions, open_folder

    index = open_folder(images, FolderOptions())
    found = {}
    for split in index.splits:
        source = Folder(index, split)
        found |= {sample.name: sample.mask for sample in (source[at] for at in range(len(source)))}
    names = json.loads((weights / "config.json").read_text())["labels"]["names"]
    for file in ("one/0000.png", "two/0000.png"):
        mask = np.asarray(Image.open(tmp_path / "masks" / file))
        values = {index.classes.labels.names.index(name): names.index(name) for name in names}
        assert (np.vectorize(values.get)(found[file]) == mask).all()


def test_the_tolerance_of_polygons(weights: Path, images: Path, tmp_path: Path, capsys) -> None:
    sizes = {}
    for tolerance in ("0", "1", "5"):
        output = tmp_path / tolerance
        main(command(weights, images, output, "--annotations=labelme", f"--tolerance={tolerance}"))
        sizes[tolerance] = (output / "labelme" / "0000.json").stat().st_size
    assert sizes["0"] > sizes["1"] > sizes["5"]
    main(command(weights, images, tmp_path / "0", "--annotations=labelme", "--tolerance=1"))
    assert segmented(capsys) == 2, "another tolerance is done anew"
    code, error = ends_with(command(weights, images, tmp_path / "x", "--tolerance=-1"), capsys)
    assert code in (1, 2) and "--tolerance" in error


# ---- videos


def write_video(path: Path, frames: int = 40, rate: float = 10, codec: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (160, 96))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(np.roll(draw_scene(5, 0, 96, 160)[0], 3 * number, 1)[:, :, ::-1])
    writer.release()
    return path


CODECS = {".avi": "MJPG", ".webm": "VP80", ".mkv": "mp4v", ".flv": "FLV1", ".ts": "mpg2", ".wmv": "WMV2"}


@pytest.mark.parametrize("suffix", CODECS)
def test_videos_of_every_kind_are_read(weights: Path, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / f"drive{suffix}", 12, codec=CODECS[suffix])
    main(command(weights, tmp_path / "in", tmp_path / "out"))
    assert rows(tmp_path / "out" / "areas.csv")[0]["note"] == "video of 12 frames"


@pytest.mark.parametrize("suffix", [".avi", ".webm", ".mkv", ".flv"])
@pytest.mark.parametrize("damage", ["cut", "hole"])
def test_damaged_videos_are_reported_after_what_can_be_read(
    weights: Path, tmp_path: Path, capsys, suffix: str, damage: str
) -> None:
    (tmp_path / "in").mkdir()
    file = write_video(tmp_path / "in" / f"drive{suffix}", codec=CODECS[suffix])
    data = bytearray(file.read_bytes())
    at, length = len(data) * 45 // 100, len(data) // 3
    file.write_bytes(data[:at] if damage == "cut" else data[:at] + bytes(length) + data[at + length :])
    code, _ = ends_with(command(weights, tmp_path / "in", tmp_path / "out"), capsys)
    (failure,) = rows(tmp_path / "out" / "failures.csv")
    assert code == 3 and failure["reason"].startswith("truncated or damaged: "), failure
    frames = rows(tmp_path / "out" / "videos" / "drive.csv")
    assert f" {len(frames)} of about" in failure["reason"] and 10 < len(frames) < 40
    capture = cv2.VideoCapture(str(tmp_path / "out" / "videos" / "drive.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == len(frames)
    assert rows(tmp_path / "out" / "areas.csv")[0]["note"] == failure["reason"]
    written = (tmp_path / "out" / "videos" / "drive.mp4").stat().st_mtime_ns
    code, _ = ends_with(command(weights, tmp_path / "in", tmp_path / "out"), capsys)
    assert code == 3 and (tmp_path / "out" / "videos" / "drive.mp4").stat().st_mtime_ns == written, "not done again"


@pytest.mark.parametrize("suffix", [".ts", ".wmv"])
def test_a_cut_that_no_number_of_frames_tells(weights: Path, tmp_path: Path, capsys, suffix: str) -> None:
    (tmp_path / "in").mkdir()
    file = write_video(tmp_path / "in" / f"drive{suffix}", codec=CODECS[suffix])
    main(command(weights, tmp_path / "in", tmp_path / "whole"))
    assert segmented(capsys) == 1
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 55 // 100 // 188 * 188 + 70])
    code, _ = ends_with(command(weights, tmp_path / "in", tmp_path / "out"), capsys)
    (failure,) = rows(tmp_path / "out" / "failures.csv")
    assert code == 3 and failure["reason"].startswith("truncated"), failure


def test_a_damaged_transport_stream_is_no_typescript(weights: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "in").mkdir()
    file = write_video(tmp_path / "in" / "drive.ts", codec="mpg2")
    file.write_bytes(bytes(400) + b"\1" * 3000)
    code, _ = ends_with(command(weights, tmp_path / "in", tmp_path / "out"), capsys)
    assert code == 3 and len(rows(tmp_path / "out" / "failures.csv")) == 1


def test_an_mp4_that_ends_before_its_index(weights: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "in").mkdir()
    file = write_video(tmp_path / "in" / "drive.mp4", codec="mp4v")
    file.write_bytes(file.read_bytes()[:-3000])
    (tmp_path / "in" / "text.mp4").write_bytes(b"no video at all" * 100)
    code, _ = ends_with(command(weights, tmp_path / "in", tmp_path / "out"), capsys)
    reasons = {Path(row["image"]).name: row["reason"] for row in rows(tmp_path / "out" / "failures.csv")}
    assert code == 3 and reasons["drive.mp4"] == "a truncated video: the index at its end is missing"
    assert reasons["text.mp4"] == "not a video that can be read here"


@pytest.mark.parametrize("rate", [211.222, 14.985014985, 59.94005994, 0.5, 333.333])
def test_odd_rates_still_give_an_overlay(weights: Path, tmp_path: Path, rate: float) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "drive.avi", 6, rate)
    main(command(weights, tmp_path / "in", tmp_path / "out"))
    capture = cv2.VideoCapture(str(tmp_path / "out" / "videos" / "drive.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(max(rate, 1) if rate < 1 else rate, rel=0.01, abs=0.6)
    table = rows(tmp_path / "out" / "videos" / "drive.csv")
    assert float(table[5]["seconds"]) == pytest.approx(5 / rate, rel=0.02, abs=0.001)


def element(identifier: str, content: bytes) -> bytes:
    """An element of Matroska, its length in eight bytes."""
    return bytes.fromhex(identifier) + (len(content) | 1 << 56).to_bytes(8, "big") + content


def number(identifier: str, value: int) -> bytes:
    return element(identifier, value.to_bytes(8, "big"))


def write_variable_rate(path: Path, times: list[int]) -> Path:
    """A Matroska file of JPEG frames that are shown at given milliseconds."""
    import struct

    head = element("1A45DFA3", number("4286", 1) + number("42F7", 1) + element("4282", b"matroska"))
    info = element("1549A966", number("2AD7B1", 1_000_000) + element("4489", struct.pack(">d", times[-1] + 40)))
    picture = element("E0", number("B0", 160) + number("BA", 96))
    track = number("D7", 1) + number("73C5", 1) + number("83", 1) + element("86", b"V_MJPEG") + picture
    frames = b""
    for at in times:
        ok, jpeg = cv2.imencode(".jpg", draw_scene(5, at % 7, 96, 160)[0])
        assert ok
        block = b"\x81" + struct.pack(">h", 0) + b"\x80" + jpeg.tobytes()
        frames += element("1F43B675", number("E7", at) + element("A3", block))
    path.write_bytes(head + element("18538067", info + element("1654AE6B", element("AE", track)) + frames))
    return path


def test_a_variable_rate_has_true_times(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    times = [0, 40, 80, 500, 540, 1500, 1540, 2900, 2960, 3000, 4700, 4740]
    write_variable_rate(tmp_path / "in" / "screen.mkv", times)
    main(command(weights, tmp_path / "in", tmp_path / "out"))
    table = rows(tmp_path / "out" / "videos" / "screen.csv")
    assert [round(1000 * float(row["seconds"])) for row in table] == times
    assert not rows(tmp_path / "out" / "failures.csv"), "gaps of a variable rate are no holes"


def test_frames_show_progress_and_the_codec_is_told(weights: Path, tmp_path: Path, capsys) -> None:
    from tiramisu.inference.video import has_h264

    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "drive.avi", 20)
    main(command(weights, tmp_path / "in", tmp_path / "out"))
    shown = capsys.readouterr().err
    assert "drive.avi" in shown and "/20" in shown and "frame" in shown
    assert ("browsers do not play" in shown) == (not has_h264())
