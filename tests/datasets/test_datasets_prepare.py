"""`python -m datasets.prepare` against a server on this machine that serves made archives, and misbehaves."""

import hashlib
import io
import json
import logging
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import TREES, WNIDS, jpeg
from scipy.io import savemat
from torchvision.datasets import imagenet

from dassl.data.datasets import DATASET_REGISTRY
from datasets import archives, catalogue, fetch, imagenet_archives, prepare
from datasets.fewshot import Counts
from datasets.sources import Download, Part

pytestmark = pytest.mark.usefixtures("heard")


class Server(ThreadingHTTPServer):
    """Files by path; `cuts` breaks the connection after half of what was asked, so many times."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, int] = {}
        self.ranges = True
        self.asked: list[tuple[str, str, str]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def _head(self) -> bytes | None:
        path, span = self.path.lstrip("/"), self.headers.get("Range", "")
        self.server.asked.append((self.command, path, span))
        if path not in self.server.files:
            self.send_error(404)
            return None
        body = self.server.files[path]
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and self.server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.end_headers()
        return body[start:]

    def do_HEAD(self):
        self._head()

    def do_GET(self):
        body = self._head()
        path = self.path.lstrip("/")
        if body is None:
            return
        if self.server.cuts.get(path, 0) > 0:
            self.server.cuts[path] -= 1
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(fetch, "RETRIES", 0)
    monkeypatch.setattr(fetch, "TIMEOUT", 5.0)


def zipped(folder: Path, top: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, os.path.join(top, path.relative_to(folder)))
    return buffer.getvalue()


def tarred(folder: Path, top: str, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        archive.add(folder, top)
    return buffer.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def archive(tmp_path_factory) -> bytes:
    """EuroSAT's archive, made; padded, because gdown keeps whole blocks of half a megabyte."""
    source = tmp_path_factory.mktemp("source")
    TREES["EuroSAT"](source)
    (source / "eurosat/2750/padding.bin").write_bytes(bytes(3 << 20))
    return zipped(source / "eurosat/2750", "2750")


@pytest.fixture
def eurosat(monkeypatch, server, archive):
    """EuroSAT with its sources on the server; returns a function that sets the mirrors."""
    kind = DATASET_REGISTRY.get("EuroSAT")
    monkeypatch.setattr(kind, "counts", Counts(3, 15, 6, 9))
    server.files["good.zip"] = archive

    def mirrors(*downloads: Download, **options) -> None:
        monkeypatch.setattr(kind, "parts", (Part("images", ("2750",), downloads, **options),))

    mirrors(Download(server.url("good.zip"), "EuroSAT.zip", md5(archive), {"2750": "2750"}))
    return mirrors


def run(root: Path, *arguments: str, name: str = "eurosat") -> int:
    return prepare.main([name, "--root", str(root), *arguments])


def resumed(server: Server) -> bool:
    """Somebody asked for the rest of a file, from a place in its middle."""
    return any(method == "GET" and span.removeprefix("bytes=").rstrip("-") > "0" for method, _, span in server.asked)


def left_over(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "eurosat").iterdir())


def test_fetched_verified_unpacked_and_shown(tmp_path, server, eurosat, archive, caplog):
    caplog.set_level(logging.INFO)
    assert run(tmp_path) == 0
    assert left_over(tmp_path) == ["2750"]
    assert f"images: {prepare.human(len(archive))}, {server.url('good.zip')}" in caplog.text
    assert f"To fetch: {prepare.human(len(archive))}; free" in caplog.text
    assert "15/15" in caplog.text
    server.asked.clear()
    assert run(tmp_path) == 0
    assert server.asked == []
    assert "everything is there" in caplog.text


def test_dry_run_fetches_nothing(tmp_path, server, eurosat):
    assert run(tmp_path, "--dry-run") == 1
    assert {method for method, _, _ in server.asked} == {"HEAD"}
    assert not (tmp_path / "eurosat").exists()


def test_archives_are_kept_when_asked(tmp_path, eurosat):
    assert run(tmp_path, "--keep-archives") == 0
    assert left_over(tmp_path) == ["2750", "EuroSAT.zip"]


def test_connection_cut_in_the_middle_is_resumed_at_once(tmp_path, server, eurosat, monkeypatch):
    monkeypatch.setattr(fetch, "RETRIES", 2)
    server.cuts["good.zip"] = 1
    assert run(tmp_path) == 0
    assert resumed(server)
    assert left_over(tmp_path) == ["2750"]


