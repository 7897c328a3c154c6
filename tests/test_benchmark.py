import json
import re
import shlex
from pathlib import Path

import pytest

from tiramisu.benchmark import main
from tiramisu.benchmarking.contenders import Contender, Process
from tiramisu.benchmarking.timing import race, relative
from tiramisu.errors import TiramisuError

README = (Path(__file__).parent.parent / "README.md").read_text()
TINY = ["--size=[64,64]", "--batch=1", "--rounds=2", "--warmup=0"]


def documented(task: str) -> list[str]:
    """The arguments of the README's command, made fast."""
    (line,) = re.findall(rf"^python -m tiramisu\.benchmark {task}.*$", README, re.MULTILINE)
    return [*shlex.split(line)[3:], *TINY]


@pytest.mark.slow
def test_prints_every_contender_with_its_ratio_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    main([*documented("train"), "--smp=[unet/resnet18]"])
    table = capsys.readouterr().out.splitlines()
    assert "training step, 1 x 64 x 64" in table[0] and "ratio to textbook" in table[1] and "peak memory" in table[1]
    names = [line[:22].strip() for line in table[2:]]
    assert names == ["tiramisu", "textbook", "unet/resnet18", "textbook as it comes"]


@pytest.mark.slow
def test_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    main([*documented("infer"), "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["timings"]}
    assert len(rows["tiramisu"]["seconds"]) == 2 and rows["tiramisu"]["memory"] > 0
    assert rows["textbook"]["ratio"] == rows["textbook"]["memory_ratio"] == 1.0
    assert "tiramisu, twice the pixels" in rows


@pytest.mark.slow
def test_prediction_is_measured_on_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    main([*documented("predict"), "--variant=56", "--json"])
    measured = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    names = [row["name"] for row in measured["timings"]]
    assert names == [
        "openvino",
        "torch",
        "onnxruntime",
        "openvino-int8",
        "camvid",
        "camvid-scratch",
        "textbook as it comes",
    ]
    assert measured["sizes"]["FC-DenseNet56"]["parameters"] == 1_376_795 and "camvid" in measured["sizes"]
    assert measured["folder"]["ratio"] > 0.1 and measured["start"]["seconds"] > 0


def test_a_contender_that_fails_says_why() -> None:
    contender = Contender("odd one", "nonsense/resnet18", 56, "infer", 1, (64, 64))
    with Process(contender) as process, pytest.raises(TiramisuError, match="odd one: no such baseline"):
        process.wait()


def test_ratios_are_taken_round_by_round() -> None:
    fast, slow = iter([9.0, 1.0, 6.0]), iter([9.0, 2.0, 4.0])
    seconds = race({"fast": lambda: next(fast), "slow": lambda: next(slow)}, rounds=2, warmup=1)
    assert seconds == {"fast": (1.0, 6.0), "slow": (2.0, 4.0)}
    assert relative(seconds["fast"], seconds["slow"]) == (1.0, (0.5, 1.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--rounds=0"], "--rounds"), (["--size=[16,64]"], "--size"), (["--warmup=-1"], "--warmup")],
)
def test_mistakes_are_told_in_one_line(options, message, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", *TINY, *options])
    error = capsys.readouterr().err.strip()
    assert error.startswith("tiramisu.benchmark: error: ") and message in error and "\n" not in error
