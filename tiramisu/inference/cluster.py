"""Segmenting many images on several machines with Ray Data: the same files as on one."""

import contextlib
import itertools
import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import ray
from numpy.typing import NDArray
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError

from tiramisu.errors import ConfigError, ImageError, TiramisuError
from tiramisu.files import FOREIGN, file_digest
from tiramisu.images import SUFFIXES, decode_image
from tiramisu.inference.engines import EngineName, Precision
from tiramisu.inference.folder import Progress, blank_record, file_stamp, write_image, write_video
from tiramisu.inference.inputs import UNREAD, VIDEO_SUFFIXES, Entry, find_inputs, result_names, unread_reason
from tiramisu.inference.journal import FILE, Journal, Record, decode_record
from tiramisu.inference.outputs import OutputFolder, Wanted
from tiramisu.inference.segmenter import Options, Segmenter

WAVE = 100_000  # entries that Ray Data plans at once
BATCH = 8  # entries a task: what a node that dies has to do again


class Location(NamedTuple):
    """A file or folder in a file system: a local path, or a URI such as s3://bucket/folder."""

    system: FileSystem
    path: str

    @classmethod
    def of(cls, name: str) -> "Location":
        """Return the location of a path or URI.

        Raises:
            ConfigError: there is no such file system.
        """
        if not is_remote(name):
            return cls(LocalFileSystem(), str(Path(name).absolute()))
        try:
            return cls(*FileSystem.from_uri(name))
        except (OSError, ValueError) as error:  # those of pyarrow are subclasses
            raise ConfigError(f"{name} cannot be opened: {str(error).splitlines()[0]}") from error

    def read(self) -> bytes:
        """Return the contents of a file.

        Raises:
            ImageError: it is none; reading a pipe would wait for ever.
            OSError: it cannot be read.
        """
        if self.system.get_file_info(self.path).type != FileType.File:
            raise ImageError("not a file")
        with self.system.open_input_stream(self.path) as stream:
            return bytes(stream.read())

    def write(self, file: Path) -> None:
        """Copy a local file here; it appears when it is complete, as object stores do it by themselves."""
        self.system.create_dir(str(PurePosixPath(self.path).parent), recursive=True)
        local = isinstance(self.system, LocalFileSystem)
        target = f"{self.path}.part" if local else self.path
        with file.open("rb") as source, self.system.open_output_stream(target) as stream:
            shutil.copyfileobj(source, stream)
        if local:
            self.system.move(target, self.path)

    def child(self, name: str) -> "Location":
        """Return a file or folder below this one."""
        return Location(self.system, f"{self.path.rstrip('/')}/{name}")


class Work(NamedTuple):
    """What every worker must know.

    Attributes:
        weights: the files of the weights, by name.
        engine: see `open_engine`.
        device: likewise.
        precision: likewise.
        options: of the segmenter.
        wanted: what is written of each image.
        output: path or URI of the results.
        max_pixels: of an image.
        made: what is written of each image, and how.
    """

    weights: Mapping[str, bytes]
    engine: EngineName
    device: str
    precision: Precision
    options: Options
    wanted: Wanted
    output: str
    max_pixels: int
    made: dict[str, Any]