def test_interrupted_run_goes_on_where_it_stopped(tmp_path, server, eurosat):
    server.cuts["good.zip"] = 1
    assert run(tmp_path) == 1
    assert left_over(tmp_path) == [fetch.DOWNLOADS]
    assert not resumed(server)
    assert run(tmp_path) == 0
    assert resumed(server)
    assert left_over(tmp_path) == ["2750"]


def test_server_that_cannot_resume_is_asked_for_the_whole_file(tmp_path, server, eurosat):
    server.ranges = False
    server.cuts["good.zip"] = 1
    assert run(tmp_path) == 1
    assert run(tmp_path) == 0
    assert left_over(tmp_path) == ["2750"]


def test_dead_first_mirror(tmp_path, server, eurosat, archive, caplog):
    dead = Download("http://127.0.0.1:9/EuroSAT.zip", "EuroSAT.zip", md5(archive), {"2750": "2750"})
    gone = Download(server.url("gone.zip"), "EuroSAT.zip", md5(archive), {"2750": "2750"})
    good = Download(server.url("good.zip"), "EuroSAT.zip", md5(archive), {"2750": "2750"})
    eurosat(dead, gone, good)
    assert run(tmp_path) == 0
    assert "http://127.0.0.1:9/EuroSAT.zip: " in caplog.text
    assert "gone.zip: 404" in caplog.text


def test_wrong_digest_everywhere(tmp_path, server, eurosat, archive, caplog):
    server.files["bad.zip"] = archive[:-1] + b"x"
    eurosat(
        Download(server.url("bad.zip"), "EuroSAT.zip", md5(archive), {"2750": "2750"}),
        by_hand="EuroSAT.zip from a friend into {folder}",
    )
    assert run(tmp_path) == 1
    assert f"what came has not the MD5 sum {md5(archive)}" in caplog.text
    assert f"by hand: EuroSAT.zip from a friend into {tmp_path}/eurosat" in caplog.text
    assert left_over(tmp_path) == []


def test_wrong_digest_then_a_good_mirror(tmp_path, server, eurosat, archive):
    server.files["bad.zip"] = b"x" * len(archive)
    eurosat(
        *(Download(server.url(file), "EuroSAT.zip", md5(archive), {"2750": "2750"}) for file in ("bad.zip", "good.zip"))
    )
    assert run(tmp_path) == 0


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("a.zip", b"<html>moved</html>", "is no zip archive"),
        ("a.tar.gz", b"<html>moved</html>", "is no tar archive"),
        ("a.json", b"<html>moved</html>", "is not JSON"),
        ("a.mat", b"<html>moved</html>", "is no MATLAB file"),
        ("a.txt", b"  <html>moved</html>", "is a web page"),
        ("a.txt", b"n01440764 tench", ""),
        ("a.json", b"{}", ""),
        ("a.mat", b"MATLAB 5.0 MAT-file", ""),
    ],
)
def test_files_without_a_digest_must_be_what_their_names_say(tmp_path, file, content, fault):
    (tmp_path / file).write_bytes(content)
    assert fetch.verify(str(tmp_path / file)) == fault


def test_archive_put_there_by_hand_is_used_and_stays(tmp_path, server, eurosat, archive):
    eurosat(Download("http://127.0.0.1:9/EuroSAT.zip", "EuroSAT.zip", md5(archive), {"2750": "2750"}))
    (tmp_path / "eurosat").mkdir()
    (tmp_path / "eurosat/EuroSAT.zip").write_bytes(archive)
    assert run(tmp_path) == 0
    assert left_over(tmp_path) == ["2750", "EuroSAT.zip"]


def test_archive_put_there_by_hand_for_a_later_mirror_is_used_before_any_network(tmp_path, server, eurosat, archive):
    first = Download(server.url("first.zip"), "first.zip", md5(archive), {"2750": "2750"})
    eurosat(first, Download("http://127.0.0.1:9/EuroSAT.zip", "EuroSAT.zip", md5(archive), {"2750": "2750"}))
    server.files["first.zip"] = archive
    (tmp_path / "eurosat").mkdir()
    (tmp_path / "eurosat/EuroSAT.zip").write_bytes(archive)
    assert run(tmp_path) == 0
    assert [path for method, path, _ in server.asked if method == "GET"] == []
    shutil.rmtree(tmp_path / "eurosat/2750")
    (tmp_path / "eurosat/EuroSAT.zip").write_bytes(b"half")  # not usable: then the mirrors
    assert run(tmp_path) == 0
    assert "first.zip" in [path for method, path, _ in server.asked if method == "GET"]


