"""Writing files so that a reader never meets half of one: write to a temporary name, then rename."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import platformdirs


@contextlib.contextmanager
def atomic_path(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield a temporary name; on success it replaces `path`, on failure it is removed.

    The temporary name keeps the suffix, so that writers which choose the format by it still work.

    Args:
        path: of the file to write.
        scratch: folder of the temporary name, on the same file system; default: beside `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if scratch is None:
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    else:
        temporary = scratch / f"{uuid.uuid4().hex}{path.suffix}"
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success its files replace those of the same name in `path`, one rename each."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        path.mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir()):
            file.replace(path / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def distinct(names: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """Return the names, numbered where they would be the same in a file system that ignores case."""
    used = {name.casefold() for name in taken}
    result = []
    for name in names:
        candidate, number = name, 1
        while candidate.casefold() in used:
            number += 1
            candidate = f"{name}-{number}"
        used.add(candidate.casefold())
        result.append(candidate)
    return result


def user_cache() -> Path:
    """Return the folder of what can be made again: TIRAMISU_CACHE, or the user's cache folder."""
    return Path(os.environ.get("TIRAMISU_CACHE") or platformdirs.user_cache_path("tiramisu"))


def read_text(path: Path) -> str:
    """Return the text of a file: UTF-8, with a byte order mark UTF-16, else Latin-1, as people's editors write it."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused because JSON has none."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
