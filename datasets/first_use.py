"""What a download was when it was first used: size and SHA-256, for sources that publish no checksum.

They stand in `downloads.json` in the data set's folder, by address, and every later file from there has to agree.
"""

import logging
import os
from datetime import UTC, datetime

from dassl.utils import read_json, write_json
from dassl.utils.file_identity import file_digests

logger = logging.getLogger(__name__)

RECORD = "downloads.json"
MAX_RECORD = 1 << 20  # bytes


class ChangedDownloadError(ValueError):
    """A file is not the one that its source gave on first use, or the record of that is lost."""


def verify_first_use(path: str, address: str, folder: str) -> None:
    """Compare a downloaded file with the record of its address; where there is none, make one and say so.

    Raises:
        ChangedDownloadError: size or digest are others than on first use, or the record is damaged.
    """
    record = _read(os.path.join(folder, RECORD))
    now = {"bytes": os.path.getsize(path), "sha256": file_digests([path])[0]}
    if address not in record:
        first = {"file": os.path.basename(path), **now, "first_used": datetime.now(UTC).isoformat(timespec="seconds")}
        logger.info("%s: %s bytes, SHA-256 %s, recorded on first use", path, f"{now['bytes']:,}", now["sha256"])
        write_json({**record, address: first}, os.path.join(folder, RECORD))
        return
    before = {key: record[address].get(key) for key in now}
    if before != now:
        raise ChangedDownloadError(
            f"is another file ({now['bytes']:,} bytes, SHA-256 {now['sha256'][:12]}) than on first use "
            f"({before['bytes']} bytes, SHA-256 {str(before['sha256'])[:12]}, {os.path.join(folder, RECORD)}): if its "
            "source has changed it, delete that entry"
        )
    logger.info("%s: SHA-256 %s, as on first use", path, now["sha256"])


def _read(path: str) -> dict[str, dict]:
    if not os.path.isfile(path):
        return {}
    try:
        record = read_json(path) if os.path.getsize(path) <= MAX_RECORD else None
    except (OSError, ValueError, RecursionError) as error:
        raise ChangedDownloadError(f"cannot be compared: {path} is damaged ({error}); delete it") from error
    if not isinstance(record, dict) or not all(isinstance(entry, dict) for entry in record.values()):
        raise ChangedDownloadError(f"cannot be compared: {path} is no record of downloads; delete it")
    return record
