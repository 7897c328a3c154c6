"""Weights that others send: whatever is wrong with them is told in one line when they are opened."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import tiramisu.evaluate
import tiramisu.export
import tiramisu.train
from tiramisu.data.streets import draw_scene
from tiramisu.export import main as export
from tiramisu.inference import Segmenter
from tiramisu.models import EncoderFCDenseNet, SmpNetwork, load_network
from tiramisu.predict import main as predict

from .conftest import TrainArgs

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(draw_scene(5, 0, 48, 64)[0]).save(file)
    return file


@pytest.fixture
def weights(trained_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_run / "model", tmp_path / "model")
    return tmp_path / "model"


def refusal(command, args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        command(args)
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code in (1, 2) and ": error: " in lines[-1] and "Traceback" not in "\n".join(lines), lines
    return lines[-1]


def tensors(change: Callable[[dict[str, Any]], None]) -> Damage:
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return damage


def config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            *groups, last = name.split("__")
            target = values
            for group in groups:
                target = target[group]
            target[last] = value
        (folder / "config.json").write_text(json.dumps(values))

    return damage


def text(content: str) -> Damage:
    return lambda folder: (folder / "config.json").write_text(content) and None


def set_value(name: str, value: float) -> Damage:
    def change(state: dict[str, Any]) -> None:
        full = next(key for key in state if key.endswith(name))
        state[full] = state[full].copy()
        state[full].reshape(-1)[0] = value

    return tensors(change)


def endless(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return damage


NAMES = ["Sky", "Building", "Pole", "Road", "Sidewalk", "Tree", "Sign", "Fence", "Car", "Pedestrian", "Sky"]
CASES: dict[str, tuple[Damage, str]] = {
    "NaN": (set_value(".weight", np.nan), "weight holds NaN"),
    "infinite": (set_value("running_mean", np.inf), "running_mean holds NaN"),
    "zero deviation": (set_value("std", 0), "std, by which images are divided, is not positive"),
    "negative variance": (set_value("running_var", -1), "is negative"),
    "too few labels": (config(labels__names=NAMES[:3], labels__palette=[[0, 0, 0]] * 3), "3 class names, but"),
    "names and colours": (config(labels__names=NAMES[:3]), "3 class names but 11 colours"),
    "same name twice": (config(labels__names=NAMES), "the class name Sky is there twice"),
    "names as text": (config(labels__names="SkyRoadTree"), "names and palette must be lists"),
    "names as numbers": (config(labels__names=list(range(11))), "is no printable text"),
    "palette": (config(labels__palette=[[0, 0, 300]] * 11), "is no colour"),
    "palette of texts": (config(labels__palette=["red"] * 11), "is no colour"),
    "void is a class": (config(labels__ignore_index=3), "ignore_index 3"),
    "void is large": (config(labels__ignore_index=10**30), "ignore_index"),
    "surrogates": (config(labels__names=["\ud800", *NAMES[:10]]), "surrogates"),
    "control characters": (config(labels__names=["a\nb", *NAMES[:10]]), "is no printable text"),
    "no labels": (config(labels=None), "the classes are not described"),
    "1e9 classes": (config(num_classes=10**9), "num_classes 1000000000 is not from 1 to 255"),
    "negative classes": (config(num_classes=-1), "num_classes -1"),
    "classes as text": (config(num_classes="many"), "num_classes many"),
    "1e6 layers": (config(layers_per_block=10**6), "layers_per_block 1000000 is larger"),
    "many layers": (config(layers_per_block=[900] * 11, num_poolings=None), "9,900 layers"),
    "wide": (config(growth_rate=10**7), "growth_rate 10000000 is larger"),
    "rather wide": (config(growth_rate=1000), "another architecture"),
    "stem": (config(stem_channels=10**9), "stem_channels"),
    "poolings": (config(num_poolings=400), "layers"),
    "negative": (config(growth_rate=-4), "growth_rate"),
    "channels": (config(in_channels=10**9), "in_channels"),
    "unknown option": (config(secret=1), "secret"),
    "option of another type": (config(layers_per_block={"a": 1}), "does not describe"),
    "deep JSON": (text('{"a":' * 100_000), "nested too deeply"),
    "NaN in JSON": (text('{"dropout": NaN}'), "NaN is no number"),
    "a list": (text("[1]"), "does not describe a network"),
    "gigabytes": (text(" " * (17 << 20)), "larger than the limit of 16 MiB"),
    "whole numbers": (
        tensors(lambda state: state.update({"stem.weight": state["stem.weight"].astype(np.int64)})),
        "stem.weight is of the type I64",
    ),
    "no name": (config(labels__names=["", *NAMES[:10]]), "the name of class 0 is empty"),
    "endless name": (config(labels__names=["x" * 10**6, *NAMES[:10]]), "longer than 200 characters"),
    "digits": (text('{"num_classes": ' + "9" * 5000 + "}"), "a number has too many digits"),
    "protocol": (config(protocol=[1]), "protocol is no mapping"),
    "architecture": (config(architecture=["x"]), "does not describe"),
    "endless config": (endless("config.json"), "no weights in"),
    "endless tensors": (endless("model.safetensors"), "no weights in"),
    "no tensors": (lambda folder: save_file({}, folder / "model.safetensors"), "holds no tensors"),
    "cut short": (lambda folder: os.truncate(folder / "model.safetensors", 3000), "not a readable safetensors"),
    "a header of gigabytes": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 7 + b"\0" + b"{}") and None,
        "not a readable safetensors",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_damaged_or_hostile_weights_are_told_in_one_line(
    weights: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    damage, words = CASES[case]
    damage(weights)
    for engine in ("openvino", "torch"):
        args = [str(photo), f"--output={tmp_path / engine}", f"--weights={weights}", f"--engine={engine}"]
        message = refusal(predict, args, capsys)
        assert words in message and str(weights) in message, message
        assert not list((tmp_path / engine).glob("*.png"))


@pytest.mark.parametrize("case", ["NaN", "1e6 layers", "same name twice", "deep JSON"])
def test_training_and_evaluation_check_weights_too(
    train_args: TrainArgs, weights: Path, shared_camvid_like: Path, capsys, case: str
) -> None:
    damage, words = CASES[case]
    damage(weights)
    assert words in refusal(tiramisu.train.main, train_args(f"--model.init={weights}"), capsys)
    evaluate = [f"--weights={weights}", f"--data.root={shared_camvid_like}", "--workers=0"]
    assert words in refusal(tiramisu.evaluate.main, evaluate, capsys)


def test_an_empty_name_is_no_name(photo: Path, tmp_path: Path, shared_camvid_like: Path, capsys, train_args) -> None:
    commands = [
        (predict, [str(photo), f"--output={tmp_path / 'masks'}"]),
        (tiramisu.evaluate.main, [f"--data.root={shared_camvid_like}"]),
        (export, ["--format=onnx", f"--output={tmp_path / 'm.onnx'}"]),
    ]
    for command, args in commands:
        assert "is empty" in refusal(command, [*args, "--weights="], capsys)
    assert "is empty" in refusal(tiramisu.train.main, train_args("--model.init="), capsys)


@pytest.mark.parametrize("name", ["/dev/zero", "zero.onnx", "pipe.xml"])
def test_weights_that_never_end(photo: Path, tmp_path: Path, capsys, name: str) -> None:
    path = Path(name) if name.startswith("/") else tmp_path / name
    if name == "zero.onnx":
        path.symlink_to("/dev/zero")
    elif name == "pipe.xml":
        os.mkfifo(path)
    message = refusal(predict, [str(photo), f"--output={tmp_path / 'masks'}", f"--weights={path}"], capsys)
    assert f"{path} is no regular file" in message


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_weights_never_reach_for_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch)
    monkeypatch.setattr("tiramisu.models.encoder_decoder.PACKAGES", {})
    small = {"layers_per_block": (1, 1, 1, 1, 1), "growth_rate": 4}
    networks = {"encoder": EncoderFCDenseNet(3, "resnet18", **small), "encoder_name": SmpNetwork(3, "unet", "resnet18")}
    for option, network in networks.items():
        network.save_pretrained(tmp_path / option)
        config(encoder_weights="imagenet")(tmp_path / option)
        assert type(load_network(tmp_path / option)) is type(network)
        assert type(network).from_pretrained(tmp_path / option).num_classes == 3
        for name in ("tu-hf-hub:somebody/body", "tu-local-dir:/tmp", "../x"):
            config(**{option: name})(tmp_path / option)
            with pytest.raises(Exception, match="name of a hub or a path"):
                load_network(tmp_path / option)


# ---- graphs

CARD_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "grid 0": ({"grid": 0}, "its grid 0 is no whole number"),
    "min_size as text": ({"min_size": "a"}, "its min_size 'a'"),
    "min_size": ({"min_size": 10**9}, "its min_size 1000000000"),
    "true": ({"grid": True}, "its grid True"),
    "channels": ({"channels": 4}, "does not fit images of 4 channels"),
    "too few labels": ({"labels": {"names": ["a"], "palette": [[0, 0, 0]], "ignore_index": 255,
                                   "ignore_color": [0, 0, 0]}}, "does not fit its 1 classes"),
    "labels": ({"labels": {"names": ["a", "a"]}}, "does not name its classes"),
    "protocol": ({"protocol": 3}, "its protocol is no mapping"),
    "another key": ({"more": 3}, "does not name its classes"),
}  # fmt: skip


@pytest.fixture(scope="module")
def graphs(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    for kind, output in (("onnx", folder / "model.onnx"), ("openvino", folder / "openvino")):
        export([f"--weights={trained_run / 'model'}", f"--format={kind}", f"--output={output}"])
    return {"onnx": folder / "model.onnx", "openvino": folder / "openvino"}


def with_card(graphs: dict[str, Path], kind: str, target: Path, change: Callable[[str], str]) -> Path:
    """A copy of a graph that says something else of itself."""
    if kind == "onnx":
        model = onnx.load(graphs[kind])
        card = model.metadata_props[0].value
        onnx.helper.set_model_props(model, {"tiramisu": change(card)})
        onnx.save(model, target / "model.onnx")
        return target / "model.onnx"
    from tiramisu.inference.openvino_engine import import_openvino, openvino_core

    model = openvino_core().read_model(graphs[kind] / "model.xml")
    model.set_rt_info(change(str(model.get_rt_info(["tiramisu"]).astype(str))), ["tiramisu"])
    import_openvino().save_model(model, target / "openvino" / "model.xml")
    return target / "openvino"


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize("case", CARD_CASES)
def test_what_graphs_say_of_themselves_is_checked(
    graphs: dict[str, Path], photo: Path, tmp_path: Path, capsys, kind: str, case: str
) -> None:
    changes, words = CARD_CASES[case]
    path = with_card(graphs, kind, tmp_path, lambda text: json.dumps({**json.loads(text), **changes}))
    message = refusal(predict, [str(photo), f"--output={tmp_path / 'masks'}", f"--weights={path}"], capsys)
    assert words in message and str(tmp_path) in message, message


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize(("card", "words"), [('{"a":' * 50_000, "nested too deeply"), ("{", "does not describe"),
                                             ("", "does not name its classes")])  # fmt: skip
def test_model_info_that_is_no_json(
    graphs, photo: Path, tmp_path: Path, capsys, kind: str, card: str, words: str
) -> None:
    path = with_card(graphs, kind, tmp_path, lambda _: card)
    assert words in refusal(predict, [str(photo), f"--output={tmp_path / 'masks'}", f"--weights={path}"], capsys)


def test_a_graph_that_computes_nan_is_refused(graphs: dict[str, Path], photo: Path, tmp_path: Path, capsys) -> None:
    model = onnx.load(graphs["onnx"])
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[:] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "nan.onnx")
    message = refusal(predict, [str(photo), f"--output={tmp_path}", f"--weights={tmp_path / 'nan.onnx'}"], capsys)
    assert "computes NaN or infinite values" in message


def test_intact_weights_open_as_before(weights: Path, graphs: dict[str, Path]) -> None:
    image = draw_scene(5, 0, 48, 64)[0]
    expected = Segmenter.load(weights, engine="torch", precision="fp32")(image).mask
    for path in graphs.values():
        assert np.mean(Segmenter.load(path, precision="fp32")(image).mask == expected) > 0.99
