"""Finding the images that a user means, and a name for each one's results that no other has."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tiramisu.errors import ConfigError
from tiramisu.files import distinct, read_text, shorten
from tiramisu.images import HEIF_REMEDY, HEIF_SUFFIXES, SUFFIXES, UNREAD_SUFFIXES

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
))
# fmt: on
UNREAD_VIDEO_SUFFIXES = frozenset((".rm", ".rmvb", ".swf"))
TRANSPORT_SUFFIX = ".ts"  # of MPEG-2 transport streams, and of TypeScript
LIST_SUFFIX = ".txt"
LONGEST_LINE, SHOWN = 8192, 300  # characters of a path in a list, and of one that is longer
UNREAD = UNREAD_SUFFIXES | UNREAD_VIDEO_SUFFIXES


class Entry(NamedTuple):
    """An image or video to segment.

    Attributes:
        path: of the file.
        name: of its results: relative, with slashes, without suffix; different from all others even where the file
            system ignores case.
        file_name: of the file relative to what all inputs have in common, with slashes; for annotations.
        problem: why it is not read, where that is known already; else empty.
        skipped: whether it is of a kind that is not read, which is no failure.
    """

    path: Path
    name: str
    file_name: str = ""
    problem: str = ""
    skipped: bool = False

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
    places = [folder for folder, _ in folders] + [path.parent for path, _ in loose]
    common = _common_folder([*places, *(path.parent for _, files in groups for path, _ in files)])

    def entries() -> Iterator[Entry]:
        yield from _named(loose, "", ())
        for folder, _ in folders:
            prefix = next(prefixes)
            yield from _walk(folder, prefix, output, () if prefix else reserved)
        for _, files in groups:
            prefix = next(prefixes)
            yield from _named(files, prefix, () if prefix else reserved)

    for entry in entries():
        yield entry._replace(file_name=_relative_to(entry.path, common))


def _common_folder(folders: Sequence[Path]) -> str:
    """Return the folder that all others lie in; an empty text where there is none, as on several drives."""
    try:
        return os.path.commonpath([os.path.abspath(folder) for folder in folders]) if folders else ""  # noqa: PTH100
    except ValueError:
        return ""


def _relative_to(path: Path, folder: str) -> str:
    """Return a path below a folder as text with slashes, by names alone: links are not followed."""
    whole = os.path.abspath(path)  # noqa: PTH100  # Path.absolute keeps what is to be taken out: a/../b
    return Path(os.path.relpath(whole, folder)).as_posix() if folder else path.name


def result_names(files: Sequence[str]) -> list[str]:
    """Return a name for the results of each file of one folder: the stem, with the suffix where stems are the same.

    Names that are too long for a file system are shortened, zero bytes replaced.
    """
    files = [file.replace("\0", "_") for file in files]
    stems = [shorten(Path(file).stem) for file in files]
    count = Counter(stem.casefold() for stem in stems)
    unique = [stem for stem in stems if count[stem.casefold()] == 1]
    others = iter(
        distinct(
            [
                shorten(file.replace(".", "_"))
                for file, stem in zip(files, stems, strict=True)
                if count[stem.casefold()] > 1
            ],
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
        except OSError as error:
            name = prefix.rstrip("/") or folder.name
            yield Entry(folder, name, problem=f"the folder cannot be opened ({error.strerror})")
            continue
        if identity in seen:
            continue
        seen.add(identity)
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        directories = [entry.name for entry in visible if _is_folder(entry)]
        files = [entry.name for entry in visible if _is_wanted(entry)]
        for file, name in zip(files, result_names(files), strict=True):
            yield Entry(folder / file, prefix + name)
        for entry in visible:
            suffix = Path(entry.name).suffix.lower()
            if suffix in UNREAD and not _is_folder(entry):
                reason = unread_reason(suffix)
                yield Entry(folder / entry.name, prefix + entry.name, problem=reason, skipped=True)
        results = [f"{name}.png" for name in result_names(files)]  # a folder may be called like one
        names = distinct([shorten(name) for name in directories], [*(reserved if folder is root else ()), *results])
        waiting += [(folder / old, f"{prefix}{new}/") for old, new in reversed([*zip(directories, names, strict=True)])]


def _is_wanted(entry: os.DirEntry[str]) -> bool:
    suffix = Path(entry.name).suffix.lower()
    if suffix == TRANSPORT_SUFFIX and _is_text(entry):
        return False
    return suffix in SUFFIXES | VIDEO_SUFFIXES and not _is_folder(entry)


def _is_text(entry: os.DirEntry[str]) -> bool:
    """Tell TypeScript from a transport stream, which may be damaged; videos have zero bytes."""
    try:
        if not entry.is_file():
            return False
        with Path(entry.path).open("rb") as stream:
            return b"\0" not in stream.read(4096)
    except OSError:  # decoding it will tell
        return False


def unread_reason(suffix: str) -> str:
    """Say why a picture or video of a kind is skipped, and the remedy."""
    if suffix in HEIF_SUFFIXES:
        return f"skipped: {HEIF_REMEDY}"
    kind = "MP4" if suffix in UNREAD_VIDEO_SUFFIXES else "PNG or JPEG"
    return f"skipped: files of the kind {suffix} are not read; convert it to {kind}"


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
    shortened = ["/".join(shorten(part.replace("\0", "_")) for part in Path(folder).parts) for folder in folders]
    names = distinct(shortened, reserved)
    for (folder, paths), name in zip(folders.items(), names, strict=True):
        inside = prefix + (f"{name}/" if folder else "")
        for path, stem in zip(paths, result_names([path.name for path in paths]), strict=True):
            yield Entry(path, inside + stem)


def _lies_in(path: Path, folder: Path | None) -> bool:
    return folder is not None and folder.resolve() in path.resolve().parents


def _relative(files: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return each file with its folder relative to what all files have in common; a/../b is b, and comes once."""
    normal: dict[str, Path] = {}
    for file in files:
        normal.setdefault(os.path.abspath(file), file)  # noqa: PTH100  # Path.absolute keeps the dots
    distinct_files = [(Path(path), file) for path, file in normal.items()]
    common = _common_folder([path.parent for path, _ in distinct_files])
    folders = [path.parent.relative_to(common).as_posix() if common else "" for path, _ in distinct_files]
    return [(file, "" if folder == "." else folder) for (_, file), folder in zip(distinct_files, folders, strict=True)]


def _read_list(path: Path) -> list[Path]:
    # Not splitlines: names may hold what it splits at.
    lines = [line.strip() for line in read_text(path, other="surrogateescape").split("\n")]
    # The beginning of what is too long for a path will do to find it in the list.
    short = (line if len(line) <= LONGEST_LINE else f"{line[:SHOWN]}..." for line in lines if line)
    files = list(dict.fromkeys(map(Path, short)))
    if not files:
        raise ConfigError(f"{path} lists no files; write one path a line")
    return files


def _fixed_part(pattern: str) -> Path:
    """Return the folder of a glob before its first wildcard."""
    parts = Path(pattern).parts
    fixed = [*parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))]]
    return Path(*fixed).resolve() if fixed else Path.cwd()
