"""Unpacking of archives: nothing lands outside the folder, and no more than an archive of data sets can hold.

Tar and zip files are held to the same rules. A member with an absolute name or with `..`, a link that leads out of the
folder, a device or a pipe, or more members or bytes than the limits allow: the whole archive is refused, and the member
is named.
"""

import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

MAX_MEMBERS = 3_000_000  # ImageNet's training images are 1.3 million
MAX_BYTES = 400 << 30  # unpacked; those are 138 GiB
MAX_RATIO = 200  # unpacked to packed bytes, above `SMALL`; images hardly shrink, text tenfold
SMALL = 1 << 30  # bytes that any archive may unpack to
_DRIVE = re.compile(r"[A-Za-z]:")  # of Windows


DAMAGE = (  # what damaged archives are answered with
    *(OSError, EOFError, RuntimeError, ValueError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


class UnsafeArchiveError(ValueError):
    """An archive that would write outside its folder, or fill the disk."""


class _Budget:
    """Counts members and bytes of one archive."""

    def __init__(self, archive: str):
        self.packed = os.path.getsize(archive)
        self.members = self.unpacked = 0

    def take(self, name: str, size: int) -> None:
        """Count a member.

        Raises:
            UnsafeArchiveError: its name leads elsewhere, or it is too much.
        """
        self.members += 1
        self.unpacked += size
        parts = name.replace("\\", "/").split("/")
        if not name or parts[0] == "" or _DRIVE.match(name) or ".." in parts or "\0" in name:
            raise UnsafeArchiveError(f"its member {name!r} leads out of the folder")
        if self.members > MAX_MEMBERS:
            raise UnsafeArchiveError(f"it has more than {MAX_MEMBERS:,} members")
        if self.unpacked > min(MAX_BYTES, max(SMALL, MAX_RATIO * self.packed)):
            raise UnsafeArchiveError(
                f"it would unpack to more than {self.unpacked:,} bytes, from {self.packed:,}: a decompression bomb"
            )


def extract(archive: str, folder: str) -> None:
    """Unpack a tar or zip file into a folder, which is made if missing.

    Raises:
        UnsafeArchiveError: it is refused; what was unpacked before that is left in the folder.
        any of `DAMAGE`: it is damaged, or no such archive.
    """
    os.makedirs(folder, exist_ok=True)
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            _extract_tar(tar, folder, _Budget(archive))
        return
    with zipfile.ZipFile(archive) as opened:
        _check_zip(opened, _Budget(archive))
        opened.extractall(folder)


def _extract_tar(tar: tarfile.TarFile, folder: str, budget: _Budget) -> None:
    """Unpack member by member: what is too much is noticed before it is written."""

    def checked() -> Iterator[tarfile.TarInfo]:
        for member in tar:
            budget.take(member.name, member.size)
            yield member

    try:
        tar.extractall(folder, checked(), filter="data")  # refuses links that lead outside, and devices
    except tarfile.FilterError as error:
        raise UnsafeArchiveError(f"its member {error}") from error


def _check_zip(archive: zipfile.ZipFile, budget: _Budget) -> None:
    for info in archive.infolist():
        budget.take(info.orig_filename, info.file_size)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind and kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise UnsafeArchiveError(f"its member {info.filename!r} is a link or a device")
