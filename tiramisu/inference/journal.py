"""What has become of every image of an output folder; survives a kill at any moment."""

import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from tiramisu.errors import ConfigError

FILE = ".tiramisu.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (name BLOB PRIMARY KEY, done INTEGER, uncertainty REAL, record TEXT) WITHOUT ROWID;
"""


class Record(NamedTuple):
    """What became of one image.

    Attributes:
        name: of its results.
        result: the file of the mask or overlay video, in the output folder.
        source: the file it was read from.
        stamp: what changes when the file does: its size and the time of its last change.
        reason: why it failed; empty where it did not.
        note: what is worth saying about how it was read.
        height: in pixels.
        width: in pixels.
        counts: pixels of each class, of all frames of a video.
        uncertainty: mean over the pixels, where it was asked for.
        segments: COCO's run-length encoding of each class that is there, where it was asked for.
    """

    name: str
    result: str
    source: str
    stamp: str
    reason: str = ""
    note: str = ""
    height: int = 0
    width: int = 0
    counts: tuple[int, ...] = ()
    uncertainty: float | None = None
    segments: dict[str, str] = {}  # noqa: RUF012  # of a NamedTuple, never changed


class Journal:
    """The records of an output folder, in a SQLite file there; one process at a time.

    Use as a context manager.

    Args:
        folder: of the results.
        settings: what the results depend on.
        overwrite: whether to forget what is there.

    Raises:
        ConfigError: another process is at it, or what is there was made with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], overwrite: bool = False) -> None:
        self.path = folder / FILE
        try:
            self._open()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ConfigError(f"another process writes into {folder}; wait, or choose another --output") from error
            raise OSError(None, f"cannot use {self.path}: {error}") from error
        except sqlite3.DatabaseError:  # ruined, by a power failure perhaps: the images are done again
            self.close()
            for file in folder.glob(f"{FILE}*"):
                file.unlink()
            self._open()
        try:
            if overwrite:
                self.connection.executescript("DELETE FROM settings; DELETE FROM records;")
            self._check(folder, settings)
        except BaseException:
            self.close()  # and let go of the lock
            raise

    def _open(self) -> None:
        self.connection = sqlite3.connect(self.path, timeout=0.5, isolation_level=None)
        # In exclusive mode the write-ahead log needs no shared memory, so network file systems will do.
        self.connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=NORMAL")
        self.connection.executescript(SCHEMA)

    def _check(self, folder: Path, settings: dict[str, Any]) -> None:
        known = dict(self.connection.execute("SELECT key, value FROM settings"))
        for key, value in settings.items():
            text = json.dumps(value)
            if known.get(key, text) != text:
                raise ConfigError(
                    f"{folder} was made with {key} {json.loads(known[key])}, not {value}; choose another --output, "
                    f"or --overwrite it"
                )
            self.connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, text))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with suppress(sqlite3.Error):
            self.connection.close()

    def finished(self, name: str, stamp: str) -> bool:
        """Tell whether an image is done and has not changed since."""
        record = self.find(name)
        return record is not None and not record.reason and record.stamp == stamp

    def find(self, name: str) -> Record | None:
        """Return the record of an image, if there is one."""
        rows = self.connection.execute("SELECT record FROM records WHERE name = ?", (os.fsencode(name),))
        return next((decode_record(row[0]) for row in rows), None)

    def write(self, record: Record) -> None:
        """Keep a record; it replaces an earlier one of the same name.

        Raises:
            OSError: it cannot be written.
        """
        values = (os.fsencode(record.name), not record.reason, record.uncertainty, json.dumps(record))
        try:
            self.connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", values)
        except sqlite3.OperationalError as error:
            code = errno.ENOSPC if "full" in str(error) else errno.EIO
            raise OSError(code, str(error), str(self.path)) from error

    def done(self, most_uncertain_first: bool = False) -> Iterator[Record]:
        """Yield the records of the images that are done, by name."""
        order = "uncertainty DESC, name" if most_uncertain_first else "name"
        for (text,) in self.connection.execute(f"SELECT record FROM records WHERE done ORDER BY {order}"):
            yield decode_record(text)

    def failed(self) -> Iterator[Record]:
        """Yield the records of the images that failed, by name."""
        for (text,) in self.connection.execute("SELECT record FROM records WHERE NOT done ORDER BY name"):
            yield decode_record(text)


def decode_record(text: str) -> Record:
    """Rebuild a record from its JSON."""
    values = json.loads(text)
    values[Record._fields.index("counts")] = tuple(values[Record._fields.index("counts")])
    return Record(*values)