def test_wrong_archive_put_there_by_hand_is_said(tmp_path, eurosat, caplog):
    (tmp_path / "eurosat").mkdir()
    (tmp_path / "eurosat/EuroSAT.zip").write_bytes(b"half")
    assert run(tmp_path) == 1
    assert f"{tmp_path}/eurosat/EuroSAT.zip is there but has not the MD5 sum" in caplog.text


def test_archive_with_other_contents(tmp_path, server, eurosat, archive, caplog):
    eurosat(Download(server.url("good.zip"), "EuroSAT.zip", md5(archive), {"EuroSAT_RGB": "2750"}))
    assert run(tmp_path) == 1
    assert "holds no EuroSAT_RGB; at its top there is: 2750" in caplog.text
    assert not (tmp_path / "eurosat/2750").exists()


def test_archive_in_an_archive(tmp_path, server, eurosat, tmp_path_factory):
    inside = tmp_path_factory.mktemp("inside")
    (inside / "images/Forest").mkdir(parents=True)
    (inside / "images/Forest/1.jpg").write_bytes(jpeg())
    outer = tmp_path_factory.mktemp("outer")
    (outer / "set").mkdir()
    (outer / "set/images.tar.gz").write_bytes(tarred(inside / "images", "images"))
    server.files["nested.zip"] = zipped(outer)
    eurosat(Download(server.url("nested.zip"), "nested.zip", moves={"set/images.tar.gz!images": "2750"}))
    run(tmp_path)
    assert (tmp_path / "eurosat/2750/Forest/1.jpg").read_bytes() == jpeg()


def test_escaping_archives_stay_inside(tmp_path, server, eurosat, tmp_path_factory, caplog):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("../../escaped")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    server.files["evil.tar"] = buffer.getvalue()
    eurosat(Download(server.url("evil.tar"), "evil.tar", moves={"2750": "2750"}))
    assert run(tmp_path) == 1
    assert not list(tmp_path.rglob("escaped"))
    assert "evil.tar cannot be unpacked" in caplog.text


