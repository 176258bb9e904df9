"""Decoded images, kept in memory that worker processes share."""

import hashlib
import logging
import mmap
import multiprocessing
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from PIL import Image

from dassl.utils import read_image
from dassl.utils.file_identity import file_status

logger = logging.getLogger(__name__)

HEADER = struct.Struct("=QQ")  # where free memory begins, number of images
ENTRY = struct.Struct("=16sQII")  # key, where the pixels begin, width, height
FREE = bytes(16)  # the key of an entry that is not taken
BYTES_PER_SLOT = 4096  # at least half of the slots stay free: room for an image per 8 KiB of memory
LOCK_SECONDS = 1.0


class ImageStore:
    """Decoded RGB images by file, for a process and every process that it forks afterwards.

    Whichever process reads an image first decodes it for all of them.  What is in stays in; what no longer fits is decoded
    each time.  The system hands out the memory as it is filled, not before.  A process that is not forked (Windows,
    macOS) gets no store when one is sent to it.

    Args:
        megabytes: size of the store, from 1 on.

    Attributes:
        megabytes: as given.
        users: who reads from this store and is still there.
    """

    def __init__(self, megabytes: int) -> None:
        self.megabytes = megabytes
        self.users: WeakSet[Any] = WeakSet()
        self._slots = (megabytes << 20) // BYTES_PER_SLOT
        self._pixels = HEADER.size + self._slots * ENTRY.size  # where they begin
        self._memory = mmap.mmap(-1, megabytes << 20)  # header, table, pixels
        self._view = memoryview(self._memory)
        self._lock = multiprocessing.Lock()
        self._stuck = False
        HEADER.pack_into(self._memory, 0, self._pixels, 0)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ImageStore":
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    @property
    def images(self) -> int:
        """Number of images in the store."""
        return HEADER.unpack_from(self._memory)[1]

    @property
    def filled(self) -> float:
        """Share of the memory that is taken, from 0 to 1."""
        return (HEADER.unpack_from(self._memory)[0] - self._pixels) / (len(self._memory) - self._pixels)

    def read(self, path: str, among: int = 1) -> Image.Image:
        """Return an image of one's own, equal to ``read_image(path)``.

        Args:
            path: the image file; one that was written anew is decoded anew.
            among: the image is kept if so many of its size fill no more than half of the store.
        """
        try:
            status = file_status(path)
        except OSError:
            return read_image(path)  # whose error says what is wrong
        key = hashlib.blake2b(repr(status).encode(), digest_size=len(FREE)).digest()
        with self._locked() as locked:
            _, found = self._find(key) if locked else (0, None)
        if found:
            begin, width, height = found
            return Image.frombytes("RGB", (width, height), self._view[begin : begin + 3 * width * height])
        image = read_image(path)
        if 3 * image.width * image.height * among <= len(self._memory) // 2:
            self._keep(key, image)
        return image

    def _keep(self, key: bytes, image: Image.Image) -> None:
        """Take an image in, if it fits and is not in yet."""
        size = 3 * image.width * image.height
        if HEADER.unpack_from(self._memory)[0] + size > len(self._memory):
            return
        pixels = image.tobytes()
        with self._locked() as locked:
            if not locked:
                return
            begin, images = HEADER.unpack_from(self._memory)
            offset, found = self._find(key)
            if found or begin + size > len(self._memory) or 2 * images >= self._slots:
                return
            HEADER.pack_into(self._memory, 0, begin + size, images + 1)
            self._memory[begin : begin + size] = pixels
            ENTRY.pack_into(self._memory, offset, key, begin, image.width, image.height)

    def _find(self, key: bytes) -> tuple[int, tuple[int, int, int] | None]:
        """Return the offset of the entry of ``key``, or of the free one for it; begin, width, height if it is taken."""
        slot = int.from_bytes(key[:8], "little")
        while True:
            offset = HEADER.size + slot % self._slots * ENTRY.size
            taken_by, *place = ENTRY.unpack_from(self._memory, offset)
            if taken_by == key:
                return offset, tuple(place)
            if taken_by == FREE:
                return offset, None
            slot += 1

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the lock for the block; False if it cannot be had, because a process was killed that held it."""
        self._stuck = self._stuck or not self._lock.acquire(timeout=LOCK_SECONDS)
        try:
            yield not self._stuck
        finally:
            if not self._stuck:
                self._lock.release()


_store: ImageStore | None = None


def shared_store(megabytes: int, user: Any) -> ImageStore | None:
    """Return the store of this process, which the runs that follow each other in it share.

    It is replaced by an empty one if it is more than half full and no run uses it any more, so that each run finds room.

    Args:
        megabytes: value of ``DATALOADER.CACHE_MB``; with 0 there is no store.
        user: who will read from it.

    Raises:
        ValueError: ``megabytes`` is negative.
    """
    global _store
    if megabytes < 0:
        raise ValueError(f"DATALOADER.CACHE_MB must be 0 (nothing is kept) or a number of megabytes, not {megabytes}")
    if megabytes == 0:
        return None
    outgrown = _store is not None and not _store.users and _store.filled > 0.5
    if _store is None or outgrown or _store.megabytes != megabytes:
        try:
            _store = ImageStore(megabytes)
        except OSError as error:
            logger.warning("Decoded images are not kept: no %d MB for them (DATALOADER.CACHE_MB): %s", megabytes, error)
            return None
    _store.users.add(user)
    return _store


def log_stored_images() -> None:
    """Log how many decoded images this process and its workers keep in memory, and in how much of it."""
    if _store is not None:
        size = _store.filled * _store.megabytes
        template = "Decoded images in memory: %s, %.1f MB of at most %d (DATALOADER.CACHE_MB)"
        logger.info(template, f"{_store.images:,}", size, _store.megabytes)
