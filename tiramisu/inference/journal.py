"""What has become of every image of an output folder; survives a kill at any moment."""

import errno
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from tiramisu.errors import ConfigError
from tiramisu.files import FOREIGN, file_digest

FILE = ".tiramisu.sqlite"
FORMAT = 1  # of the records
FAILED, DONE, STARTED, SKIPPED = range(4)
SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    name BLOB PRIMARY KEY, state INTEGER, owned INTEGER, uncertainty REAL, record TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tables (name TEXT, digest TEXT, PRIMARY KEY (name, digest)) WITHOUT ROWID;
"""
LEGACY = "legacy"  # key of journals that did not keep which files are ours
ALWAYS_WRITTEN = ("areas.csv", "failures.csv", "summary.json")

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
        segments: index of the class and COCO's run lengths of each connected region, where annotations are wanted.
        made: what was written beside the mask, and how.
        file_name: of the image, relative to what all inputs have in common.
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
    segments: list[tuple[int, str]] = []  # noqa: RUF012  # of a NamedTuple, never changed
    made: dict[str, Any] = {}  # noqa: RUF012
    file_name: str = ""

    @property
    def partial(self) -> bool:
        """Tell whether results were written though something was wrong, as with a video that is cut short."""
        return bool(self.reason and self.height)


class Journal:
    """The records of an output folder, in a SQLite file there; one process at a time.

    An image and its files are entered before they are written, so that files which no entry explains are known to be
    somebody else's. Use as a context manager.

    Args:
        folder: of the results; it is made.
        settings: what all results depend on.
        overwrite: whether everything is to be done again, with other settings perhaps.
        tables: names of the files of the whole run that will be written.

    Raises:
        ConfigError: another process is at it; what is there was made with other settings; a table is there already
            and is not ours; or the journal is damaged, so that nothing tells which files are ours.
        OSError: it cannot be written.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], overwrite: bool = False, tables: Sequence[str] = ()
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        if not self.path.exists():
            self._refuse_foreign(table for table in tables if os.path.lexists(folder / table))
        try:
            self._open()
            if overwrite:
                self.connection.execute("UPDATE records SET state = ?", (STARTED,))
            self._check(folder, settings, overwrite)
            self._refuse_foreign(table for table in tables if not self.owns_table(table))
            self._forget_missing()
        except sqlite3.Error as error:
            self.close()
            raise self._told(error) from error
        except BaseException:
            self.close()  # and let go of the lock
            raise

    def _told(self, error: sqlite3.Error) -> Exception:
        """Return what an error of SQLite means."""
        if "locked" in str(error):
            return ConfigError(f"another process writes into {self.path.parent}; wait, or choose another --output")
        if "full" in str(error):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        if isinstance(error, sqlite3.OperationalError) and "no such column" not in str(error):
            return OSError(errno.EIO, str(error), str(self.path))
        return ConfigError(f"the record of earlier results, {self.path}, is damaged: nothing tells which files in "
                           f"{self.path.parent} are results; choose another --output")  # fmt: skip

    def _refuse_foreign(self, tables: Iterable[str]) -> None:
        for name in tables:
            raise ConfigError(f"{self.path.parent / name} {FOREIGN}")

    def _open(self) -> None:
        self.connection = sqlite3.connect(self.path, timeout=0.5, isolation_level=None)
        # In exclusive mode the write-ahead log needs no shared memory, so network file systems will do.
        self.connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        known = {name for (name,) in self.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if known and "records" not in known:
            raise sqlite3.DatabaseError("somebody else's")
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=NORMAL")
        self.connection.executescript(SCHEMA)
        if self.connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged")
        if known and "files" not in known:
            self._adopt()

    def _adopt(self) -> None:
        """Take over a journal that did not keep which files are ours: what such a run has always written is."""
        self.connection.execute("INSERT OR REPLACE INTO settings VALUES (?, 'true')", (LEGACY,))
        for name in ALWAYS_WRITTEN:
            if (self.path.parent / name).is_file():
                self.claim_table(name, file_digest(self.path.parent / name))

    def _check(self, folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
        known = dict(self.connection.execute("SELECT key, value FROM settings"))
        self.legacy = LEGACY in known
        for key, value in {**settings, "format": FORMAT}.items():
            text = json.dumps(value)
            if not overwrite and known.get(key, text) != text:
                raise ConfigError(
                    f"{folder} was made with {key} {json.loads(known[key])}, not {value}; choose another --output, "
                    f"or --overwrite it"
                )
            self.connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, text))

    def _forget_missing(self) -> None:
        """Forget the failures of earlier runs whose files were mended by taking them away."""
        gone = [record.name for record in self.failed() if not is_there(record.source)]
        self.connection.executemany(
            "DELETE FROM records WHERE name = ? AND NOT owned", [(os.fsencode(n),) for n in gone]
        )
        self.connection.executemany("UPDATE records SET state = ? WHERE name = ?",
                                    [(STARTED, os.fsencode(name)) for name in gone])  # fmt: skip

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

    def partial(self, name: str, source: str, stamp: str) -> str:
        """Return what was wrong with an input of which all that can be read was done, and has not changed since."""
        rows = self._execute("SELECT record FROM records WHERE name = ? AND state = ?", (os.fsencode(name), FAILED))
        for (text,) in rows:
            record = decode_record(text)
            if record.partial and (record.source, record.stamp) == (source, stamp):
                return record.reason
        return ""

    def owns(self, name: str, file: str) -> bool:
        """Tell whether a file, if it is there, was written here.

        Args:
            name: of the results that it belongs to.
            file: its path relative to the folder, with slashes.
        """
        if self._execute("SELECT 1 FROM files WHERE path = ?", (os.fsencode(file),)):
            return True
        query = "SELECT 1 FROM records WHERE name = ? AND owned"
        return self.legacy and bool(self._execute(query, (os.fsencode(name),)))

    def owns_table(self, name: str) -> bool:
        """Tell whether a file of the whole run is as it was written here, or not there."""
        file = self.path.parent / name
        if not os.path.lexists(file):
            return True
        known = {digest for (digest,) in self._execute("SELECT digest FROM tables WHERE name = ?", (name,))}
        return file.is_file() and file_digest(file) in known

    def claim_table(self, name: str, digest: str) -> None:
        """Note the contents of a file of the whole run that is about to be written; the ones before stay known.

        Raises:
            OSError: it cannot be noted.
        """
        self._execute("INSERT OR IGNORE INTO tables VALUES (?, ?)", (name, digest))

    def start(self, record: Record, files: Iterable[str]) -> None:
        """Note that files are about to be written.

        Args:
            record: of the image.
            files: their paths relative to the folder, with slashes.

        Raises:
            OSError: it cannot be noted.
        """
        self._write(record, STARTED)
        for file in files:
            self._execute("INSERT OR IGNORE INTO files VALUES (?)", (os.fsencode(file),))

    def skip(self, record: Record) -> None:
        """Note that an input is of a kind that is not read.

        Raises:
            OSError: it cannot be noted.
        """
        self._write(record, SKIPPED)

    def write(self, record: Record) -> None:
        """Keep a record; it replaces an earlier one of the same name.

        Raises:
            OSError: it cannot be written.
        """
        self._write(record, FAILED if record.reason else DONE)

    def _write(self, record: Record, state: int) -> None:
        owned = state in (DONE, STARTED) or record.partial
        values = (os.fsencode(record.name), state, owned, record.uncertainty, json.dumps(record))
        self._execute(UPSERT, values)

    def _execute(self, query: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self.connection.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error

    def done(self, most_uncertain_first: bool = False) -> Iterator[Record]:
        """Yield the records of the images that are done, by name."""
        order = "uncertainty DESC, name" if most_uncertain_first else "name"
        yield from self._records(f"state = {DONE}", order)

    def failed(self) -> Iterator[Record]:
        """Yield the records of the images that failed, by name."""
        yield from self._records(f"state = {FAILED}")

    def skipped(self) -> Iterator[Record]:
        """Yield the records of the inputs whose kind is not read, by name."""
        yield from self._records(f"state = {SKIPPED}")

    def _records(self, condition: str, order: str = "name") -> Iterator[Record]:
        for (text,) in self.connection.execute(f"SELECT record FROM records WHERE {condition} ORDER BY {order}"):
            yield decode_record(text)


def decode_record(text: str) -> Record:
    """Rebuild a record from its JSON.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        record = Record(*json.loads(text))
        segments = record.segments if isinstance(record.segments, list) else []
        return record._replace(counts=tuple(record.counts), segments=[(int(at), str(run)) for at, run in segments])
    except (ValueError, TypeError) as error:
        raise ConfigError("the record of earlier results is damaged; choose another --output") from error


def is_there(source: str) -> bool:
    """Tell whether a file is still there, or a link; of URIs it is assumed."""
    return "://" in source or os.path.lexists(source)
