import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiramisu.evaluate import main
from tiramisu.export import main as export
from tiramisu.inference.evaluation import use_batch_statistics
from tiramisu.labels import LabelSet
from tiramisu.models import FCDenseNet, load_network

SMALL = {"layers_per_block": 1, "growth_rate": 4, "num_poolings": 2, "stem_channels": 8}


def _evaluate(run: Path, root: Path, output: Path, *more: str) -> dict:
    fixed = ["--precision=fp32", "--workers=0", f"--output={output}"]
    main([f"--weights={run / 'model'}", f"--data.root={root}", *fixed, *more])
    return json.loads((output / "evaluation.json").read_text())


def test_agrees_with_the_report_of_training(
    trained_run: Path, shared_camvid_like: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = _evaluate(trained_run, shared_camvid_like, tmp_path, "--data.split=test")
    report = json.loads((trained_run / "report.json").read_text())
    assert result["confusion"] == report["confusion"]
    table = capsys.readouterr().out
    assert f"{100 * report['metrics']['mean_iou']:.1f}" in table.split("mIoU")[1].splitlines()[0]


def test_writes_numbers_and_pictures(trained_run: Path, shared_camvid_like: Path, tmp_path: Path) -> None:
    result = _evaluate(trained_run, shared_camvid_like, tmp_path)
    assert result["split"] == "val" and result["images"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {
        "evaluation.json",
        "confusion_matrix.png",
        "worst.png",
    }
    assert np.asarray(Image.open(tmp_path / "worst.png")).std() > 10


@pytest.mark.parametrize("options", [["--tta=flip"], ["--tta=multiscale"], ["--bn=batch"]])
def test_options_change_the_numbers_a_little(
    trained_run: Path, shared_camvid_like: Path, tmp_path: Path, options: list[str]
) -> None:
    plain = _evaluate(trained_run, shared_camvid_like, tmp_path / "plain")
    other = _evaluate(trained_run, shared_camvid_like, tmp_path / "other", *options)
    assert other["confusion"] != plain["confusion"]
    assert np.sum(other["confusion"]) == np.sum(plain["confusion"]), "the same pixels are scored"


def test_streets_need_no_folder(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        [
            f"--weights={trained_run / 'model'}",
            "--data.dataset=streets",
            "--data.image_size=[48,64]",
            "--workers=0",
        ]
    )
    assert "mIoU" in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--tta=flip"], ["--tta=multiscale"]])
def test_the_command_runs_on_real_images(
    trained_run: Path, real_camvid: Path, tmp_path: Path, options: list[str]
) -> None:
    root = tmp_path / "camvid"
    for folder in ("val", "valannot"):
        (root / folder).mkdir(parents=True)
        for file in sorted((real_camvid / folder).iterdir())[:3]:
            (root / folder / file.name).symlink_to(file)
    result = _evaluate(trained_run, root, tmp_path / "out", *options)
    assert result["images"] == 3 and 0 <= result["mean_iou"] <= 1


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_other_engines_measure_the_same(
    trained_run: Path, shared_camvid_like: Path, tmp_path: Path, engine: str
) -> None:
    plain = _evaluate(trained_run, shared_camvid_like, tmp_path / "plain")
    other = _evaluate(trained_run, shared_camvid_like, tmp_path / "other", f"--engine={engine}")
    assert abs(other["mean_iou"] - plain["mean_iou"]) < 0.005 and engine in other["engine"].lower().replace(" ", "")


def test_batch_statistics_equal_training_mode_without_dropout() -> None:
    network = FCDenseNet(num_classes=4, **SMALL, dropout=0.0)
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        expected = network.train()(images)
        network.eval()
        assert not torch.allclose(network(images), expected, atol=1e-3)
        use_batch_statistics(network)
        torch.testing.assert_close(network(images), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights=nowhere"], ["nowhere", "folder"]),
        (["--data.root=nowhere"], ["nowhere", "tiramisu.download"]),
        (["--data.split=dev"], ["split", "dev"]),
        (["--tta=all"], ["tta", "all"]),
        (["--batch_size=0"], ["batch_size"]),
        (["--device=tpu"], ["--device tpu"]),
        (["--engine=openvino", "--device=cuda"], ["openvino", "cuda"]),
        (["--engine=openvino", "--bn=batch"], ["--bn batch", "torch"]),
        (["--output=/dev/null/x"], ["/dev/null"]),
        (["--wat=1"], ["wat"]),
        (["--workers=-2"], ["workers", "-2"]),
        (["--data.dataset=streets", "--data.image_size=[-1,10]"], ["image_size"]),
    ],
)
def test_mistakes_are_told_in_one_line(
    trained_run: Path,
    shared_camvid_like: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: list[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(
            [
                f"--weights={trained_run / 'model'}",
                f"--data.root={shared_camvid_like}",
                "--workers=0",
                *options,
            ]
        )
    assert ended.value.code not in (0, None)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("tiramisu.evaluate: error: ") and all(word in message for word in words), message


def test_weights_with_other_classes_are_refused(
    tmp_path: Path, shared_camvid_like: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = FCDenseNet(num_classes=2, **SMALL)
    network.labels = LabelSet(("cat", "dog"), ((1, 1, 1), (2, 2, 2)), 255)
    network.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit):
        main([f"--weights={tmp_path / 'model'}", "--data.dataset=camvid", f"--data.root={shared_camvid_like}"])
    assert "cat, dog" in capsys.readouterr().err


# ---- weights and data of every pair of data sets, whose void has different values


NAMES = ("Sky", "Building", "Pole", "Road", "Sidewalk", "Tree", "Sign", "Fence", "Car", "Pedestrian", "Bicyclist")


def _folder_of(camvid: Path, root: Path, order: tuple[str, ...] = NAMES, drop: int | None = None) -> Path:
    """The same images as a folder of one's own: void is 255, classes in another order perhaps."""
    table = np.full(256, 255, np.uint8)
    for index, name in enumerate(NAMES):
        table[index] = order.index(name) if name in order and index != drop else 255
    for split in ("train", "val", "test"):
        (root / split / "images").mkdir(parents=True)
        (root / split / "masks").mkdir(parents=True)
        for file in (camvid / split).iterdir():
            shutil.copy(file, root / split / "images")
            mask = np.asarray(Image.open(camvid / f"{split}annot" / file.name)).copy()
            Image.fromarray(table[mask]).save(root / split / "masks" / file.name)
    (root / "classes.txt").write_text("\n".join(order))
    return root


def _with_void(camvid: Path, root: Path) -> Path:
    """A copy whose masks have void pixels."""
    shutil.copytree(camvid, root)
    for folder in ("trainannot", "valannot", "testannot"):
        for file in (root / folder).iterdir():
            mask = np.asarray(Image.open(file)).copy()
            mask[:6] = 11
            Image.fromarray(mask).save(file)
    return root


@pytest.fixture(scope="module")
def sets(shared_camvid_like: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    root = tmp_path_factory.mktemp("sets")
    camvid = _with_void(shared_camvid_like, root / "camvid")
    folder = _folder_of(camvid, root / "folder")
    return {
        "camvid": ["--data.dataset=camvid", f"--data.root={camvid}"],
        "folder": ["--data.dataset=folder", f"--data.root={folder}"],
        "streets": ["--data.dataset=streets", "--data.image_size=[48,64]"],
    }


def _weights_with_void(run: Path, target: Path, ignore_index: int, order: tuple[str, ...] = NAMES) -> Path:
    network = load_network(run / "model")
    labels = network.labels
    assert labels is not None
    network.labels = LabelSet(order, labels.palette, ignore_index)
    network.save_pretrained(target)
    return target


@pytest.mark.parametrize("trained", ["camvid", "folder", "streets"])
@pytest.mark.parametrize("measured", ["camvid", "folder", "streets"])
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_void_is_matched_to_void(
    trained_run: Path, sets: dict[str, list[str]], tmp_path: Path, capsys, trained: str, measured: str, command: str
) -> None:
    weights = _weights_with_void(trained_run, tmp_path / "model", 255 if trained == "folder" else 11)
    if command == "export":
        if measured == "streets":
            pytest.skip("80 scenes for a comparison that the other two make")
        export([f"--weights={weights}", "--format=onnx", f"--output={tmp_path / 'model.onnx'}", *sets[measured]])
        assert "Loss of mIoU" in capsys.readouterr().out
        return
    output = tmp_path / "scores"
    main([f"--weights={weights}", "--precision=fp32", "--workers=0", f"--output={output}", *sets[measured]])
    confusion = np.array(json.loads((output / "evaluation.json").read_text())["confusion"])
    same = _weights_with_void(trained_run, tmp_path / "same", 255 if measured == "folder" else 11)
    again = tmp_path / "same_scores"
    main([f"--weights={same}", "--precision=fp32", "--workers=0", f"--output={again}", *sets[measured]])
    expected = np.array(json.loads((again / "evaluation.json").read_text())["confusion"])
    np.testing.assert_array_equal(confusion, expected)
    if measured != "streets":
        camvid = Path(sets["camvid"][1].partition("=")[2])
        truth = np.stack([np.asarray(Image.open(file)) for file in (camvid / "valannot").iterdir()])
        assert confusion.sum() == (truth != 11).sum() <= truth.size - 3 * 6 * 64, "void is not scored"


def test_labels_are_matched_by_name(trained_run: Path, sets: dict[str, list[str]], tmp_path: Path, capsys) -> None:
    camvid = Path(sets["camvid"][1].partition("=")[2])
    weights = trained_run / "model"

    def scores(options: list[str], name: str) -> dict:
        fixed = [f"--weights={weights}", "--precision=fp32", "--workers=0", f"--output={tmp_path / name}"]
        main([*fixed, *options])
        return json.loads((tmp_path / name / "evaluation.json").read_text())

    expected = scores(sets["camvid"], "plain")
    capsys.readouterr()
    turned = _folder_of(camvid, tmp_path / "turned", tuple(reversed(NAMES)))
    assert scores(["--data.dataset=folder", f"--data.root={turned}"], "other order")["iou"] == expected["iou"]
    assert "in another order: they are matched by name" in capsys.readouterr().err
    fewer = _folder_of(camvid, tmp_path / "fewer", tuple(name for name in NAMES if name != "Fence"))
    found = scores(["--data.dataset=folder", f"--data.root={fewer}"], "fewer classes")
    assert found["iou"]["Fence"] is None and found["iou"]["Sky"] is not None
    assert "do not have Fence: these classes are not scored" in capsys.readouterr().err
    more = _folder_of(camvid, tmp_path / "more", (*NAMES, "Camel"))
    with pytest.raises(SystemExit):
        scores(["--data.dataset=folder", f"--data.root={more}"], "more classes")
    assert "the data have Camel, which the weights do not know" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["evaluation.json", "confusion_matrix.png", "worst.png"])
def test_a_report_overwrites_nobody_elses_file(
    trained_run: Path, shared_camvid_like: Path, tmp_path: Path, capsys, name: str
) -> None:
    (tmp_path / name).write_bytes(b"somebody else's")
    with pytest.raises(SystemExit):
        _evaluate(trained_run, shared_camvid_like, tmp_path)
    assert f"{tmp_path / name} already exists and was not written by tiramisu" in capsys.readouterr().err
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"somebody else's"]
    (tmp_path / name).unlink()
    for _ in range(2):
        _evaluate(trained_run, shared_camvid_like, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": ["camvid"]}, {"dataset": "folder", "folder": {"layout": 3, "val_share": "x", "groups": 5}},
        {"dataset": "folder", "folder": {"groups": "("}}, {"dataset": "streets", "resolution": ["a", None]},
        {"dataset": "streets", "resolution": [10**9, 10**9], "whole_views": True},
    ],
)  # fmt: skip
def test_what_weights_say_of_their_training_is_data(
    trained_run: Path, shared_camvid_like: Path, tmp_path: Path, capsys, changes: dict
) -> None:
    shutil.copytree(trained_run / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["protocol"] |= changes
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    try:
        main([f"--weights={tmp_path / 'model'}", f"--data.root={shared_camvid_like}", "--workers=0"])
    except SystemExit as ended:
        assert ended.code in (1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_a_root_is_never_passed_over(trained_run: Path, tmp_path: Path, capsys) -> None:
    """Weights of drawn scenes with --data.root would be measured on drawn scenes, and the folder not looked at."""
    shutil.copytree(trained_run / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["protocol"]["dataset"] = "streets"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine" / "images").mkdir(parents=True)
    for weights, words in (
        (tmp_path / "model", "streets are drawn and need no --data.root"),
        (trained_run / "model", "for images and masks of your own add --data.dataset folder"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([f"--weights={weights}", f"--data.root={tmp_path / 'mine'}", "--workers=0"])
        assert ended.value.code == 1 and words in capsys.readouterr().err
