import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiramisu.evaluate import main
from tiramisu.inference.evaluation import use_batch_statistics
from tiramisu.models import FCDenseNet

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
    from tiramisu.labels import LabelSet

    network = FCDenseNet(num_classes=2, **SMALL)
    network.labels = LabelSet(("cat", "dog"), ((1, 1, 1), (2, 2, 2)), 255)
    network.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit):
        main([f"--weights={tmp_path / 'model'}", "--data.dataset=camvid", f"--data.root={shared_camvid_like}"])
    assert "cat, dog" in capsys.readouterr().err
