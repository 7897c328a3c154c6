import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiramisu
from tiramisu.data.streets import Streets, draw_scene
from tiramisu.errors import ConfigError, WeightsError
from tiramisu.images import decode_image
from tiramisu.inference.engines import open_engine
from tiramisu.inference.segmenter import Options, Segmenter, argmax, enlarge_by_strips, entropy, resize_maps
from tiramisu.inference.torch_engine import inference_precision
from tiramisu.models import FCDenseNet, load_network

SCENE = draw_scene(1, 0, 72, 100)[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network whose receptive field is small too, with statistics that fit the scenes."""
    torch.manual_seed(0)
    network = FCDenseNet(11, layers_per_block=1, num_poolings=2, growth_rate=8, stem_channels=8, dropout=0.2)
    scenes = torch.from_numpy(np.stack([draw_scene(1, n, 72, 100)[0] for n in range(4)])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        for _ in range(30):
            network.train()(scenes)
    network.labels = Streets.labels
    folder = tmp_path_factory.mktemp("weights")
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter(weights: Path) -> Segmenter:
    return Segmenter(open_engine(weights, "torch", "cpu", "fp32"))


def test_a_mask_is_the_argmax_of_the_network(weights: Path, segmenter: Segmenter) -> None:
    result = segmenter(SCENE)
    with torch.no_grad():
        logits = load_network(weights)(torch.from_numpy(SCENE).permute(2, 0, 1)[None] / 255)
    assert result.mask.dtype == np.uint8
    np.testing.assert_array_equal(result.mask, logits.argmax(1)[0].numpy())
    assert abs(sum(result.areas.values()) - 1) < 1e-9 and list(result.areas) == list(Streets.labels.names)
    assert result.probabilities is None and result.uncertainty is None


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_engines_give_the_same_masks(weights: Path, segmenter: Segmenter, engine: str) -> None:
    other = Segmenter(open_engine(weights, engine, "cpu", "fp32"))
    for image in (SCENE, SCENE[:33, :47], np.tile(SCENE, (2, 2, 1))):
        assert np.mean(other(image).mask == segmenter(image).mask) >= 0.995
    assert other.labels == segmenter.labels


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_engines_agree_on_real_images(trained_run: Path, real_camvid: Path, engine: str) -> None:
    reference = Segmenter(open_engine(trained_run / "model", "torch", "cpu", "fp32"))
    other = Segmenter(open_engine(trained_run / "model", engine))
    for file in sorted((real_camvid / "val").iterdir())[:3]:
        image = decode_image(file).pixels
        assert np.mean(other(image).mask == reference(image).mask) >= 0.995


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (31, 33), (72, 99)])
def test_any_size_is_segmented(segmenter: Segmenter, size: tuple[int, int]) -> None:
    image = np.resize(SCENE, (*size, 3))
    assert segmenter(image).mask.shape == size


def test_tiles_equal_the_whole(weights: Path) -> None:
    engine = open_engine(weights, "torch", "cpu", "fp32")
    image = draw_scene(1, 5, 300, 420)[0]
    wanted = Options(probabilities=True, uncertainty="entropy")
    whole = Segmenter(engine, tile=500, overlap=96)(image, wanted)
    tiled = Segmenter(engine, tile=160, overlap=96)(image, wanted)
    np.testing.assert_allclose(tiled.probabilities, whole.probabilities, atol=1e-4)
    np.testing.assert_allclose(tiled.uncertainty, whole.uncertainty, atol=1e-3)
    assert np.mean(tiled.mask == whole.mask) > 0.9999
    assert np.mean(Segmenter(engine, tile=160, overlap=96)(image).mask == whole.mask) > 0.9999


@pytest.fixture(scope="module")
def street_segmenter(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """The same network, whose weights say that they were trained on whole views of 72 x 100 pixels."""
    network = load_network(weights)
    network.protocol = {"resolution": [72, 100], "whole_views": True}
    folder = tmp_path_factory.mktemp("street")
    network.save_pretrained(folder)
    return Segmenter(open_engine(folder, "torch", "cpu", "fp32"), tile=160, overlap=96)


@pytest.mark.parametrize("options", [{}, {"tta": "flip", "probabilities": True}, {"uncertainty": "mc-dropout"}])
def test_larger_photos_are_seen_at_the_size_of_training(street_segmenter: Segmenter, options: dict[str, Any]) -> None:
    photo = SCENE.repeat(5, 0).repeat(5, 1)
    small, large = street_segmenter(SCENE, Options(**options)), street_segmenter(photo, Options(**options))
    assert large.mask.shape == (360, 500)
    assert np.mean(large.mask[2::5, 2::5] == small.mask) > 0.999
    if large.probabilities is not None:
        np.testing.assert_allclose(large.probabilities.sum(0), 1, atol=1e-4)
        assert np.mean(large.probabilities.argmax(0) == large.mask) == 1
    if large.uncertainty is not None:
        assert large.uncertainty.shape == (360, 500)
    tiled = street_segmenter(photo, Options(**options, fit=False))
    assert np.mean(tiled.mask[2::5, 2::5] == small.mask) < 0.9
    assert (
        street_segmenter.count_pieces(360, 500, Options())
        == 1
        < street_segmenter.count_pieces(360, 500, Options(fit=False))
    )


def test_photos_of_about_the_size_of_training_are_seen_as_they_are(street_segmenter: Segmenter) -> None:
    photo = draw_scene(1, 3, 90, 125)[0]
    np.testing.assert_array_equal(street_segmenter(photo).mask, street_segmenter(photo, Options(fit=False)).mask)


def test_maps_are_enlarged_in_strips_as_in_one_piece() -> None:
    maps = np.random.default_rng(0).random((3, 40, 50), np.float32)
    whole = resize_maps(maps, 700, 333)
    for rows, columns, strip in enlarge_by_strips(maps, 700, 333):
        np.testing.assert_allclose(strip, whole[:, rows, columns], atol=0.04)  # warpAffine's 1/32 of a pixel


def test_flipping_makes_results_symmetric(segmenter: Segmenter) -> None:
    wanted = Options(tta="flip", probabilities=True)
    result, mirrored = segmenter(SCENE, wanted), segmenter(SCENE[:, ::-1], wanted)
    np.testing.assert_allclose(result.probabilities, mirrored.probabilities[..., ::-1], atol=1e-5)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)


def test_multiscale_averages_probabilities(segmenter: Segmenter) -> None:
    result = segmenter(SCENE, Options(tta="multiscale", probabilities=True))
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    plain = segmenter(SCENE, Options(probabilities=True))
    assert 0.001 < np.abs(result.probabilities - plain.probabilities).mean() < 0.2


def test_uncertainty(segmenter: Segmenter) -> None:
    certain, even = np.zeros((4, 1, 1), np.float32), np.full((4, 1, 1), 0.25, np.float32)
    certain[2] = 1
    assert entropy(certain) == pytest.approx(0, abs=1e-6) and entropy(even) == pytest.approx(1)
    result = segmenter(SCENE, Options(uncertainty="entropy"))
    assert result.uncertainty.shape == SCENE.shape[:2] and 0 <= result.uncertainty.min() < result.uncertainty.max() <= 1


def test_mc_dropout_is_repeatable_and_leaves_the_network_alone(segmenter: Segmenter) -> None:
    before = segmenter(SCENE, Options(probabilities=True)).probabilities
    buffers = {name: value.clone() for name, value in segmenter.engine.network.named_buffers()}
    state = torch.get_rng_state()
    wanted = Options(uncertainty="mc-dropout", passes=6)
    first, second = segmenter(SCENE, wanted), segmenter(SCENE, wanted)
    np.testing.assert_array_equal(first.uncertainty, second.uncertainty)
    assert first.uncertainty.max() > 0.001
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in segmenter.engine.network.named_buffers():
        assert torch.equal(value, buffers[name]), name
    np.testing.assert_array_equal(segmenter(SCENE, Options(probabilities=True)).probabilities, before)


def test_batches_hold_images_of_several_sizes(segmenter: Segmenter) -> None:
    images = [SCENE, SCENE[:40], SCENE[::-1], SCENE[:40, :50]]
    for image, result in zip(images, segmenter.batch(images), strict=True):
        np.testing.assert_array_equal(result.mask, segmenter(image).mask)


@pytest.mark.parametrize("engine", ["torch", "openvino", "onnxruntime"])
def test_threads_do_not_mix_images(weights: Path, engine: str) -> None:
    shared = Segmenter(open_engine(weights, engine, "cpu", "fp32"))
    images = [draw_scene(1, number, 64, 64 + 8 * (number % 3))[0] for number in range(12)]
    expected = [shared(image).mask for image in images]
    results: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda n=n: results.__setitem__(n, shared(images[n]).mask)) for n in range(len(images))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, mask in enumerate(expected):
        np.testing.assert_array_equal(results[number], mask)


def test_argmax_takes_the_first_of_equals() -> None:
    scores = np.random.default_rng(0).integers(0, 4, (7, 30, 40)).astype(np.float32)
    np.testing.assert_array_equal(argmax(scores), scores.argmax(0))


def test_device_and_engine_are_said_once(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = Segmenter.load(weights)
    loaded(SCENE)
    assert capsys.readouterr().err.count("Segmenting with OpenVINO, cpu") == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"\(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
    ],
)
def test_other_arrays_are_refused(segmenter: Segmenter, image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmenter(image)


def test_what_an_engine_cannot_do_is_told(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mc-dropout"):
        Segmenter(open_engine(weights, "openvino"))(SCENE, Options(uncertainty="mc-dropout"))
    with pytest.raises(ConfigError, match="bf16"):
        open_engine(weights, "onnxruntime", precision="bf16")
    with pytest.raises(WeightsError, match="no weights"):
        open_engine(tmp_path)
    (tmp_path / "alien.onnx").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"alien\.onnx"):
        open_engine(tmp_path / "alien.onnx")
    (tmp_path / "alien.xml").write_text("<net/>")
    with pytest.raises(WeightsError, match=r"alien\.xml"):
        open_engine(tmp_path / "alien.xml")


def test_a_cached_graph_follows_the_weights(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_engine(weights, "openvino")
    capsys.readouterr()
    open_engine(weights, "openvino")
    assert "Preparing" not in capsys.readouterr().err, "the second time it comes from the cache"
    network = load_network(weights)
    torch.nn.init.zeros_(network.classifier[0].weight)
    network.save_pretrained(tmp_path / "other")
    assert (open_engine(tmp_path / "other", "openvino").logits(SCENE[None]).std(axis=(2, 3)) < 1e-3).all()


def test_a_cached_graph_follows_the_code(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    open_engine(weights, "openvino")
    newer = tmp_path / "tiramisu"
    shutil.copytree(Path(tiramisu.__file__).parent, newer, ignore=shutil.ignore_patterns("weights"))
    with (newer / "models" / "blocks.py").open("a") as file:
        file.write("# computes something else\n")
    monkeypatch.setattr(tiramisu, "__file__", str(newer / "__init__.py"))
    capsys.readouterr()
    open_engine(weights, "openvino")
    assert "Preparing" in capsys.readouterr().err


def test_gpus_without_bf16_compute_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert inference_precision(torch.device("cuda")) == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert inference_precision(torch.device("cuda")) == torch.bfloat16


SIGNAL_AFTER_A_DROPPED_ENGINE = """
import signal, subprocess, sys, threading
from tiramisu.inference import Segmenter

signal.signal(signal.SIGCHLD, lambda *_: None)
kept = [Segmenter.load(sys.argv[1], engine="openvino")]
thread = threading.Thread(target=kept.clear)
thread.start()
thread.join()
for _ in range(5):
    subprocess.run([sys.executable, "-c", ""], check=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="this system has no such signal")
def test_signals_are_safe_after_an_engine_was_dropped_in_another_thread(trained_run: Path) -> None:
    command = [sys.executable, "-c", SIGNAL_AFTER_A_DROPPED_ENGINE, str(trained_run / "model")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
