"""`tiramisu.predict --executor ray` on a Ray cluster of several nodes on this machine."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.odd_images import write_odd_folder
from tests.test_predict import contents, rows, write_scenes
from tiramisu.predict import main

pytestmark = [pytest.mark.slow]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A head that does no work itself, and two nodes."""
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent.parent)]))
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    yield cluster
    cluster.shutdown()


def test_a_cluster_writes_what_one_machine_writes_though_a_node_dies(
    cluster, trained_run: Path, tmp_path: Path
) -> None:
    images = write_scenes(tmp_path / "images", 300, (160, 208))
    options = [str(images), f"--weights={trained_run / 'model'}", "--overlay", "--annotations=coco"]
    main([*options, f"--output={tmp_path / 'one'}"])

    def kill_in_the_middle() -> None:
        while len(list((tmp_path / "many").glob("*.png"))) < 40:
            time.sleep(0.02)
        cluster.remove_node(cluster.nodes[0], allow_graceful=False)
        killed.append(len(list((tmp_path / "many").glob("*.png"))))

    killed: list[int] = []
    thread = threading.Thread(target=kill_in_the_middle, daemon=True)
    thread.start()
    main([*options, f"--output={tmp_path / 'many'}", "--executor=ray", f"--ray_address={cluster.address}"])
    thread.join(timeout=5)
    assert killed and killed[0] < 300, "the node died in the middle"
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_uris_and_bad_images(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write_odd_folder(tmp_path / "odd")
    target = f"file://{tmp_path / 'masks'}"
    options = [f"file://{tmp_path / 'odd'}", f"--output={target}", f"--weights={trained_run / 'model'}"]
    for skipped in (False, True):
        with pytest.raises(SystemExit) as ended:
            main([*options, "--executor=ray"])
        assert ended.value.code == 3
        assert (f"{good} were done already" in capsys.readouterr().out) == skipped
    assert len(rows(tmp_path / "masks" / "areas.csv")) == good
    assert len(rows(tmp_path / "masks" / "failures.csv")) == bad
    assert len(list((tmp_path / "masks").rglob("*.png"))) == good
    assert not list((tmp_path / "masks").rglob("*part"))


def test_a_cluster_that_was_killed_is_not_waited_for(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # a short name: Ray puts sockets there
        monkeypatch.setenv("RAY_TMPDIR", folder)
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")  # what a killed one leaves
        images = write_scenes(tmp_path / "images", 2)
        options = [f"--output={tmp_path / 'masks'}", f"--weights={trained_run / 'model'}", "--executor=ray"]
        main([str(images), *options])
    assert len(rows(tmp_path / "masks" / "areas.csv")) == 2


def test_files_that_are_no_results_are_never_overwritten(trained_run: Path, tmp_path: Path, capsys) -> None:
    images = write_scenes(tmp_path / "d", 2)
    before = contents(images)
    with pytest.raises(SystemExit) as ended:
        main([str(images / "0000.png"), f"--output={images}", f"--weights={trained_run / 'model'}", "--executor=ray"])
    assert ended.value.code == 3 and "was not written by tiramisu" in capsys.readouterr().err
    assert before.items() <= contents(images).items()


def test_a_cluster_that_is_not_there_is_told(trained_run: Path, tmp_path: Path, capsys) -> None:
    images = write_scenes(tmp_path / "images", 1)
    with pytest.raises(SystemExit):
        main([
            str(images), f"--output={tmp_path / 'masks'}", f"--weights={trained_run / 'model'}",
            "--executor=ray", "--ray_address=127.0.0.1:1",
        ])  # fmt: skip
    assert "--ray_address 127.0.0.1:1: no Ray cluster there" in capsys.readouterr().err
