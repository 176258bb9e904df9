"""Where weights come from: file formats, damaged files, downloads that are cut off, OpenAI's surface."""

import hashlib
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from clip_models import SENTENCES, VIT, WRITERS, random_state, write_torchscript
from PIL import Image

import clip
from clip.clip import _MODELS, _download, build_model, locate
from clip.loading import load_backbone
from clip.weight_files import read_state_dict
from clip.weights import CARRIED_MODELS, OPENAI_MODELS, download


@pytest.fixture(scope="module")
def state():
    return random_state(VIT)


@pytest.fixture(scope="module", params=WRITERS)
def file(request, state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / request.param
    WRITERS[request.param](state, path)
    return path


def test_every_format_gives_the_same_tensors(file, state):
    read = read_state_dict(file)
    for key, value in state.items():
        assert torch.equal(read[key].float(), value), key
    assert set(read) - set(state) <= {"input_resolution", "context_length", "vocab_size"}


def test_every_format_loads(file, state):
    model, preprocess = clip.load(str(file), device="cpu")
    reference = build_model(dict(state)).float()
    tokens = clip.tokenize(SENTENCES)
    with torch.no_grad():
        assert torch.equal(model.encode_text(tokens), reference.encode_text(tokens))
    assert preprocess(Image.new("L", (50, 40))).shape == (3, 32, 32)
    assert load_backbone(str(file)).image_size == 32


def test_truncated_file_is_named(file, tmp_path):
    data = file.read_bytes()
    for keep in (0, 10, len(data) // 2, len(data) - 100):
        cut = tmp_path / f"{keep}{file.suffix}"
        cut.write_bytes(data[:keep])
        with pytest.raises(ValueError, match=rf"{cut} is damaged or no \w+ file: .+") as said:
            read_state_dict(cut)
        assert len(str(said.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"<html>404 Not Found</html>", b"\x00" * 1000, b"PK\x03\x04" + b"x" * 500])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_files_are_named(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} is damaged or no \w+ file: .+") as said:
        read_state_dict(path)
    assert len(str(said.value).splitlines()) == 1
    assert "`False`" not in str(said.value)  # no advice to load it all the same


def test_pickled_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit",))

    path = tmp_path / "trap.pt"
    torch.save({"state_dict": Trap()}, path)
    with pytest.raises(ValueError, match=str(path)):
        read_state_dict(path)


def test_file_without_tensors(tmp_path):
    path = tmp_path / "numbers.pt"
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="no state dict of tensors"):
        read_state_dict(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        read_state_dict(tmp_path / "absent.pt")


def test_another_architecture_is_named(tmp_path):
    path = tmp_path / "resnet18.pt"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}, path)
    with pytest.raises(ValueError, match=rf"{path}.*not the weights of an OpenAI CLIP"):
        load_backbone("ViT-B/16", str(path))


# downloads from a server of our own


