import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiramisu.data import CamVid
from tiramisu.errors import WeightsError
from tiramisu.models import FCDenseNet, SmpNetwork, load_network

SMALL = {"layers_per_block": 1, "growth_rate": 4, "num_poolings": 2, "stem_channels": 8}
PROTOCOL = {"dataset": "camvid", "resolution": [360, 480], "metrics": {"split": "test", "mean_iou": None}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    network = FCDenseNet(num_classes=11, **SMALL, mean=[0.4, 0.5, 0.6])
    network.labels, network.protocol = CamVid.labels, PROTOCOL
    network.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip_keeps_weights_labels_and_protocol(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1, "who may read one file may read all"
    network = load_network(saved)
    assert not network.training
    assert network.labels == CamVid.labels
    assert network.protocol == PROTOCOL
    stored = load_file(saved / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in network.state_dict().items())
    again = FCDenseNet.from_pretrained(saved)
    images = torch.rand(1, 3, 40, 40)
    assert torch.equal(again(images), network(images))
    config = json.loads((saved / "config.json").read_text())
    assert config["architecture"] == "FCDenseNet"
    assert config["labels"]["ignore_index"] == 11
    assert len(config["labels"]["palette"]) == 11


def test_saving_again_replaces_files_and_leaves_nothing_else(saved: Path) -> None:
    network = load_network(saved)
    network.protocol = {"dataset": "streets"}
    network.save_pretrained(saved)
    assert load_network(saved).protocol == {"dataset": "streets"}
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_half_precision_weights_load_into_float32(saved: Path, tmp_path: Path) -> None:
    network = load_network(saved)
    network.half().save_pretrained(tmp_path / "half")
    assert load_network(tmp_path / "half").stem.weight.dtype == torch.float32


def _remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"stem.weight": [1.0]}))


def _other_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "growth_rate": 5}))


def _unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "Pavlova"}))


def _broken_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_weights, "no weights in"),
        (_truncate, "not a readable safetensors"),
        (_pickle, "not a readable safetensors"),
        (_other_architecture, "another architecture"),
        (_unknown_architecture, "Pavlova"),
        (_broken_json, "does not describe"),
        (_no_config, r"no config\.json"),
    ],
)
def test_damaged_weights_are_refused(saved: Path, damage, message: str) -> None:
    damage(saved)
    with pytest.raises(WeightsError, match=message) as caught:
        load_network(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("arch", "encoder"), [("unet", "resnet18"), ("fpn", "resnet18"), ("segformer", "mit_b0")])
def test_smp_baseline_keeps_the_same_contract(tmp_path: Path, arch: str, encoder: str) -> None:
    """The last one computes with its tensors while it is built."""
    network = SmpNetwork(5, arch, encoder).eval()
    images = torch.rand(1, 3, 45, 67)
    logits = network(images)
    assert logits.shape == (1, 5, 45, 67)
    network.save_pretrained(tmp_path / "baseline")
    assert torch.equal(load_network(tmp_path / "baseline")(images), logits)


def test_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match="no such baseline"):
        SmpNetwork(5, "unet", "resnet1800")
