"""The shipped weights, and what their cards say of them."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.test_readme import MAINS
from tiramisu.benchmarking.predicting import measure_size
from tiramisu.data.camvid import CamVid
from tiramisu.data.streets import draw_scene
from tiramisu.errors import WeightsError
from tiramisu.inference import Segmenter
from tiramisu.inference.engines import graph_beside
from tiramisu.models import fc_densenet103, load_network
from tiramisu.weights import ALIASES, SHIPPED, default_weights, find_weights, shipped_weights

NAMES = list(shipped_weights())
CARDS = {name: (SHIPPED / name / "README.md").read_text() for name in NAMES}
ROW = re.compile(r"^\| [^|]+ \| (?P<miou>[\d.]+) \| (?P<accuracy>[\d.]+) \| (?P<how>[^|]+) \|$", re.MULTILINE)
ENGINE_ROW = re.compile(r"^\| (?P<engine>torch|OpenVINO), [^|]+ \| (?P<miou>[\d.]+) \|$", re.MULTILINE)


class Figure(NamedTuple):
    """A row of a card: what it says, and the command that measures it."""

    miou: float
    accuracy: float
    command: str

    def measure(self, camvid: Path, capsys: pytest.CaptureFixture[str]) -> tuple[float, float]:
        """Run the command; return mIoU and global accuracy in percent."""
        module, *options = self.command.removeprefix("python -m ").replace("data/camvid", str(camvid)).split()
        MAINS[module](options)
        printed = capsys.readouterr().out
        found = [re.search(rf"^{title} +([\d.]+)$", printed, re.MULTILINE) for title in ("mIoU", "Global accuracy")]
        assert all(found), printed
        miou, accuracy = (float(value[1]) for value in found if value)
        return miou, accuracy


def read_figures(name: str) -> list[Figure]:
    """Return the rows of a card's tables; `the same with` goes back to the last whole command."""
    figures, whole = [], ""
    for row in ROW.finditer(CARDS[name]):
        told = re.search(r"`([^`]+)`", row["how"])
        assert told is not None, row[0]
        whole = told[1] if told[1].startswith("python") else whole
        command = whole if whole == told[1] else f"{whole} {told[1]}"
        figures.append(Figure(float(row["miou"]), float(row["accuracy"]), command))
    return figures


FIGURES = {name: read_figures(name) for name in NAMES}


def test_camvid_is_shipped_and_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"camvid", "camvid-scratch", "camvid-fast"} <= {*NAMES, *ALIASES}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camvid").mkdir()  # of images, perhaps
    assert default_weights() == find_weights("camvid") == SHIPPED / "camvid"
    assert find_weights("./camvid") == Path("camvid")
    with pytest.raises(WeightsError, match="perhaps you mean camvid-scratch"):
        find_weights("CamVid_Scratch")
    with pytest.raises(WeightsError, match="no Path"):
        find_weights(Path("camvid-scratch"))
    for alias, name in ALIASES.items():
        assert find_weights(alias) == SHIPPED / name


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_path_is_no_name(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_run / "model", "camvid")
    image = draw_scene(0, 0, 64, 96)[0]
    mine = Segmenter.load(trained_run / "model", engine=engine).engine.logits(image[None])
    for path in ("./camvid", Path("camvid")):
        assert np.array_equal(Segmenter.load(path, engine=engine).engine.logits(image[None]), mine)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_are_small_and_say_what_they_are(name: str) -> None:
    file = SHIPPED / name / "model.safetensors"
    assert file.stat().st_size <= 20e6
    sizes = {tensor.dtype.itemsize for tensor in load_file(file).values() if tensor.ndim > 1 and tensor.shape[0] > 1}
    assert sizes == {2}
    network = load_network(SHIPPED / name)
    assert network.labels == CamVid.labels and network.protocol["dataset"] == "camvid"
    config = json.loads((SHIPPED / name / "config.json").read_text())
    assert Segmenter.load(name, engine="torch").view == (360, 480)
    metrics = config["protocol"]["metrics"]
    assert metrics["split"] == "val"
    assert 100 * metrics["mean_iou"] == pytest.approx(FIGURES[name][0].miou, abs=0.3)
    assert "/" not in json.dumps(config["protocol"].get("recipe", "")), "a recipe's name, no path"
    for word in ("CC BY-NC 4.0", "## Limits", "## Recipe", "leave-one-drive-out", "--tta", "--bn batch"):
        assert word in CARDS[name], word


