"""Files: written under a temporary name and renamed, read within bounds, never overwritten where they are not ours."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import shutil
import unicodedata
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import platformdirs

from tiramisu.errors import ConfigError

MIB = 2**20
TEXT_LIMIT = 256 * MIB  # lists of files, CSV files
FOREIGN = "already exists and was not written by tiramisu; choose another --output"
SOFTWARE = "tiramisu"  # in the PNG files that commands write into folders of the user's choice
PNG_MARK = b"Software\0tiramisu"
HTML_MARK = b'<meta name="generator" content="tiramisu">'
JSON_MARK = b'"tiramisu": "'
NAME_BYTES = 240  # of 255 that file systems take: suffixes such as .png come on top


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
    """Yield a temporary folder that becomes `path` on success.

    A new or empty folder appears in one rename. In one that has files, they are replaced by those of the same name, one
    rename each.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if not path.exists() or not any(path.iterdir()):
            temporary.replace(path)
            return
        for file in sorted(temporary.iterdir()):
            file.replace(path / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` on success; where the process is killed, `path` does not appear.

    What a killed process has left behind is removed first.

    Args:
        path: of the folder; it does not exist, or is empty.

    Raises:
        ConfigError: another process is writing it.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100  # a name is needed, which . has not
    temporary = path.with_name(f".{path.name}.{SOFTWARE}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    with (temporary / ".lock").open("a+") as lock:
        if not _lock(lock):
            raise ConfigError(f"another process is writing {path}; wait for it, or give another folder")
        for entry in temporary.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != ".lock":
                entry.unlink()
        try:
            yield temporary
            (temporary / ".lock").unlink()
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _lock(file: TextIO) -> bool:
    """Lock a file for as long as it is open; tell whether nobody else had. Where there are no locks nobody has."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def refuse_foreign(file: Path, mark: bytes) -> None:
    """Refuse to overwrite a file that tiramisu has not written.

    Args:
        file: that is about to be written.
        mark: bytes that are in every such file of ours.

    Raises:
        ConfigError: it exists and lacks the mark.
    """
    if not os.path.lexists(file):
        return
    if not file.is_file() or mark not in file.read_bytes():
        raise ConfigError(f"{file} {FOREIGN}")


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file's contents in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def shorten(name: str) -> str:
    """Return a file name, shortened to `NAME_BYTES` where it is longer; a hash of the whole keeps names apart."""
    encoded = os.fsencode(name)
    if len(encoded) <= NAME_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[: NAME_BYTES - 13].decode('utf-8', errors='ignore')}~{digest}"


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


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the contents of a regular file of at most `limit` bytes.

    Raises:
        OSError: it is missing, larger, or no regular file, such as a device that never ends.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than the limit of {limit / MIB:g} MiB", str(path))
    return data


def read_text(path: Path, limit: int = TEXT_LIMIT, other: str = "latin-1") -> str:
    """Return the text of a file as people's editors and shells write it: UTF-16, UTF-8 or something else.

    PowerShell writes UTF-16 with a byte order mark, or UTF-8 with one. UTF-16 without a mark is told by its zero bytes.

    Args:
        path: of the file.
        limit: of its size in bytes.
        other: encoding of what is not UTF-8; `surrogateescape` keeps the bytes, as file names need it.

    Raises:
        OSError: it cannot be read, see `read_bounded`.
    """
    data = read_bounded(path, limit)
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return data.decode("utf-32", errors="replace")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    head = data[:2000]
    if len(data) % 2 == 0 and len(head) > 3:
        for zeros, encoding in ((head[1::2], "utf-16-le"), (head[::2], "utf-16-be")):
            if zeros.count(0) > 0.6 * len(zeros):
                return data.decode(encoding, errors="replace")
    if other == "surrogateescape":
        return data.decode("utf-8-sig", errors="surrogateescape")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode(other)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused because JSON has none."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


class CsvWriter:
    """Writes rows whose texts a spreadsheet shows and does not run.

    A text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return, and is no number, gets an apostrophe
    in front (OWASP, "CSV Injection").

    Args:
        file: open for writing, with ``newline=""``.
    """

    def __init__(self, file: TextIO) -> None:
        self._writer = csv.writer(file)

    def writerow(self, row: Iterable[Any]) -> None:
        """Write one row."""
        self._writer.writerow([_safe_cell(cell) for cell in row])

    def writerows(self, rows: Iterable[Iterable[Any]]) -> None:
        """Write several rows."""
        for row in rows:
            self.writerow(row)


def printable(text: str) -> str:
    """Return a text for a terminal: control characters, which could change what it shows, are written as escapes."""
    return "".join(
        letter if unicodedata.category(letter) != "Cc" else letter.encode("unicode_escape").decode() for letter in text
    )


def _safe_cell(cell: Any) -> Any:
    if isinstance(cell, str):
        cell = cell.replace("\0", "\\0")  # which readers of CSV stop at
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    with contextlib.suppress(ValueError):
        float(cell)
        return cell
    return f"'{cell}"
