"""Fetching and unpacking: mirrors in order, downloads that resume, checksums, everything whole or not at all.

Files without a published checksum are compared with what they were on first use; plain http is tried over https first.

The work is done by gdown (http and Google Drive, with progress and resume) and torchvision (checksums, archives).
"""

import glob
import json
import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import replace

from dassl.utils.files import NO_ROOM, beside, remove_leftovers

from .archives import DAMAGE, extract
from .first_use import ChangedDownloadError, verify_first_use
from .sources import Download, Part

logger = logging.getLogger(__name__)

DOWNLOADS = ".downloads"  # in the data set's folder: files that are not whole or not verified yet
RETRIES = 2  # of one mirror, after a lost connection
TIMEOUT = 30.0  # seconds without an answer
LOCAL = ("http://127.0.0.1", "http://localhost")  # served by this machine itself


class FetchError(ValueError):
    """Something could not be fetched; the message says why."""


def is_ready(part: Part, folder: str) -> bool:
    """Whether there is nothing to do for `part`."""
    if part.unless and os.path.exists(os.path.join(folder, part.unless)):
        return True
    return all(glob.glob(os.path.join(glob.escape(folder), pattern)) for pattern in part.gives)


def address(download: Download) -> str:
    """The address of a download that gdown and people understand."""
    drive, _, key = download.url.partition("drive:")
    return download.url if drive or not key else f"https://drive.google.com/uc?id={key}"


def _secure_first(downloads: Iterable[Download]) -> list[Download]:
    """The same places, those of plain http over https before."""
    found = []
    for download in downloads:
        if download.url.startswith("http://") and not download.url.startswith(LOCAL):
            found.append(replace(download, url=download.url.replace("http://", "https://", 1)))
        found.append(download)
    return found


def size_of(part: Part) -> int | None:
    """Bytes that the first mirror which answers announces; None if none does (Google Drive never does)."""
    import requests

    for download in _secure_first(part.downloads):
        if download.url.startswith("drive:"):
            continue
        try:
            with requests.head(download.url, allow_redirects=True, timeout=TIMEOUT / 3) as answer:
                if answer.ok and answer.headers.get("Content-Length", "").isdigit():
                    return int(answer.headers["Content-Length"])
        except requests.RequestException:
            continue
    return None


def obtain(part: Part, folder: str, progress: bool = True, keep_archives: bool = False) -> None:
    """Put `part` in place in the data set's `folder`: from what lies there, else from its mirrors in order.

    Raises FetchError saying what each mirror answered and what to do by hand.
    """
    if is_ready(part, folder):
        return
    os.makedirs(folder, exist_ok=True)
    answers = []
    if part.make is not None:
        try:
            if part.make(folder):
                return
        except (OSError, ValueError, RuntimeError) as error:
            answers.append(str(error))
    downloads = _secure_first(part.downloads)
    placed_first = sorted(downloads, key=lambda download: not os.path.isfile(os.path.join(folder, download.file)))
    for download in placed_first:
        try:
            by_hand = os.path.isfile(os.path.join(folder, download.file))
            path = _fetch(download, folder, progress)
            if download.moves:
                unpack(path, download.moves, folder)
                if not (keep_archives or by_hand):
                    os.remove(path)
            return
        except FetchError as error:
            logger.warning("%s: %s", address(download), error)
            answers.append(f"{address(download)}: {error}")
    if part.fallback is not None and part.fallback(folder):
        return
    raise FetchError(_by_hand(part, folder, answers))


def _by_hand(part: Part, folder: str, answers: list[str]) -> str:
    """What went wrong and what a person can do about it."""
    what = part.by_hand.format(folder=folder)
    if not what:
        file = part.downloads[0].file
        what = f"fetch {file} elsewhere, put it in {folder} and run this again"
    return "\n    ".join([f"no {part.what} ({', '.join(part.gives)})", *answers, f"by hand: {what}"])


