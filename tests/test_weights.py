"""The shipped weights, and what their cards say of them."""

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.test_readme import MAINS
from tiramisu.benchmarking.predicting import measure_size
from tiramisu.data.camvid import CamVid
from tiramisu.data.streets import draw_scene
from tiramisu.errors import WeightsError
from tiramisu.inference import Segmenter
from tiramisu.models import fc_densenet103, load_network
from tiramisu.weights import ALIASES, SHIPPED, default_weights, find_weights, shipped_weights

NAMES = list(shipped_weights())
CARDS = {name: (SHIPPED / name / "README.md").read_text() for name in NAMES}
ROW = re.compile(r"^\| val \| (?P<miou>[\d.]+) \| (?P<accuracy>[\d.]+) \| `(?P<command>[^`]+)` \|$", re.MULTILINE)


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
    row = ROW.search(CARDS[name])
    assert row is not None and metrics["split"] == "val"
    assert 100 * metrics["mean_iou"] == pytest.approx(float(row["miou"]), abs=0.3)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_cards_figures_are_reproduced(name: str, real_camvid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = ROW.search(CARDS[name])
    assert row is not None
    module, *options = row["command"].removeprefix("python -m ").replace("data/camvid", str(real_camvid)).split()
    MAINS[module](options)
    printed = capsys.readouterr().out
    for title, figure in (("mIoU", row["miou"]), ("Global accuracy", row["accuracy"])):
        value = re.search(rf"^{title} +([\d.]+)$", printed, re.MULTILINE)
        assert value is not None and float(value[1]) == pytest.approx(float(figure), abs=0.3), title
