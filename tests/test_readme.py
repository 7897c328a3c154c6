"""Every command and snippet of the README runs, on small data."""

import inspect
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from lightning import Trainer
from PIL import Image
from safetensors.torch import save_file

import tiramisu.check_data
import tiramisu.evaluate
import tiramisu.export
import tiramisu.predict
import tiramisu.train
from tests.own_images import grey_index
from tiramisu.data.classes import read_classes
from tiramisu.data.datamodule import SegmentationDataModule
from tiramisu.data.streets import draw_scene
from tiramisu.models import SegmentationNetwork
from tiramisu.models.encoder_decoder import build_encoder
from tiramisu.training.task import SegmentationTask

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line for language, block in BLOCKS if not language for line in block.splitlines() if line.startswith("python -m ")
]

ONE_STEP = [
    "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1", "--trainer.check_val_every_n_epoch=1", "--trainer.enable_progress_bar=false",
    "--data.workers=0",
]  # fmt: skip
STREETS = ["--data.image_size=[64,64]", "--data.crop_size=32"]
SMALL_CROPS = ["--data.crop_size=32"]
PHASES = {"finetune": SMALL_CROPS, "repeat": SMALL_CROPS, "again": SMALL_CROPS, "whole": []}  # the last takes no crops


def small(command: str, camvid: Path) -> list[str]:
    """Options that make a command of the README fast; the rest of the command stays as it is written."""
    data = [f"--data.root={camvid}", "--data.crop_size=32"] if "camvid" in command else STREETS
    if "--print_config" in command or "--tune" in command:
        return []
    if "mine" in command and ".train" in command:
        # Where the README downloads weights, the test has some in a file.
        encoder = ["--model.network.encoder_weights=encoder.safetensors"] if "imagenet" in command else []
        return [*ONE_STEP, "--data.crop_size=32", *encoder]
    if ".check_data" in command:
        return ["--measure=false"]
    if ".train" in command:
        return [*ONE_STEP, *([] if "--resume" in command else data)]
    return ["--workers=0"] if ".evaluate" in command else []


MAINS: dict[str, Callable[[list[str]], None]] = {
    "tiramisu.check_data": tiramisu.check_data.main,
    "tiramisu.train": tiramisu.train.main,
    "tiramisu.evaluate": tiramisu.evaluate.main,
    "tiramisu.predict": tiramisu.predict.main,
    "tiramisu.export": tiramisu.export.main,
}


def run(command: str, camvid: Path) -> None:
    _, _, module, *args = shlex.split(command)
    MAINS[module]([*args, *small(command, camvid)])


def test_the_commands_of_the_readme_run_one_after_the_other(
    tmp_path: Path, shared_camvid_like: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # the shipped configurations must be found from anywhere
    assert len(COMMANDS) >= 8
    (tmp_path / "photos").mkdir()
    Image.fromarray(draw_scene(0, 0, 96, 128)[0]).save(tmp_path / "photos" / "street.jpg")
    grey_index(tmp_path / "mine", 8)
    save_file(build_encoder("resnet34", None, 3).state_dict(), tmp_path / "encoder.safetensors")
    for command in COMMANDS:
        if any(word in command for word in (".download", ".benchmark", "--executor ray", "--tune")):
            continue  # the tests of these run them, the download against a server on loopback
        try:
            run(command, shared_camvid_like)
        except SystemExit as ended:
            assert ended.code == 0 and "--print_config" in command, (command, capsys.readouterr().err)
    assert (tmp_path / "runs" / "quickstart" / "version_0" / "report.json").is_file()
    assert (tmp_path / "runs" / "camvid" / "version_0" / "report.json").is_file()
    assert (tmp_path / "runs" / "unet" / "version_0" / "report.json").is_file()
    snippets = [block for language, block in BLOCKS if language == "python"]
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})


@pytest.mark.parametrize(
    ("name", "layers", "later"),
    [
        ("camvid_paper", "1", {"finetune": []}),
        ("camvid_scratch", "1", PHASES),
        ("camvid", "[1,1,1,1,1,1]", PHASES),
    ],
)
def test_trainings_follow_one_another_as_the_configurations_say(
    name: str,
    layers: str,
    later: dict[str, list[str]],
    tmp_path: Path,
    shared_camvid_like: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [*ONE_STEP, f"--data.root={shared_camvid_like}"]
    tiny = [f"--model.network.layers_per_block={layers}", "--model.network.growth_rate=4"]
    tiramisu.train.main([f"--config=configs/{name}.yaml", *data, *tiny, "--data.crop_size=32"])
    for phase, smaller in later.items():
        text = (ROOT / "configs" / f"{name}_{phase}.yaml").read_text()
        command = re.search(r"#\s+(python -m tiramisu.train.*?\\)\n#\s+(.*)\n", text)
        assert command is not None
        words = shlex.split(command[1].rstrip("\\") + command[2])
        capsys.readouterr()
        tiramisu.train.main([*words[3:], *data, *tiny, *smaller])
        assert "Starting from" in capsys.readouterr().err
        assert (tmp_path / "runs" / f"{name}_{phase}" / "version_0" / "report.json").is_file()


def test_the_classes_of_the_readme_are_read(tmp_path: Path) -> None:
    (text,) = (block for language, block in BLOCKS if language == "yaml")
    (tmp_path / "classes.yaml").write_text(text)
    classes = read_classes(tmp_path / "classes.yaml")
    assert classes.labels.names == ("road", "car")
    assert [classes.values[value] for value in (7, 26, 27, 0, 255)] == [0, 1, 1, 255, 255]


def test_every_file_that_the_readme_names_exists() -> None:
    paths = set(re.findall(r"configs/\w+\.yaml|docs/\w+\.png|LICENSE", README))
    assert len(paths) > 3
    missing = [path for path in paths if not (ROOT / path).is_file()]
    assert not missing


CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_the_configurations_state_only_what_departs_from_the_defaults(path: Path) -> None:
    assert f"`configs/{path.name}`" in README, f"{path.name} is not in the README's table"
    beneath = set(re.findall(r"--config (configs/\w+\.yaml)", path.read_text())) - {f"configs/{path.name}"}
    stated_before = {key for name in beneath for stated, _ in _sections(ROOT / name) for key in stated}
    for stated, signature in _sections(path):
        defaults = inspect.signature(signature).parameters
        repeated = [
            key
            for key, value in stated.items()
            # a later training may go back to a default that an earlier one has left
            if key in defaults and defaults[key].default == value and key not in stated_before
        ]
        assert not repeated, f"{path.name} repeats the default of {repeated}"


def _sections(path: Path) -> list[tuple[dict[str, object], Callable[..., object]]]:
    """Return what a configuration states, beside what takes it."""
    config = yaml.safe_load(path.read_text())
    model = config.get("model", {})
    network = model.get("network", {})
    build = SegmentationNetwork.architectures[network.get("class_path", "FCDenseNet")]
    return [
        (config.get("data", {}), SegmentationDataModule),
        (model, SegmentationTask),
        (network.get("init_args", {}), build),
        (config["trainer"], Trainer),
    ]