def _tar(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, 3 if kind == tarfile.REGTYPE else 0
    return member


def _zip(*members: tuple[str, int]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, mode in members:
            info = zipfile.ZipInfo("x")
            info.filename, info.external_attr = name, mode << 16
            archive.writestr(info, b"abc")
    return buffer.getvalue()


GOOD = "2750/a.jpg"
NAMES = [
    "../escaped",
    "a/../../escaped",
    "/tmp/escaped_absolute",
    "..",
    "a\\..\\..\\escaped",
    "C:/escaped",
    "\\\\host\\share",
]
LINK, DEVICE, PIPE = 0o120777, 0o020666, 0o010666
UNSAFE = {
    **{f"tar {name}": ("evil.tar", _tar(_member(GOOD), _member(name))) for name in NAMES},
    **{f"zip {name}": ("evil.zip", _zip((GOOD, 0), (name, 0))) for name in NAMES},
    "tar link outside": ("evil.tar", _tar(_member(GOOD), _member("2750/l", tarfile.SYMTYPE, "../../outside"))),
    "tar absolute link": ("evil.tar", _tar(_member(GOOD), _member("2750/l", tarfile.SYMTYPE, "/etc/passwd"))),
    "tar hard link outside": ("evil.tar", _tar(_member(GOOD), _member("2750/l", tarfile.LNKTYPE, "../outside"))),
    "tar device": ("evil.tar", _tar(_member(GOOD), _member("2750/d", tarfile.CHRTYPE))),
    "tar pipe": ("evil.tar", _tar(_member(GOOD), _member("2750/d", tarfile.FIFOTYPE))),
    "zip link": ("evil.zip", _zip((GOOD, 0), ("2750/l", LINK))),
    "zip device": ("evil.zip", _zip((GOOD, 0), ("2750/d", DEVICE))),
    "zip pipe": ("evil.zip", _zip((GOOD, 0), ("2750/d", PIPE))),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_archives_are_refused_whole(tmp_path, case):
    file, content = UNSAFE[case]
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / file).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(fetch.FetchError, match=rf"{file} cannot be unpacked \(its member .+\); delete it"):
        fetch.unpack(str(folder / file), {"2750": "2750"}, str(folder))
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/escaped_absolute").exists()


@pytest.mark.parametrize(("limit", "said"), [("MAX_MEMBERS", "more than 2 members"), ("SMALL", "decompression bomb")])
@pytest.mark.parametrize("kind", ["bomb.zip", "bomb.tar.gz"])
def test_what_is_unpacked_is_bounded(tmp_path, monkeypatch, limit, said, kind):
    monkeypatch.setattr(archives, limit, 2)
    (tmp_path / "many/2750").mkdir(parents=True)
    for number in range(3):
        (tmp_path / f"many/2750/{number}").write_bytes(bytes(1 << 20))
    path = tmp_path / kind
    if kind.endswith("zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted((tmp_path / "many").rglob("[0-9]")):
                archive.write(file, f"2750/{file.name}")
    else:
        path.write_bytes(tarred(tmp_path / "many", "."))
    with pytest.raises(fetch.FetchError, match=said):
        fetch.unpack(str(path), {"2750": "2750"}, str(tmp_path))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([kind, "many"])


def test_a_download_without_a_checksum_is_recorded_on_first_use(tmp_path, server, eurosat, archive, caplog):
    caplog.set_level(logging.INFO)
    place = tmp_path / "eurosat"
    eurosat(Download(server.url("good.zip"), "EuroSAT.zip", "", {"2750": "2750"}))
    assert prepare.main(["eurosat", "--root", str(tmp_path)]) == 0
    digest = hashlib.sha256(archive).hexdigest()
    (entry,) = json.loads((place / "downloads.json").read_text()).values()
    assert (entry["file"], entry["bytes"], entry["sha256"]) == ("EuroSAT.zip", len(archive), digest)
    assert f"SHA-256 {digest}, recorded on first use" in caplog.text

    shutil.rmtree(place / "2750")
    assert prepare.main(["eurosat", "--root", str(tmp_path)]) == 0  # the same file again
    assert f"SHA-256 {digest}, as on first use" in caplog.text
    shutil.rmtree(place / "2750")
    (place / "other").mkdir()
    (place / "other/a.jpg").write_bytes(b"other")
    server.files["good.zip"] = zipped(place / "other", "2750")
    caplog.clear()
    assert prepare.main(["eurosat", "--root", str(tmp_path)]) == 1
    assert f"is another file ({len(server.files['good.zip']):,} bytes" in caplog.text
    assert not (place / "2750").exists()
    (place / "downloads.json").write_text("{")
    assert prepare.main(["eurosat", "--root", str(tmp_path)]) == 1
    assert "downloads.json is damaged" in caplog.text


def test_plain_http_is_tried_over_https_first(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fetch, "_download", lambda url, path, progress: asked.append(url) or fetch._raise(url))
    part = Part("images", ("2750",), (Download("http://example.org/a.zip", "a.zip"), Download("drive:1", "b.zip")))
    monkeypatch.setattr(fetch, "_raise", lambda url: (_ for _ in ()).throw(fetch.FetchError(url)), raising=False)
    with pytest.raises(fetch.FetchError):
        fetch.obtain(part, str(tmp_path))
    assert [url.partition(":")[0] for url in asked] == ["https", "http", "https"]
    assert asked[:2] == ["https://example.org/a.zip", "http://example.org/a.zip"]


def test_part_that_can_be_done_without(tmp_path, server, eurosat, archive, monkeypatch, caplog):
    images = DATASET_REGISTRY.get("EuroSAT").parts[0]
    split = Part("split file", ("s.json",), (Download(server.url("none.json"), "s.json"),), needed=False)
    monkeypatch.setattr(DATASET_REGISTRY.get("EuroSAT"), "parts", (images, split))
    assert run(tmp_path) == 0
    assert "(can do without) no split file" in caplog.text


def test_part_made_needless_by_another(tmp_path, server, eurosat, monkeypatch):
    images = DATASET_REGISTRY.get("EuroSAT").parts[0]
    lists = Part("lists", ("l.txt",), (Download(server.url("l.txt"), "l.txt"),), unless="2750")
    monkeypatch.setattr(DATASET_REGISTRY.get("EuroSAT"), "parts", (images, lists))
    assert run(tmp_path) == 0
    assert not any(method == "GET" and path == "l.txt" for method, path, _ in server.asked)


def test_names(tmp_path, capsys):
    for name, message in (("eurosta", "eurosat"), ("OwnData", "not fetched from anywhere")):
        with pytest.raises(SystemExit) as stop:
            run(tmp_path, name=name)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_every_benchmark_declares_where_it_comes_from(tmp_path):
    for name in catalogue.benchmarks():
        dataset = catalogue.located(catalogue.configuration(name, str(tmp_path)))
        for part in dataset.parts:
            assert part.gives
            assert part.downloads or part.by_hand
            for download in part.downloads:
                assert fetch.address(download).startswith("http")
                if download.moves:
                    assert set(download.moves.values()) <= set(part.gives)
                else:
                    assert (download.file,) == part.gives
            assert "{" not in fetch._by_hand(part, "FOLDER", [])


def test_class_names_from_imagenet_or_from_installed_packages(tmp_path, monkeypatch, caplog):
    part = DATASET_REGISTRY.get("ImageNetA").parts[0]
    monkeypatch.setattr(fetch, "address", lambda download: "http://127.0.0.1:9/classnames.txt")
    folder = tmp_path / "imagenet-adversarial"
    fetch.obtain(part, str(folder), progress=False)
    names = (folder / "classnames.txt").read_text().splitlines()
    assert len(names) == 1000
    assert names[0] == "n01440764 tench"
    (folder / "classnames.txt").unlink()
    TREES["ImageNet"](tmp_path)
    fetch.obtain(part, str(folder), progress=False)
    assert len((folder / "classnames.txt").read_text().splitlines()) == 4


def test_imagenet_needs_an_account(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(fetch, "address", lambda download: "http://127.0.0.1:9/classnames.txt")
    assert run(tmp_path, name="imagenet") == 1
    assert f"ILSVRC2012_img_train.tar from image-net.org (needs an account) into {tmp_path}/imagenet" in caplog.text


@pytest.fixture
def imagenet_archives_by_hand(tmp_path, monkeypatch) -> Path:
    """The three official archives for four classes of made images, as torchvision expects them."""
    source = tmp_path / "source"
    TREES["ImageNet"](source)
    folder = tmp_path / "imagenet"
    folder.mkdir()
    train = tmp_path / "train"
    train.mkdir()
    for wnid in WNIDS:
        images = source / "imagenet/images/train" / wnid
        with tarfile.open(train / f"{wnid}.tar", "w") as archive:
            for path in sorted(images.iterdir()):
                archive.add(path, path.name)
    val = tmp_path / "val"
    val.mkdir()
    for number in range(8):
        (val / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(jpeg(number))
    devkit = tmp_path / "ILSVRC2012_devkit_t12"
    (devkit / "data").mkdir(parents=True)
    rows = [(index, wnid, wnid, "words", 0) for index, wnid in enumerate(WNIDS[::-1], 1)]
    kind = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    savemat(devkit / "data/meta.mat", {"synsets": np.array(rows, dtype=kind)})
    labels = "\n".join(str(number % 4 + 1) for number in range(8))
    (devkit / "data/ILSVRC2012_validation_ground_truth.txt").write_text(labels + "\n")
    contents = {
        "train": tarred_files(train),
        "val": tarred_files(val),
        "devkit": tarred(devkit, "ILSVRC2012_devkit_t12"),
    }
    meta = {}
    for key, content in contents.items():
        file = imagenet.ARCHIVE_META[key][0]
        (folder / file).write_bytes(content)
        meta[key] = (file, md5(content))
    monkeypatch.setattr(imagenet, "ARCHIVE_META", meta)
    return folder


def tarred_files(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return buffer.getvalue()


def test_imagenet_from_archives_fetched_by_hand(imagenet_archives_by_hand, monkeypatch):
    folder = imagenet_archives_by_hand
    monkeypatch.setattr(fetch, "address", lambda download: "http://127.0.0.1:9/classnames.txt")
    monkeypatch.setattr(DATASET_REGISTRY.get("ImageNet"), "counts", Counts(4, 80, 0, 8))
    assert run(folder.parent, name="imagenet") == 0
    assert sorted(path.name for path in (folder / "images/train").iterdir()) == WNIDS
    found = {path.name: path.parent.name for path in (folder / "images/val").glob("*/*")}
    assert found["ILSVRC2012_val_00000000.JPEG"] == WNIDS[3]
    assert found["ILSVRC2012_val_00000005.JPEG"] == WNIDS[2]


def test_flat_validation_folder_is_sorted_and_goes_on_after_an_interruption(imagenet_archives_by_hand, monkeypatch):
    folder = imagenet_archives_by_hand
    flat = folder / "images/val"
    flat.mkdir(parents=True)
    (folder / imagenet.ARCHIVE_META["val"][0]).unlink()
    for number in range(8):
        (flat / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(jpeg(number))
    real, moved = os.rename, []

    def interrupted(source: str, target: str) -> None:
        if len(moved) == 3:
            raise KeyboardInterrupt
        moved.append(source)
        real(source, target)

    monkeypatch.setattr(imagenet_archives.os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imagenet_archives.unpack_val(str(folder))
    monkeypatch.setattr(imagenet_archives.os, "rename", real)
    assert imagenet_archives.unpack_val(str(folder))
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["val"]
    found = {path.name: path.parent.name for path in flat.glob("*/*")}
    assert len(found) == 8
    assert found["ILSVRC2012_val_00000000.JPEG"] == WNIDS[3]
    assert not (folder / imagenet.META_FILE).exists()
