from pathlib import Path

import pytest

from tiramisu.errors import ConfigError
from tiramisu.files import distinct
from tiramisu.inference.inputs import find_inputs, result_names


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(*inputs: object, output: Path = Path("nowhere"), reserved: tuple[str, ...] = ()) -> list[str]:
    return [entry.name for entry in find_inputs([str(given) for given in inputs], output, reserved)]


def test_folders_are_searched_and_relative_paths_kept(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.png", "sub/deep/c.tif", "notes.txt", ".hidden.png", ".cache/d.png", "clip.mp4")
    assert names(tmp_path) == ["a", "b", "clip", "sub/deep/c"]


def test_names_never_collide(tmp_path: Path) -> None:
    assert result_names(["a.jpg", "a.png", "A.png", "b.png"]) == ["a_jpg", "a_png", "A_png-2", "b"]
    assert result_names(["a.jpg", "a.png", "a_jpg.tif"]) == ["a_jpg-2", "a_png", "a_jpg"]
    assert distinct(["x", "X", "x-2"]) == ["x", "X-2", "x-2-2"]
    touch(tmp_path, "Sub/a.png", "sub/a.png", "overlays/a.png")
    found = names(tmp_path, reserved=("overlays",))
    assert len({name.casefold() for name in found}) == 3 and "overlays/a" not in found


def test_several_folders_stay_apart(tmp_path: Path) -> None:
    touch(tmp_path, "one/set/a.png", "two/set/a.png", "a.png")
    found = names(tmp_path / "one/set", tmp_path / "two/set", tmp_path / "a.png")
    assert found == ["a", "set/a", "set-2/a"]


def test_globs_and_lists(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.png", "x/y/b.png", "x/y/c.txt")
    assert names(tmp_path / "x" / "**" / "*.png") == ["a", "y/b"]
    listed = tmp_path / "list.txt"
    listed.write_text(f"{tmp_path}/x/y/b.png\n\n{tmp_path}/x/a.png\n{tmp_path}/x/missing.png\n")
    assert names(listed) == ["y/b", "a", "missing"], "a missing file fails later, by itself"


def test_symlink_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.png")
    (tmp_path / "sub" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert names(tmp_path) == ["sub/a"]


def test_the_output_folder_is_no_input(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "masks/a.png")
    assert names(tmp_path, output=tmp_path / "masks") == ["a"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.png", "does not exist"),
        ("*.png", "no file matches"),
        ("empty.txt", "lists no files"),
        (".", "--output"),
        ("*.tif", "lies in --output"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "empty.txt", "a.tif")
    with pytest.raises(ConfigError, match=message):
        names(given, output=tmp_path)