def test_camvid_fast_costs_at_most_a_quarter_of_the_papers_network() -> None:
    paper = measure_size(fc_densenet103(block="reference"), (360, 480))
    assert paper.multiply_accumulates == pytest.approx(69.1e9, rel=0.01)
    fast = measure_size(load_network("camvid-fast"), (360, 480))
    assert fast.multiply_accumulates <= paper.multiply_accumulates / 4
    assert f"{fast.parameters / 1e6:.1f} million parameters" in CARDS["camvid"]
    assert f"{fast.multiply_accumulates / 1e9:.1f} G" in CARDS["camvid"]


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_the_cards_are_understood(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = re.findall(r"python -m (tiramisu\.\w+) ([^`\n]+)", CARDS[name])
    named = {"tiramisu.train", "tiramisu.evaluate", "tiramisu.export", "tiramisu.benchmark", "tiramisu.download"}
    assert {module for module, _ in commands} == named
    monkeypatch.chdir(tmp_path)
    for module, options in commands:
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(module).main([*shlex.split(options), "--print_config"])
        assert ended.value.code == 0, options


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_segment_what_they_have_never_seen(name: str) -> None:
    image, mask = draw_scene(0, 0, 180, 240)
    found = Segmenter.load(name)(image).mask
    assert np.mean(found[mask == 3] == 3) > 0.5, "roads are found even in drawings"


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_open_without_torch_and_without_a_cache(name: str, tmp_path: Path) -> None:
    lines = (
        "import sys",
        "from tiramisu.inference import Segmenter",
        "Segmenter.load(sys.argv[1], device='cpu')",
        "assert 'torch' not in sys.modules",
    )
    subprocess.run(
        [sys.executable, "-c", "\n".join(lines), name], check=True, env={**os.environ, "TIRAMISU_CACHE": str(tmp_path)}
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(96, 128), (117, 154)])
def test_the_graphs_of_shipped_weights_compute_what_torch_computes(name: str, size: tuple[int, int]) -> None:
    image = draw_scene(0, 0, *size)[0]
    (graph,) = (SHIPPED / name).glob("*.onnx")
    assert graph == graph_beside(SHIPPED / name)
    found, expected = (
        Segmenter.load(name, engine=engine, precision="fp32").engine.logits(image[None])
        for engine in ("openvino", "torch")
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_cards_figures_are_reproduced(name: str, real_camvid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = FIGURES[name][0]
    assert figure.measure(real_camvid, capsys) == pytest.approx((figure.miou, figure.accuracy), abs=0.3)


@pytest.mark.figures
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "number"), [(name, number) for name in NAMES for number in range(len(FIGURES[name]))])
def test_every_figure_is_reproduced(
    name: str, number: int, real_camvid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = FIGURES[name][number]
    weights = re.search(r"--weights (\S+)", figure.command)
    if weights is not None and weights[1].startswith("runs/") and not Path(weights[1]).is_dir():
        pytest.skip(f"{weights[1]} has not been trained here")
    assert figure.measure(real_camvid, capsys) == pytest.approx((figure.miou, figure.accuracy), abs=0.1)


@pytest.mark.figures
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_every_engine_loses_what_the_card_says(
    name: str, real_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch, *others = ENGINE_ROW.finditer(CARDS[name])
    commands = re.findall(r"^python -m tiramisu.export (.+openvino.+)$", CARDS[name], re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    for row, command in zip(others, commands, strict=True):
        MAINS["tiramisu.export"](command.replace("data/camvid", str(real_camvid)).split())
        measured = re.findall(r"mIoU ([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
        assert list(map(float, measured)) == pytest.approx([float(torch["miou"]), float(row["miou"])], abs=0.1)
