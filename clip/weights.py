"""Where weights come from: names, addresses, verified downloads and their folder."""

import hashlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

# Windows has none: there processes that download the same file at once are not kept apart
fcntl = import_module("fcntl") if find_spec("fcntl") else None

logger = logging.getLogger(__name__)

_HOST = "https://openaipublic.azureedge.net/clip/models"
_CHUNK = 1 << 20

OPENAI_MODELS = {
    name: f"{_HOST}/{digest}/{file}"
    for name, digest, file in (
        ("RN50", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", "RN50.pt"),
        ("RN101", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", "RN101.pt"),
        ("RN50x4", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd", "RN50x4.pt"),
        ("RN50x16", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa", "RN50x16.pt"),
        ("RN50x64", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c", "RN50x64.pt"),
        ("ViT-B/32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"),
        ("ViT-B/16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"),
        ("ViT-L/14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"),
        (
            "ViT-L/14@336px",
            "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
            "ViT-L-14-336px.pt",
        ),
    )
}


class DownloadError(RuntimeError, ConnectionError):
    """Weights could not be fetched; the sentence says what to put where."""


CARRIED_MODELS = {"tiny-ViT": Path(__file__).parent / "checkpoints" / "tiny-ViT.pt"}


def default_cache() -> Path:
    """Folder of downloaded weights: `$CLIP_CACHE`, else `~/.cache/clip` (where OpenAI's package keeps them)."""
    return Path(os.environ.get("CLIP_CACHE") or Path.home() / ".cache" / "clip").expanduser()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, root: str | Path | None = None) -> str:
    """Path of the verified local copy of `.../<sha256>/<file>`, downloaded if it is not there yet.

    A download that was cut off is resumed from its `.part` file; the final name appears only after the digest agrees.

    Raises:
        DownloadError: no connection, or the digest is wrong; the sentence says what to put where.
    """
    digest, name = url.rsplit("/", 2)[-2:]
    target = Path(root).expanduser() / name if root else default_cache() / name
    if target.is_file() and _sha256(target) == digest:
        return str(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_process(target.with_name(f".{name}.lock")):
        if target.is_file():  # another process may have been faster
            if _sha256(target) == digest:
                return str(target)
            logger.warning("%s does not have the digest of %s: downloading it again", target, url)
        _download_to(target, url, digest)
    return str(target)


@contextmanager
def _only_process(path: Path) -> Iterator[None]:
    """Wait until no other process holds this lock file; the system frees it when its holder ends, however it ends."""
    with open(path, "w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download_to(target: Path, url: str, digest: str) -> None:
    part = target.with_name(target.name + ".part")
    try:
        _fetch(url, part)
    except (OSError, HTTPException) as error:
        raise DownloadError(
            f"could not download {url} ({error}). Fetch that file on a machine with a connection and put it at "
            f"{target}, or name the file as the path of the backbone, or its folder in the environment variable "
            "CLIP_CACHE"
        ) from error
    if _sha256(part) != digest:
        part.unlink()
        raise DownloadError(f"{url} was downloaded, but its sha256 is not {digest}: the file was discarded; try again")
    os.replace(part, target)


def _fetch(url: str, part: Path) -> None:
    """Append what is missing of the address to the part file, with a progress bar."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        source = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # nothing is missing
            return
        raise
    with source:
        if source.status != 206:  # the server does not resume
            have = 0
        total = have + int(source.headers.get("Content-Length", 0))
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm(total=total or None, initial=have, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while chunk := source.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total and part.stat().st_size < total:
        raise OSError(f"the connection ended after {part.stat().st_size} of {total} bytes; run again to resume")