class _Server(ThreadingHTTPServer):
    """Serves one content at any address; `limit` cuts answers off, `pause` slows down, `ranges` allows resuming."""

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.limit, self.pause, self.ranges, self.asked = content, None, 0.0, True, []

    def url(self, digest: str | None = None, name: str = "model.pt") -> str:
        return f"http://127.0.0.1:{self.server_port}/{digest or hashlib.sha256(self.content).hexdigest()}/{name}"

    def handle_error(self, request, client_address):
        """A client that goes away is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        body = server.content[start:][: server.limit]
        for i in range(0, len(body), 1 << 16):
            self.wfile.write(body[i : i + (1 << 16)])
            time.sleep(server.pause)

    def log_message(self, *args):
        """Nothing: the test reads `asked`."""


@pytest.fixture
def server():
    with _Server(torch.arange(500_000, dtype=torch.int32).numpy().tobytes()) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_download_and_cache(server, tmp_path):
    path = Path(_download(server.url(), str(tmp_path / "cache")))
    assert path == tmp_path / "cache" / "model.pt"
    assert path.read_bytes() == server.content
    assert download(server.url(), tmp_path / "cache") == str(path)
    assert server.asked == [None]  # the second time nothing is asked
    assert [file.name for file in path.parent.iterdir() if not file.name.startswith(".")] == ["model.pt"]


def test_cache_folder_of_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "elsewhere"))
    assert Path(_download(server.url())).parent == tmp_path / "elsewhere"


def test_cut_off_download_resumes(server, tmp_path):
    server.limit = 700_000
    with pytest.raises(RuntimeError, match=r"run again to resume.*put it at .*model\.pt.*CLIP_CACHE"):
        download(server.url(), tmp_path)
    assert not (tmp_path / "model.pt").exists()
    assert (tmp_path / "model.pt.part").stat().st_size == 700_000
    server.limit = None
    assert Path(download(server.url(), tmp_path)).read_bytes() == server.content
    assert server.asked == [None, "bytes=700000-"]
    assert not (tmp_path / "model.pt.part").exists()


def test_killed_download_resumes(server, tmp_path, repo_root):
    server.pause = 0.05
    code = "import sys; from clip.weights import download; download(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, server.url(), str(tmp_path)], cwd=repo_root, stderr=subprocess.DEVNULL
    )
    part, deadline = tmp_path / "model.pt.part", time.monotonic() + 240  # the start alone takes long on a busy machine
    while not (part.is_file() and part.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "model.pt").exists()
    have = part.stat().st_size
    assert 0 < have < len(server.content)
    server.pause = 0.0
    assert Path(download(server.url(), tmp_path)).read_bytes() == server.content
    assert server.asked == [None, f"bytes={have}-"]


def test_server_that_does_not_resume(server, tmp_path):
    (tmp_path / "model.pt.part").write_bytes(b"something else")
    server.ranges = False
    assert Path(download(server.url(), tmp_path)).read_bytes() == server.content


def test_complete_part_file_is_taken(server, tmp_path):
    (tmp_path / "model.pt.part").write_bytes(server.content)
    assert Path(download(server.url(), tmp_path)).read_bytes() == server.content


def test_wrong_digest(server, tmp_path):
    with pytest.raises(RuntimeError, match="its sha256 is not 000"):
        download(server.url("0" * 64), tmp_path)
    assert not (tmp_path / "model.pt").exists()
    assert not (tmp_path / "model.pt.part").exists()


def test_damaged_cache_file_is_replaced(server, tmp_path, caplog):
    (tmp_path / "model.pt").write_bytes(server.content[:1000])
    download(server.url(), tmp_path)
    assert "does not have the digest" in caplog.text
    assert (tmp_path / "model.pt").read_bytes() == server.content


def test_concurrent_downloads_share_one(server, tmp_path):
    server.pause = 0.005
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(download(server.url(), tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [str(tmp_path / "model.pt")] * 3
    assert (tmp_path / "model.pt").read_bytes() == server.content
    assert server.asked == [None]


def test_offline_says_what_to_put_where(tmp_path):
    with _Server(b"") as closed:
        url = closed.url("a" * 64)
    with pytest.raises(RuntimeError, match=rf"could not download {url}.*put it at {tmp_path}/model.pt.*CLIP_CACHE"):
        download(url, tmp_path)
    with pytest.raises(ConnectionError):  # what train.py answers with its sentence
        download(url, tmp_path)


# OpenAI's surface


def test_names():
    names = clip.available_models()
    assert names == list(_MODELS)
    assert {"RN50", "ViT-B/16", "ViT-L/14@336px"} <= set(names)
    assert set(names[9:]) == set(CARRIED_MODELS)
    for name in CARRIED_MODELS:  # third-party trainers look up a name and download what they find
        assert _download(_MODELS[name]) == locate(name)
    for url in OPENAI_MODELS.values():
        digest = url.split("/")[-2]
        assert len(digest) == 64
        assert set(digest) <= set("0123456789abcdef")


def test_named_model_comes_from_the_download_folder(server, tmp_path, monkeypatch, state):
    write_torchscript(state, tmp_path / "source.pt")
    server.content = (tmp_path / "source.pt").read_bytes()
    monkeypatch.setitem(_MODELS, "ViT-B/16", server.url(name="ViT-B-16.pt"))
    model, _ = clip.load("ViT-B/16", device="cpu", download_root=str(tmp_path / "root"))
    assert model.visual.input_resolution == 32
    assert load_backbone("ViT-B/16", str(tmp_path / "root")).embed_dim == 32
    assert server.asked == [None]


def test_unknown_name():
    with pytest.raises(ValueError, match=r"'ViT-B/61'; did you mean 'ViT-B/16'\?.*RN50x64"):
        locate("ViT-B/61")
    with pytest.raises(ValueError, match="jit=True"):
        clip.load("ViT-B/16", jit=True)
