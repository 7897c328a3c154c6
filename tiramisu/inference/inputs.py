"""Finding the images that a user means, and a name for each one's results that no other has."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tiramisu.errors import ConfigError
from tiramisu.files import distinct
from tiramisu.images import SUFFIXES

VIDEO_SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"))
LIST_SUFFIX = ".txt"


class Entry(NamedTuple):
    """An image or video to segment.

    Attributes:
        path: of the file.
        name: of its results: relative, with slashes, without suffix; different from all others even where the file
            system ignores case.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Tell whether it is to be read as a video."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_inputs(inputs: Sequence[str], output: Path | None = None, reserved: Iterable[str] = ()) -> Iterator[Entry]:
    """Yield every image and video that is meant, folder by folder, always in the same order.

    Args:
        inputs: files; folders, of which every image and video is taken, hidden ones left out; globs (`**` for any
            depth); text files with one path a line.
        output: folder of the results, which is never an input; none where there are no results.
        reserved: names that no top-level folder of results may have.

    Raises:
        ConfigError: an input does not exist, a glob matches nothing, or the output is an input.
    """
    folders: list[tuple[Path, str]] = []
    groups: list[tuple[str, list[tuple[Path, str]]]] = []
    loose: list[tuple[Path, str]] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            if output is not None and path.resolve() == output.resolve():
                raise ConfigError(f"--output {output} is also an input; choose another folder")
            folders.append((path, path.resolve().name))
        elif path.is_file() and path.suffix.lower() == LIST_SUFFIX:
            groups.append((path.stem, _relative(_read_list(path))))
        elif path.exists():
            loose += [(path, "")] if (path, "") not in loose else []
        elif glob.has_magic(given):
            matches = glob.glob(given, recursive=True)  # noqa: PTH207  # Path.glob takes no absolute patterns
            found = sorted(Path(match) for match in matches if not Path(match).is_dir())
            if found and all(_lies_in(path, output) for path in found):
                raise ConfigError(f"all that matches {given} lies in --output {output}; choose another folder")
            found = [path for path in found if not _lies_in(path, output)]
            if not found:
                raise ConfigError(f"no file matches {given}")
            groups.append((_fixed_part(given).name, _relative(found)))
        else:
            raise ConfigError(f"{given} does not exist; give images, folders, globs or a list of paths in a .txt file")
    several = len(folders) + len(groups) + bool(loose) > 1
    titles = distinct([title or "root" for _, title in folders] + [title or "root" for title, _ in groups], reserved)
    prefixes = iter([f"{title}/" for title in titles] if several else [""] * len(titles))
    yield from _named(loose, "", ())
    for folder, _ in folders:
        prefix = next(prefixes)
        yield from _walk(folder, prefix, output, () if prefix else reserved)
    for _, files in groups:
        prefix = next(prefixes)
        yield from _named(files, prefix, () if prefix else reserved)


def result_names(files: Sequence[str]) -> list[str]:
    """Return a name for the results of each file of one folder: the stem, with the suffix where stems are the same."""
    stems = [Path(file).stem for file in files]
    count = Counter(stem.casefold() for stem in stems)
    unique = [stem for stem in stems if count[stem.casefold()] == 1]
    others = iter(
        distinct(
            [file.replace(".", "_") for file, stem in zip(files, stems, strict=True) if count[stem.casefold()] > 1],
            unique,
        )
    )
    return [stem if count[stem.casefold()] == 1 else next(others) for stem in stems]


def _walk(root: Path, prefix: str, output: Path | None, reserved: Iterable[str]) -> Iterator[Entry]:
    """Yield the images below a folder; a folder that is reached again through a link is not entered again."""
    seen = {_identity(output)} if output is not None and output.exists() else set()
    waiting = [(root, prefix)]
    while waiting:
        folder, prefix = waiting.pop()
        try:
            identity = _identity(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            yield Entry(folder, prefix.rstrip("/") or folder.name)  # decoding it will tell
            continue
        if identity in seen:
            continue
        seen.add(identity)
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        directories = [entry.name for entry in visible if _is_folder(entry)]
        files = [entry.name for entry in visible if _is_wanted(entry)]
        for file, name in zip(files, result_names(files), strict=True):
            yield Entry(folder / file, prefix + name)
        results = [f"{name}.png" for name in result_names(files)]  # a folder may be called like one
        names = distinct(directories, [*(reserved if folder is root else ()), *results])
        waiting += [(folder / old, f"{prefix}{new}/") for old, new in reversed([*zip(directories, names, strict=True)])]


def _is_wanted(entry: os.DirEntry[str]) -> bool:
    suffix = Path(entry.name).suffix.lower()
    return suffix in SUFFIXES | VIDEO_SUFFIXES and not _is_folder(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _named(files: Iterable[tuple[Path, str]], prefix: str, reserved: Iterable[str]) -> Iterator[Entry]:
    """Yield files that come with their folder in the results."""
    folders: dict[str, list[Path]] = {}
    for path, folder in files:
        folders.setdefault(folder, []).append(path)
    names = distinct([folder.strip("/") for folder in folders], reserved)
    for (folder, paths), name in zip(folders.items(), names, strict=True):
        inside = prefix + (f"{name}/" if folder else "")
        for path, stem in zip(paths, result_names([path.name for path in paths]), strict=True):
            yield Entry(path, inside + stem)


def _lies_in(path: Path, folder: Path | None) -> bool:
    return folder is not None and folder.resolve() in path.resolve().parents


def _relative(files: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return each file with its folder relative to what all files have in common."""
    parents = [Path.cwd() / file.parent for file in files]
    common = os.path.commonpath(parents) if parents else ""
    folders = [parent.relative_to(common).as_posix() for parent in parents]
    return [(file, "" if folder == "." else folder) for file, folder in zip(files, folders, strict=True)]


def _read_list(path: Path) -> list[Path]:
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    files = list(dict.fromkeys(Path(line.strip()) for line in lines if line.strip()))
    if not files:
        raise ConfigError(f"{path} lists no files; write one path a line")
    return files


def _fixed_part(pattern: str) -> Path:
    """Return the folder of a glob before its first wildcard."""
    parts = Path(pattern).parts
    fixed = [*parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))]]
    return Path(*fixed).resolve() if fixed else Path.cwd()
