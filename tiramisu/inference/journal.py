"""What has become of every image of an output folder; survives a kill at any moment."""

import errno
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from tiramisu.errors import ConfigError

FILE = ".tiramisu.sqlite"
FORMAT = 1  # of the records
REBUILT = "rebuilt"
FAILED, DONE, STARTED = range(3)
SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    name BLOB PRIMARY KEY, state INTEGER, owned INTEGER, uncertainty REAL, record TEXT
) WITHOUT ROWID;
"""

# Once files were written here they stay ours, also where the image fails later.
UPSERT = """
INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET
    state = excluded.state, owned = max(owned, excluded.owned),
    uncertainty = excluded.uncertainty, record = excluded.record
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
        made: what was written beside the mask, and how.
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
    made: dict[str, Any] = {}  # noqa: RUF012


class Journal:
    """The records of an output folder, in a SQLite file there; one process at a time.

    An image is entered before its files are written, so that files which no entry explains are known to be somebody
    else's. Use as a context manager.

    Args:
        folder: of the results; it is made.
        settings: what all results depend on.
        overwrite: whether everything is to be done again, with other settings perhaps.

    Raises:
        ConfigError: another process is at it, or what is there was made with other settings.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], overwrite: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        try:
            self._open()
        except sqlite3.OperationalError as error:
            self.close()
            if "locked" in str(error):
                raise ConfigError(f"another process writes into {folder}; wait, or choose another --output") from error
            raise OSError(errno.EIO, str(error), str(self.path)) from error
        except sqlite3.DatabaseError:  # ruined, by a power failure perhaps: the images are done again
            self.close()
            for file in folder.glob(f"{FILE}*"):
                file.unlink()
            self._open()
            self.connection.execute("INSERT INTO settings VALUES (?, 'true')", (REBUILT,))
        try:
            if overwrite:
                self.connection.execute("UPDATE records SET state = ?", (STARTED,))
            self._check(folder, settings, overwrite)
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
        if self.connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged")

    def _check(self, folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
        known = dict(self.connection.execute("SELECT key, value FROM settings"))
        self.rebuilt = REBUILT in known
        for key, value in {**settings, "format": FORMAT}.items():
            text = json.dumps(value)
            if not overwrite and known.get(key, text) != text:
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
        with suppress(sqlite3.Error, AttributeError):
            self.connection.close()

    def finished(self, name: str, source: str, stamp: str, made: dict[str, Any]) -> bool:
        """Tell whether an image is done with everything that is wanted, and has not changed since."""
        rows = self._execute("SELECT record FROM records WHERE name = ? AND state = ?", (os.fsencode(name), DONE))
        for (text,) in rows:
            record = decode_record(text)
            return (record.source, record.stamp) == (source, stamp) and made.items() <= record.made.items()
        return False

    def owns(self, name: str) -> bool:
        """Tell whether files of that name, if there are any, were written here."""
        query = "SELECT 1 FROM records WHERE name = ? AND owned"
        return self.rebuilt or bool(self._execute(query, (os.fsencode(name),)))

    def start(self, record: Record) -> None:
        """Note that files are about to be written.

        Raises:
            OSError: it cannot be noted.
        """
        self._write(record, STARTED)

    def write(self, record: Record) -> None:
        """Keep a record; it replaces an earlier one of the same name.

        Raises:
            OSError: it cannot be written.
        """
        self._write(record, FAILED if record.reason else DONE)

    def _write(self, record: Record, state: int) -> None:
        values = (os.fsencode(record.name), state, state != FAILED, record.uncertainty, json.dumps(record))
        self._execute(UPSERT, values)

    def _execute(self, query: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self.connection.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            code = errno.ENOSPC if "full" in str(error) else errno.EIO
            raise OSError(code, str(error), str(self.path)) from error

    def done(self, most_uncertain_first: bool = False) -> Iterator[Record]:
        """Yield the records of the images that are done, by name."""
        order = "uncertainty DESC, name" if most_uncertain_first else "name"
        for (text,) in self.connection.execute(f"SELECT record FROM records WHERE state = {DONE} ORDER BY {order}"):
            yield decode_record(text)

    def failed(self) -> Iterator[Record]:
        """Yield the records of the images that failed, by name."""
        for (text,) in self.connection.execute(f"SELECT record FROM records WHERE state = {FAILED} ORDER BY name"):
            yield decode_record(text)


def decode_record(text: str) -> Record:
    """Rebuild a record from its JSON."""
    values = json.loads(text)
    values[Record._fields.index("counts")] = tuple(values[Record._fields.index("counts")])
    return Record(*values)
