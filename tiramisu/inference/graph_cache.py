"""A cache of the graphs that OpenVINO and ONNX Runtime need, made from weights at first use."""

import atexit
import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
from pathlib import Path

import tiramisu
from tiramisu.files import atomic_folder, user_cache
from tiramisu.inference.engines import OPENVINO_GRAPH
from tiramisu.weights import content_hash, read_config

KEEP = 8  # graphs; each is as large as its weights


def cached_graph(weights: Path, name: str, anew: bool = False) -> Path:
    """Return a graph made from a folder of weights, from the cache where it is there.

    Args:
        weights: folder of weights.
        name: file name of the graph, which tells its kind.
        anew: make it again, because what is in the cache is damaged.

    Raises:
        WeightsError: the weights are missing or damaged.
    """
    cache = cache_folder()
    folder = cache / fingerprint(weights, name)
    if (folder / name).is_file() and not anew:
        with contextlib.suppress(OSError):
            os.utime(folder)
        return folder / name
    from tiramisu.inference.graphs import write_onnx, write_openvino
    from tiramisu.models import load_network

    kind = "OpenVINO" if name == OPENVINO_GRAPH else "ONNX Runtime"
    print(f"Preparing the network for {kind}; this happens once.", file=sys.stderr)
    network = load_network(weights)
    write = write_openvino if name == OPENVINO_GRAPH else write_onnx
    try:
        with atomic_folder(folder) as staging:
            write(network, staging / name)
        prune(cache)
    except OSError:  # no room, or a home that cannot be written
        folder = Path(tempfile.mkdtemp(prefix="tiramisu-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        write(network, folder / name)
    return folder / name


def cache_folder() -> Path:
    """Return the folder of cached graphs."""
    return user_cache() / "graphs"


def fingerprint(weights: Path, name: str) -> str:
    """Return what tells one graph from all others: weights, configuration, kind, and what made it.

    Raises:
        WeightsError: the weights are missing.
    """
    read_config(weights)  # says what is missing
    digest = hashlib.sha256(f"{content_hash(weights)} {name} {importlib.metadata.version('torch')}".encode())
    package = Path(tiramisu.__file__).parent
    for source in (*sorted((package / "models").glob("*.py")), package / "inference" / "graphs.py"):
        digest.update(source.read_bytes())  # a new way to compute, at the same version of tiramisu
    return digest.hexdigest()[:32]


def prune(cache: Path) -> None:
    """Remove all graphs but the last used ones."""
    folders = [folder for folder in cache.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    with contextlib.suppress(OSError):  # another process may prune too
        for folder in sorted(folders, key=lambda folder: -folder.stat().st_mtime)[KEEP:]:
            shutil.rmtree(folder, ignore_errors=True)