class Worker:
    """One segmenter in a process of its own, on any node."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.scratch = Path(tempfile.mkdtemp(prefix="tiramisu-"))
        weights = write_files(work.weights, self.scratch / "weights")
        self.segmenter = Segmenter.load(weights, work.device, work.engine, work.precision)
        self.output = OutputFolder(self.scratch / "results", self.segmenter.labels, work.wanted)
        self.output.begin()
        self.target = Location.of(work.output)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Segment the entries of a batch, write their files, return their records."""
        records = [
            self.segment(*(str(batch[key][row]) for key in ("path", "name", "stamp", "file_name")))
            for row in range(len(batch["path"]))
        ]
        return {"record": np.array([json.dumps(record) for record in records], dtype=object)}

    def segment(self, path: str, name: str, stamp: str, file_name: str) -> Record:
        """Segment one image or video and write its files; a second time they are the same."""
        entry = entry_of(path, name)._replace(file_name=file_name)
        record = blank_record(self.output, entry, stamp)._replace(source=path, made=self.work.made)
        try:
            contents = Location.of(path).read()
            if entry.is_video:
                file = self.scratch / f"video{entry.path.suffix}"
                file.write_bytes(contents)
                done = write_video(self.segmenter, self.output, record, file, self.work.options, self.work.max_pixels)
                assert done is not None
            else:
                image = decode_image(contents, self.work.max_pixels, path, self.segmenter.channels)
                done = write_image(self.output, record, image, self.segmenter(image.pixels, self.work.options))
            for file in self.output.files(entry):
                self.target.child(file.relative_to(self.output.root).as_posix()).write(file)
            return done
        except (ImageError, ConfigError) as error:
            return record._replace(reason=str(error).removeprefix(f"{path}: "))
        except (RuntimeError, MemoryError, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return record._replace(reason=f"could not be segmented ({lines[0]})")
        finally:
            for file in self.output.files(entry):
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def results_folder(output: str, tables: Sequence[str]) -> Iterator[Path]:
    """Yield a local folder for the journal and the tables; for a URI it is fetched from there and brought back.

    Args:
        output: path or URI.
        tables: names of the files of the whole run; what is there of them is fetched, to tell whose it is.
    """
    if not is_remote(output):
        yield Path(output)
        return
    target = Location.of(output)
    with tempfile.TemporaryDirectory(prefix="tiramisu-") as name:
        folder = Path(name)
        before = {}
        for known in (FILE, *tables):
            with contextlib.suppress(ImageError, OSError):
                (folder / known).write_bytes(target.child(known).read())
                before[known] = file_digest(folder / known)
        try:
            yield folder
        finally:
            for file in sorted(folder.iterdir()):
                if file.is_file() and file_digest(file) != before.get(file.name):
                    target.child(file.name).write(file)


def run_on_cluster(
    work: Work,
    entries: Iterable["RemoteEntry"],
    folder: OutputFolder,
    journal: Journal,
    address: str | None,
) -> Iterator[Progress]:
    """Segment entries on all nodes of a Ray cluster and yield what became of each.

    A node that dies costs time only: what it was doing is done again elsewhere.

    Args:
        work: what every worker must know.
        entries: to segment.
        folder: of the journal and the tables, which knows the names of the results.
        journal: of the output.
        address: of the cluster; none takes the one that RAY_ADDRESS names, or starts one on this machine.

    Raises:
        ConfigError: the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns of what is meant here
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # By default Ray would look for a cluster that was once started here, and wait minutes for one that was killed.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    check_address(address)
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--ray_address {address}: no Ray cluster there ({str(error).splitlines()[0]})") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    reference = ray.put(work)
    try:
        waiting = iter(entries)
        while wave := list(itertools.islice(waiting, WAVE)):
            todo = []
            for given, files in zip(wave, look_up(wave, work, folder), strict=True):
                entry = entry_of(given.path, given.name)._replace(file_name=given.file_name)
                record = blank_record(folder, entry, given.stamp)._replace(source=given.path)
                there = [relative for relative, info in files if info.type != FileType.NotFound]
                made = {} if entry.is_video else work.made
                foreign = next((file for file in there if not journal.owns(given.name, file)), None)
                if given.skipped:
                    journal.skip(record._replace(reason=given.problem))
                    yield Progress(entry, "unread", f"{given.path}: {given.problem}")
                elif len(there) == len(files) and journal.finished(given.name, given.path, given.stamp, made):
                    yield Progress(entry, "skipped")
                elif given.problem or foreign:
                    reason = given.problem or f"{Location.of(work.output).child(str(foreign)).path} {FOREIGN}"
                    journal.write(record._replace(reason=reason))
                    yield Progress(entry, "failed", f"{given.path}: {reason}")
                else:
                    journal.start(record, [relative for relative, _ in files])
                    todo.append(given._asdict())
            if not todo:
                continue
            cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
            blocks = max(1, -(-len(todo) // BATCH))
            results = ray.data.from_items(todo, override_num_blocks=blocks).map_batches(
                _RayWorker,
                fn_constructor_args=(reference,),
                batch_size=BATCH,
                num_cpus=1,
                num_gpus=1 if ray.cluster_resources().get("GPU") else 0,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(cpus, blocks))),
            )
            for row in rows_of(results):
                record = decode_record(row["record"])
                journal.write(record)
                entry = entry_of(record.source, record.name)
                reason = f"{record.source}: {record.reason}" if record.reason else ""
                yield Progress(entry, "failed" if record.reason else "done", reason)
    finally:
        ray.shutdown()


def entry_of(path: str, name: str) -> Entry:
    """Return the entry of a path or URI; its path serves to tell videos."""
    return Entry(Path(path.partition("?")[0] if is_remote(path) else path), name)


def look_up(wave: Sequence["RemoteEntry"], work: Work, folder: OutputFolder) -> Iterator[list[tuple[str, FileInfo]]]:
    """Yield, for each entry, the files that would be written, relative to the output, and what is there of them."""
    target = Location.of(work.output)
    names = [[folder.relative(file) for file in folder.files(entry_of(given.path, given.name))] for given in wave]
    paths = [target.child(name).path for name in itertools.chain.from_iterable(names)]
    found = iter(target.system.get_file_info(paths))
    for files in names:
        yield list(zip(files, itertools.islice(found, len(files)), strict=True))


def check_address(address: str) -> None:
    """Knock at an address of the form host:port, since Ray itself would try for minutes.

    Raises:
        ConfigError: nobody answers.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--ray_address {address}: no Ray cluster there ({error})") from error


def rows_of(results: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Ray dataset while it is computed.

    Raises:
        TiramisuError: Ray gave up.
    """
    try:
        yield from results.iter_rows()
    except (RayError, SystemException, ExecutionTimeoutError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise TiramisuError(f"the Ray cluster gave up: {lines[-1]}; run the same command again to go on") from error


class _RayWorker(Worker):
    """A worker whose work comes from the object store."""

    def __init__(self, reference: Any) -> None:
        super().__init__(ray.get(reference) if isinstance(reference, ray.ObjectRef) else reference)


class RemoteEntry(NamedTuple):
    """An image or video on any machine: path or URI, name of its results, stamp; see `Entry` for the rest."""

    path: str
    name: str
    stamp: str
    file_name: str
    problem: str = ""
    skipped: bool = False


def find_entries(inputs: Sequence[str], output: str, reserved: Iterable[str]) -> Iterator[RemoteEntry]:
    """Yield every image and video in local inputs and in folders behind URIs.

    Raises:
        ConfigError: see `find_inputs`.
    """
    local = [given for given in inputs if not is_remote(given)]
    if local:
        folder = None if is_remote(output) else Path(output)
        for entry in find_inputs(local, folder, reserved):
            path, stamp = str(entry.path.absolute()), file_stamp(entry.path)
            yield RemoteEntry(path, entry.name, stamp, entry.file_name, entry.problem, entry.skipped)
    for given in inputs:
        if is_remote(given):
            yield from _find_remote(given, output)


def _find_remote(uri: str, output: str) -> Iterator[RemoteEntry]:
    root = Location.of(uri)
    scheme, query = uri.partition("://")[0], uri.partition("?")[2]
    options = f"?{query}" if query else ""  # such as the region and the endpoint of an object store
    info = root.system.get_file_info(root.path)
    if info.type == FileType.File:
        path = PurePosixPath(root.path)
        yield RemoteEntry(uri, result_names([path.name])[0], _stamp(info), path.name)
        return
    found = root.system.get_file_info(FileSelector(root.path, recursive=True, allow_not_found=True))
    results = PurePosixPath(Location.of(output).path)
    folders: dict[str, list[FileInfo]] = {}
    for info in sorted(found, key=lambda info: info.path):
        path = PurePosixPath(info.path)
        hidden = any(part.startswith(".") for part in path.relative_to(root.path.rstrip("/")).parts)
        if hidden or results in path.parents:
            continue
        if info.type == FileType.File and path.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES | UNREAD:
            folders.setdefault(str(path.parent), []).append(info)
    if not folders:
        raise ConfigError(f"no images at {uri}")
    for folder, files in folders.items():
        inside = PurePosixPath(folder).relative_to(root.path.rstrip("/")).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for info, name in zip(files, result_names([info.base_name for info in files]), strict=True):
            suffix = PurePosixPath(info.path).suffix.lower()
            problem = unread_reason(suffix) if suffix in UNREAD else ""
            where = f"{scheme}://{quote(info.path)}{options}"
            yield RemoteEntry(where, prefix + name, _stamp(info), prefix + info.base_name, problem, bool(problem))


def _stamp(info: FileInfo) -> str:
    return f"{info.size} {info.mtime_ns or 0}"


def is_remote(name: str) -> bool:
    """Tell a URI from a local path."""
    return "://" in name


def read_files(weights: Path) -> dict[str, bytes]:
    """Return the files of weights, to send them to other machines."""
    if weights.is_dir():
        return {file.name: file.read_bytes() for file in sorted(weights.iterdir()) if file.is_file()}
    files = [weights, *([weights.with_suffix(".bin")] if weights.suffix == ".xml" else [])]
    return {file.name: file.read_bytes() for file in files}


def write_files(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write the files of weights into a folder; return what `Segmenter.load` takes."""
    folder.mkdir(parents=True)
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    graphs = [folder / name for name in files if Path(name).suffix in (".onnx", ".xml")]
    return graphs[0] if graphs and len(files) <= 2 else folder
