"""`tiramisu.export`, called as users call it, and its graphs in the engines that they are for."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tiramisu.data.streets import draw_scene
from tiramisu.export import main
from tiramisu.inference import graphs
from tiramisu.inference.graphs import import_openvino
from tiramisu.inference.segmenter import Segmenter
from tiramisu.models.baseline import SmpNetwork

SCENE = draw_scene(4, 0, 75, 110)[0]
OUTPUTS = {"onnx": "model.onnx", "openvino": "folder", "openvino-int8": "folder", "float16": "folder"}


def export(run: Path, kind: str, output: Path, *more: str) -> None:
    main([f"--weights={run / 'model'}", f"--format={kind}", f"--output={output}", *more])


@pytest.mark.parametrize("kind", OUTPUTS)
def test_exports_are_checked_and_segment_images_of_any_size(
    trained_run: Path, shared_camvid_like: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    output = tmp_path / "deep" / OUTPUTS[kind]
    photos = tmp_path / "photos"
    shutil.copytree(shared_camvid_like / "train", photos)
    (photos / "0000.png").write_bytes(b"broken")
    more = [f"--calibration={photos}"] if kind == "openvino-int8" else []
    export(trained_run, kind, output, *more, f"--data.root={shared_camvid_like}")
    printed = capsys.readouterr().out
    assert "Checked against torch" in printed and "Loss of mIoU" in printed and f"Exported: {output}" in printed
    assert abs(float(printed.split("Loss of mIoU: ")[1].split()[0])) < 2
    if kind == "float16":
        assert printed.count("torch, cpu, float32") == 2, "what halving costs, nothing else"
    exported, reference = Segmenter.load(output), Segmenter.load(trained_run / "model", engine="torch")
    for image in (SCENE, SCENE[:40, :50], np.tile(SCENE, (2, 1, 1))):
        assert np.mean(exported(image).mask == reference(image).mask) > (0.9 if "int8" in kind else 0.99)
    assert exported.labels == reference.labels
    batch = exported.engine.logits(np.stack([SCENE, SCENE[::-1], SCENE]))
    assert batch.shape == (3, 11, 75, 110)


def test_graphs_explain_themselves_without_tiramisu(trained_run: Path, tmp_path: Path) -> None:
    export(trained_run, "onnx", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert images.type == "tensor(uint8)" and images.shape == ["batch", "height", "width", 3]
    assert logits.shape[1] == 11 and logits.name == "logits"
    card = json.loads(session.get_modelmeta().custom_metadata_map["tiramisu"])
    assert card["labels"]["names"][0] == "Sky" and card["labels"]["palette"][0] == [128, 128, 128]
    export(trained_run, "openvino", tmp_path / "graph")
    model = import_openvino().Core().read_model(tmp_path / "graph" / "model.xml")
    assert model.inputs[0].get_element_type().get_type_name() == "u8" and model.inputs[0].any_name == "images"


def test_halved_weights_bring_their_graph(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "weights"
    monkeypatch.setenv("TIRAMISU_CACHE", str(cache))
    export(trained_run, "float16", folder)
    expected = Segmenter.load(folder, engine="torch", precision="fp32").engine.logits(SCENE[None])
    (graph,) = folder.glob("graph-*.onnx")
    for engine in ("openvino", "onnxruntime"):
        opened = Segmenter.load(folder, engine=engine, precision="fp32")
        np.testing.assert_allclose(opened.engine.logits(SCENE[None]), expected, atol=1e-3)
        assert opened.labels == Segmenter.load(folder, engine="torch").labels
    assert not cache.exists() and "Preparing" not in capsys.readouterr().err

    linked = tmp_path / "linked"  # as the Hugging Face hub keeps files
    linked.mkdir()
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file)
    found = Segmenter.load(linked, engine="openvino", precision="fp32").engine.logits(SCENE[None])
    np.testing.assert_allclose(found, expected, atol=0.1)

    complete = graph.read_bytes()
    graph.write_bytes(complete[:1000])
    found = Segmenter.load(folder, engine="openvino", precision="fp32").engine.logits(SCENE[None])
    np.testing.assert_allclose(found, expected, atol=0.1)
    said = capsys.readouterr().err
    assert cache.exists() and f"{graph} cannot be opened" in said and "Preparing" in said, "a damaged one is made again"
    graph.write_bytes(complete)

    config = json.loads((folder / "config.json").read_text())
    config["protocol"]["recipe"] = "another"
    (folder / "config.json").write_text(json.dumps(config))
    assert Segmenter.load(folder, engine="openvino").engine.card.protocol["recipe"] == "another"
    graph.rename(folder / "graph-1-ffffffffffff.onnx")
    export(trained_run, "float16", folder)
    assert list(folder.glob("graph-*.onnx")) == [graph], "those of weights that were here before are gone"


@pytest.mark.parametrize("reason", ["without onnx", "no such operation"])
def test_weights_that_cannot_have_a_graph_are_halved_without(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    run = trained_run
    if reason == "without onnx":
        monkeypatch.setattr(graphs, "is_installed", lambda package: False)
    else:
        run = tmp_path
        SmpNetwork(11, "pspnet", "resnet18").save_pretrained(run / "model")
        with pytest.raises(SystemExit):
            export(run, "onnx", tmp_path / "model.onnx")
        assert "SmpNetwork cannot be written as ONNX" in capsys.readouterr().err.splitlines()[-1]
    export(run, "float16", tmp_path / "half")
    assert "No graph lies beside these weights" in capsys.readouterr().err
    assert {file.name for file in (tmp_path / "half").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert Segmenter.load(tmp_path / "half", engine="openvino")(SCENE).mask.shape == SCENE.shape[:2]


@pytest.mark.parametrize(("first", "second"), [("float16", "openvino"), ("openvino", "float16")])
def test_weights_and_graphs_do_not_share_a_folder(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], first: str, second: str
) -> None:
    export(trained_run, first, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(SystemExit) as ended:
        export(trained_run, second, tmp_path / "out")
    assert ended.value.code == 1 and "give another folder" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format=onnx", "--output={tmp}/model"], ".onnx"),
        (["--format=openvino", "--output={tmp}/model.onnx"], ".onnx"),
        (["--format=openvino-int8", "--output={tmp}/x"], "--calibration"),
        (["--format=openvino-int8", "--output={tmp}/x", "--calibration={tmp}"], "no images"),
        (
            ["--format=tflite", "--output={tmp}/x"],
            "one of 'onnx', 'openvino', 'openvino-int8', 'float16'.",
        ),
        (["--format=onnx", "--output={tmp}/m.onnx", "--weights=nowhere"], "nowhere"),
        (["--format=openvino", "--output=/dev/null/x"], "/dev/null"),
    ],
)
def test_mistakes_are_told_in_one_line(trained_run: Path, tmp_path: Path, capsys, options, words) -> None:
    with pytest.raises(SystemExit) as ended:
        main([f"--weights={trained_run / 'model'}", *(option.format(tmp=tmp_path) for option in options)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code in (1, 2) and error.startswith("tiramisu.export: error: ") and words in error
    assert not list(tmp_path.iterdir()), "nothing half-made stays"
