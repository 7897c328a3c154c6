import json

import pytest

from tiramisu.benchmark import main
from tiramisu.benchmarking.timing import race, relative

TINY = ["--variant=56", "--size=[64,64]", "--batch=1", "--rounds=2", "--warmup=0"]


def test_prints_every_contender_with_its_ratio_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", *TINY, "--smp=[unet/resnet18]", "--rounds=1"])
    table = capsys.readouterr().out.splitlines()
    assert "training step, 1 x 64 x 64" in table[0] and "ratio to textbook" in table[1] and "peak memory" in table[1]
    names = [line[:22].strip() for line in table[2:]]
    assert names == ["tiramisu", "textbook", "unet/resnet18", "textbook as it comes"]


def test_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["infer", *TINY, "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["timings"]}
    assert len(rows["tiramisu"]["seconds"]) == 2
    assert rows["textbook"]["ratio"] == 1.0
    assert "tiramisu, twice the pixels" in rows


def test_ratios_are_taken_round_by_round() -> None:
    fast, slow = iter([9.0, 1.0, 6.0]), iter([9.0, 2.0, 4.0])
    seconds = race({"fast": lambda: next(fast), "slow": lambda: next(slow)}, rounds=2, warmup=1)
    assert seconds == {"fast": (1.0, 6.0), "slow": (2.0, 4.0)}
    assert relative(seconds["fast"], seconds["slow"]) == (1.0, (0.5, 1.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--rounds=0"], "--rounds"), (["--size=[16,64]"], "--size"), (["--smp=[nonsense/resnet18]"], "no such baseline")],
)
def test_mistakes_are_told_in_one_line(options, message, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", *TINY, *options])
    error = capsys.readouterr().err.strip()
    assert error.startswith("tiramisu.benchmark: error: ") and message in error and "\n" not in error
