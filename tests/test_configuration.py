"""What others send is data: run folders and configurations that would run code, write elsewhere, or never end."""

import importlib.metadata
import shutil
import sys
from pathlib import Path

import pytest
import yaml

import tiramisu.evaluate
from tiramisu.train import main

from .conftest import TrainArgs


def refusal(args: list[str], capsys: pytest.CaptureFixture[str], run=main) -> str:
    """Run a command that must end with one line; return the line."""
    with pytest.raises(SystemExit) as ended:
        run(args)
    assert ended.value.code in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert "error: " in lines[-1] and not any("Traceback" in line for line in lines), lines
    return lines[-1]


@pytest.fixture
def received(trained_run: Path, tmp_path: Path) -> Path:
    """A run folder that somebody has sent."""
    folder = tmp_path / "runs" / "tiny" / "version_0"
    shutil.copytree(trained_run, folder)
    return folder


def change(run: Path, **changes: object) -> None:
    """Change options of a run's configuration, such as model__network."""
    values = yaml.safe_load((run / "config.yaml").read_text())
    for name, value in changes.items():
        *groups, last = name.split("__")
        target = values
        for group in groups:
            target = target[group]
        target[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(values))


HOSTILE = {
    "os.system": {"class_path": "os.system", "init_args": {"command": "touch {marker}"}},
    "subprocess.run": {"class_path": "subprocess.run", "init_args": {"args": ["touch", "{marker}"]}},
    "torch.os.system": {"class_path": "torch.os.system", "init_args": {"command": "touch {marker}"}},
    "pathlib.Path.touch": "pathlib.Path.touch",
    "torch.hub.load": {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": "{marker}", "model": "x"}},
    "evil_network.Net": {"class_path": "evil_network.Net"},
}


def filled(value: object, marker: Path) -> object:
    return yaml.safe_load(yaml.safe_dump(value).replace("{marker}", str(marker)))


@pytest.mark.parametrize("way", ["resume", "last", "config"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_received_network_is_not_run(
    received: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, way: str, name: str
) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "evil_network.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    change(received, model__network=filled(HOSTILE[name], marker))
    args = {
        "resume": [f"--resume={received}"],
        "last": ["--resume=last", f"--runs={tmp_path / 'runs'}"],
        "config": [f"--config={received / 'config.yaml'}", f"--runs={tmp_path / 'other'}"],
    }[way]
    message = refusal(args, capsys)
    assert name.removeprefix("torch.os").removeprefix(".") in message or "is not run" in message, message
    assert not marker.exists() and "evil_network" not in sys.modules
    if name != "evil_network.Net":
        refusal([*args, "--trust"], capsys)
        assert not marker.exists()
    else:
        assert "add --trust" in message


@pytest.mark.parametrize("option", ["callbacks", "logger", "plugins", "profiler", "strategy"])
def test_other_received_classes_are_not_run(
    received: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "executed"
    hostile = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", marker.name]}}
    change(received, **{f"trainer__{option}": [hostile] if option in ("callbacks", "logger", "plugins") else hostile})
    assert "subprocess.Popen" in refusal([f"--resume={received}"], capsys)
    assert not marker.exists()


def test_a_function_as_an_argument_is_not_run(received: Path, tmp_path: Path, capsys) -> None:
    path = "lightning.pytorch.callbacks.LambdaCallback"
    change(received, trainer__callbacks=[{"class_path": path, "init_args": {"on_exception": "os.system"}}])
    assert "os.system is not run" in refusal([f"--resume={received}"], capsys)


OWN_NETWORK = """
from tiramisu.models import FCDenseNet
class OwnNet(FCDenseNet):
    pass
class NoNetwork:
    pass
def build(classes: int) -> FCDenseNet:
    raise AssertionError("a function is not called")
"""


def test_a_network_of_the_users_own_needs_to_be_named_or_trusted(
    train_args: TrainArgs, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_network.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    args = train_args("--trainer.max_epochs=1")
    named = ["--model.network=own_network.OwnNet", *(arg for arg in args if arg.startswith("--model.network."))]
    plain = [arg for arg in args if not arg.startswith("--model.network.")]
    main([*plain, *named])
    run = tmp_path / "runs" / "tiny" / "version_0"
    assert "own_network.OwnNet" in (run / "config.yaml").read_text()
    assert "add --trust" in refusal([f"--resume={run}", "--trainer.max_epochs=2"], capsys)
    main([f"--resume={run}", "--trainer.max_epochs=2", "--trust"])
    assert "trust: false" in (run / "config.yaml").read_text()
    main([f"--resume={run}", "--trainer.max_epochs=3", "--model.network=own_network.OwnNet"])
    for wrong in ("own_network.NoNetwork", "own_network.build"):
        assert wrong in refusal([*plain, f"--model.network={wrong}"], capsys)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainer__devices": 100_000}, "starts 100000 processes"),
        ({"trainer__default_root_dir": "/etc"}, "trainer.default_root_dir: /etc"),
        ({"trainer__logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "."}}}, "save_dir: ."),
        ({"trainer__logger": {"class_path": "lightning.pytorch.loggers.WandbLogger"}}, "sends what it logs"),
        ({"trainer__logger": {"class_path": "MLFlowLogger"}}, "sends what it logs"),
        ({"trainer__logger": "WandbLogger"}, "sends what it logs"),
        ({"trainer__logger": [{"class_path": "CometLogger"}]}, "sends what it logs"),
        (
            {"trainer__callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "../elsewhere"}}]},
            "dirpath: ../elsewhere",
        ),
        (
            {"model__network": {"class_path": "SmpNetwork", "init_args": {"encoder_name": "tu-hf-hub:some/body"}}},
            "fetches a model from a hub",
        ),
        ({"model": "other.yaml"}, "reads another one"),
    ],
)
def test_the_rest_of_a_received_configuration_is_looked_at(
    received: Path, capsys, changes: dict[str, object], words: str
) -> None:
    change(received, **changes)
    message = refusal([f"--resume={received}"], capsys)
    assert words in message and "add --trust" in message, message


def bomb() -> str:
    lines = ["a: &a [1,1,1,1,1,1,1,1,1]"]
    lines += [f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(8)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bomb(), "stands for more than 100,000 values"),
        ("[" * 5000, "nested too deeply"),
        ("a: &a [*a]", "must not contain itself"),
        ("x: " + "y" * (5 << 20), "larger than the limit of 1 MiB"),
        ("name: [", "is no configuration"),
        ("config: /etc/passwd", "names another configuration"),
    ],
)
@pytest.mark.parametrize("command", [main, tiramisu.evaluate.main])
def test_hostile_configurations_end_at_once(tmp_path: Path, capsys, command, content: str, words: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    assert words in refusal([f"--config={file}"], capsys, command)


@pytest.mark.parametrize("option", ["--config", "--model", "--data", "--trainer", "--model.network"])
def test_a_configuration_that_never_ends_is_refused(capsys, option: str) -> None:
    assert "/dev/zero: not a regular file" in refusal([f"{option}=/dev/zero"], capsys)


def test_an_installed_entry_point_is_registered(
    train_args: TrainArgs, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugin_network.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "own.yaml"
    config.write_text("name: own\nmodel:\n  network: plugin_network.OwnNet\n")
    print_config = [f"--config={config}", "--print_config"]
    assert "plugin_network.OwnNet comes from another package" in refusal(print_config, capsys)
    entry = importlib.metadata.EntryPoint("own", "plugin_network:OwnNet", "tiramisu.networks")
    found = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata, "entry_points",
        lambda **chosen: [entry] if chosen.get("group") == entry.group else found(**chosen),
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(print_config)
    assert ended.value.code == 0 and "plugin_network.OwnNet" in capsys.readouterr().out