def _fetch(download: Download, folder: str, progress: bool) -> str:
    """The verified file of a download: one that lies in `folder` already, else fetched. FetchError without one."""
    placed = os.path.join(folder, download.file)
    if os.path.isfile(placed):
        fault = _fault(placed, download, folder)
        if not fault:
            return placed
        raise FetchError(f"{placed} is there but {fault}; delete it")
    waiting = os.path.join(folder, DOWNLOADS, download.file)
    os.makedirs(os.path.dirname(waiting), exist_ok=True)
    try:
        _download(address(download), waiting, progress)
        fault = _fault(waiting, download, folder)
        if fault:
            os.remove(waiting)
            raise FetchError(f"what came {fault}")
        os.replace(waiting, placed)
    finally:
        if not os.listdir(os.path.dirname(waiting)):
            os.rmdir(os.path.dirname(waiting))
    return placed


def _fault(path: str, download: Download, folder: str) -> str:
    """What is wrong with a fetched file ("" if nothing): its checksum, or its kind and that it is as on first use."""
    fault = verify(path, download.md5)
    if fault or download.md5:
        return fault
    try:
        verify_first_use(path, address(download).replace("http://", "https://", 1), folder)
    except ChangedDownloadError as error:
        return str(error)
    return ""


def _download(url: str, path: str, progress: bool) -> None:
    """Let gdown fetch `url`; what an earlier attempt got is resumed, or dropped if the server cannot do that."""
    import gdown
    import requests

    def attempt() -> None:
        gdown.download(url, path, quiet=not progress, resume=True, retries=RETRIES, timeout=TIMEOUT, use_cookies=False)

    failures = (requests.RequestException, gdown.DownloadError, gdown.FileURLRetrievalError, OSError)
    begun = glob.glob(f"{glob.escape(path)}????????.part")
    try:
        attempt()
        return
    except failures as error:
        reason = error
    if begun and isinstance(reason, gdown.DownloadError):
        for part in begun:
            os.remove(part)
        try:
            attempt()
            return
        except failures as error:
            reason = error
    raise FetchError(str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__) from reason


def verify(path: str, md5: str = "") -> str:
    """What is wrong with a fetched file ("" if nothing): its MD5 sum, or without one its kind."""
    from torchvision.datasets.utils import check_integrity

    if md5:
        return "" if check_integrity(path, md5) else f"has not the MD5 sum {md5}"
    if path.endswith(".zip"):
        return "" if zipfile.is_zipfile(path) else "is no zip archive"
    if path.endswith((".tar", ".tar.gz", ".tgz")):
        return "" if tarfile.is_tarfile(path) else "is no tar archive"
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
        if path.endswith(".mat"):
            return "" if start.startswith(b"MATLAB") else "is no MATLAB file"
        if path.endswith(".json"):
            file.seek(0)
            try:
                json.load(file)
            except ValueError:
                return "is not JSON"
            return ""
    return "is a web page" if start.startswith(b"<") else ""


def unpack(archive: str, moves: dict[str, str], folder: str) -> None:
    """Unpack beside, then rename each path of `moves` to its place in `folder`; what is there already stays.

    `a.tar.gz!b` is `b` of the archive `a.tar.gz` inside. Raises FetchError for an archive that is damaged or holds
    other things.
    """
    logger.info("Unpacking %s", archive)
    remove_leftovers(folder)
    unpacked = beside(os.path.join(folder, "unpacked"))
    os.mkdir(unpacked)
    try:
        extract(archive, unpacked)
        for source, target in moves.items():
            outer, _, inner = source.partition("!")
            path = os.path.join(unpacked, outer)
            if inner and os.path.isfile(path):
                extract(path, f"{path}.contents")
                path = os.path.join(f"{path}.contents", inner)
            if not os.path.exists(path):
                top = ", ".join(sorted(os.listdir(unpacked))[:5])
                raise FetchError(f"{archive} holds no {source}; at its top there is: {top}")
            place = os.path.join(folder, target)
            if not os.path.exists(place):
                os.replace(path, place)
    except FetchError:
        raise
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise FetchError(f"{folder}: {error.strerror}: make room for {archive}, and run this again") from error
        raise FetchError(f"{archive} cannot be unpacked ({error}); delete it and run this again") from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
