"""Downloads from a real HTTP server on loopback."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tiramisu.download
from tiramisu.download import camvid_registry, main

FILES = {f"{folder}/{number}.png": f"{folder} {number} ".encode() * 2000 for folder in ("train", "trainannot")
         for number in range(12)}  # fmt: skip


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve files; `misbehave` may answer instead and return True."""

    misbehave: Callable[["Handler"], bool] | None = None
    served: list[str]

    def do_GET(self) -> None:
        type(self).served.append(self.path.lstrip("/"))
        if type(self).misbehave is None or not type(self).misbehave(self):
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Handler]]]:
    root = tmp_path / "server"
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    registry = {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in FILES.items()}
    monkeypatch.setattr(tiramisu.download, "camvid_registry", lambda: registry)
    handler = type("ThisHandler", (Handler,), {"served": [], "misbehave": None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=root)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", handler
        httpd.shutdown()
        thread.join()


def _assert_complete(root: Path) -> None:
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert found == FILES, "every file, and nothing else"


def test_fetches_everything_once(server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, handler = server
    main(["camvid", "--root", str(tmp_path / "data"), "--base_url", url])
    _assert_complete(tmp_path / "data")
    assert "CC BY-NC 4.0" in capsys.readouterr().out
    handler.served.clear()
    main(["camvid", "--root", str(tmp_path / "data"), "--base-url", url])
    assert handler.served == []


def test_what_is_damaged_on_disk_is_fetched_again(server, tmp_path: Path) -> None:
    url, handler = server
    root = tmp_path / "data"
    main(["camvid", f"--root={root}", f"--base-url={url}"])
    (root / "train" / "3.png").write_bytes(b"damaged")
    (root / "train" / "4.png").unlink()
    handler.served.clear()
    main(["camvid", f"--root={root}", f"--base-url={url}"])
    assert sorted(handler.served) == ["train/3.png", "train/4.png"]
    _assert_complete(root)


def _corrupt(handler: Handler) -> bool:
    if handler.path != "/train/3.png":
        return False
    handler.send_response(200)
    handler.send_header("Content-Length", "5")
    handler.end_headers()
    handler.wfile.write(b"wrong")
    return True


def _truncate(handler: Handler) -> bool:
    if handler.path != "/train/3.png":
        return False
    content = FILES["train/3.png"]
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True
    return True


def _missing(handler: Handler) -> bool:
    if handler.path == "/train/3.png":
        handler.send_error(404)
        return True
    return False


@pytest.mark.parametrize(
    ("misbehave", "words"),
    [
        (_corrupt, "content is not what it should be"),
        (_truncate, "connection failed"),
        (_missing, "answered 404"),
    ],
)
def test_a_bad_file_is_named_and_the_others_arrive(
    server, tmp_path: Path, capsys: pytest.CaptureFixture[str], misbehave, words: str
) -> None:
    url, handler = server
    root = tmp_path / "data"
    handler.misbehave = misbehave
    with pytest.raises(SystemExit) as ended:
        main(["camvid", f"--root={root}", f"--base-url={url}"])
    assert ended.value.code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "1 of 24 files" in message and "train/3.png" in message and words in message
    assert not (root / "train" / "3.png").exists()
    assert len([path for path in root.rglob("*") if path.is_file()]) == len(FILES) - 1
    handler.misbehave = None
    main(["camvid", f"--root={root}", f"--base-url={url}"])
    _assert_complete(root)


def test_a_server_that_dies_halfway_costs_only_the_rest(
    server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, handler = server
    root = tmp_path / "data"

    def die(this: Handler) -> bool:
        if len(handler.served) <= 10:
            return False
        this.connection.close()
        return True

    handler.misbehave = die
    with pytest.raises(SystemExit):
        main(["camvid", f"--root={root}", f"--base-url={url}"])
    arrived = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert 8 <= len(arrived) < len(FILES)
    assert "are still missing" in capsys.readouterr().err
    handler.misbehave = None
    handler.served.clear()
    main(["camvid", f"--root={root}", f"--base-url={url}"])
    _assert_complete(root)
    assert set(handler.served) == FILES.keys() - arrived


def test_no_server_at_all_is_told_soon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["camvid", f"--root={tmp_path}", "--base-url=http://127.0.0.1:9"])
    assert "1402 of 1402 files are still missing" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "args",
    [
        ["cityscapes"],
        [],
        ["camvid", "--jobs=0"],
        ["camvid", "--root=/dev/null/x"],
        ["camvid", "--root=x", "--base-url=foo"],
    ],
)
def test_mistakes_are_told_in_one_line(
    args: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code not in (0, None)
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("tiramisu.download: error: ")
    assert not list(tmp_path.iterdir())


def test_the_registry_names_every_file_of_camvid() -> None:
    registry = camvid_registry()
    counts = {folder: sum(name.startswith(f"{folder}/") for name in registry)
              for folder in ("train", "trainannot", "val", "valannot", "test", "testannot")}  # fmt: skip
    assert counts == {
        "train": 367,
        "trainannot": 367,
        "val": 101,
        "valannot": 101,
        "test": 233,
        "testannot": 233,
    }


@pytest.mark.camvid
def test_the_registry_fits_the_real_files(real_camvid: Path) -> None:
    registry = camvid_registry()
    for path in sorted(real_camvid.glob("*/*.png"))[::50]:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert registry[str(path.relative_to(real_camvid))] == f"sha256:{digest}"
