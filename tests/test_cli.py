import subprocess
import sys

import pytest

from tiramisu.__main__ import COMMANDS
from tiramisu.__main__ import main as list_commands

IMPORT_CHECK = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
import tiramisu, tiramisu.models, tiramisu.data, tiramisu.inference.evaluation, tiramisu.visualize
heavy = {"lightning", "streamlit", "segmentation_models_pytorch", "timm"} & set(sys.modules)
assert not heavy, heavy
"""


def test_imports_are_light_and_offline() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_CHECK], check=True)


def test_the_package_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    list_commands([])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  python -m")]
    assert len(lines) == len(COMMANDS)
    for command, line in zip(COMMANDS, lines, strict=True):
        assert line.startswith(f"  python -m tiramisu.{command} ") and len(line.split()) > 5


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        list_commands(["bake"])
    assert ended.value.code == 2 and "bake" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = __import__(f"tiramisu.{name}", fromlist=["main"])
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    assert f"usage: python -m tiramisu.{name}" in capsys.readouterr().out
