import json

import pytest

from tiramisu.benchmark import main
from tiramisu.benchmarking.timing import race


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_prints_both_sides_and_their_ratio(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--variant=56", "--size=[64,64]", "--batch=1", "--rounds=2", "--warmup=0"]
    main([mode, *options])
    table = capsys.readouterr().out
    assert "tiramisu" in table and "textbook" in table and "ratio" in table
    main([mode, *options, "--json=true"])
    result = json.loads(capsys.readouterr().out)
    ours, textbook = result["timings"]
    assert len(ours["seconds"]) == 2 and textbook["ratio"] == 1.0


def test_ratios_are_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 26.0, 30.0, 34.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    fast, slow = race({"fast": lambda: None, "slow": lambda: None}, "slow", rounds=2, warmup=0)
    assert fast.seconds == (1.0, 6.0) and slow.seconds == (2.0, 4.0)
    assert fast.ratio == 1.0 and fast.spread == (0.5, 1.5)


def test_mistakes_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--rounds=0", "--variant=56", "--size=[32,32]"])
    assert capsys.readouterr().err.startswith("tiramisu.benchmark: error: --rounds")
