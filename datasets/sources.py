"""Where the files of a data set come from: plain declarations, carried out by `python -m datasets.prepare`."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Download:
    """One place that has a file, and where its contents belong.

    Attributes:
        url: http(s) address, or `drive:<id>` for Google Drive.
        file: name under which it is kept in the data set's folder while it is needed.
        md5: checksum, "" where none is published (the kind of file is verified then).
        moves: for archives, path inside -> path in the data set's folder. `a.tar.gz!b` is `b` in the archive `a.tar.gz`
            inside. Empty for a plain file, which stays where it is.
    """

    url: str
    file: str
    md5: str = ""
    moves: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A piece of a data set, such as its images, its annotations or its split file.

    Attributes:
        what: what it is, in words.
        gives: paths (or patterns) in the data set's folder; if all are there, there is nothing to do.
        downloads: places to fetch it from, tried in order.
        needed: without it the data set cannot be used.
        unless: path in the data set's folder that makes this part needless.
        make: called with the data set's folder before anything is fetched: makes the part from what is there (archives
            fetched by hand, for example) and says whether it could.
        fallback: called with the data set's folder when every download failed: makes the part from other things that
            the machine has and says whether it could.
        by_hand: what to do where fetching fails or needs an account; `{folder}` is the data set's folder.
    """

    what: str
    gives: tuple[str, ...]
    downloads: tuple[Download, ...] = ()
    needed: bool = True
    unless: str = ""
    make: Callable[[str], bool] | None = None
    fallback: Callable[[str], bool] | None = None
    by_hand: str = ""


def split_part(kind: str, drive: str) -> Part:
    """The split file `split_zhou_<kind>.json` on Google Drive; without it the split is made from the raw files."""
    file = f"split_zhou_{kind}.json"
    return Part(
        "split file",
        (file,),
        (Download(f"drive:{drive}", file),),
        needed=False,
        by_hand=f"https://drive.google.com/file/d/{drive} as {{folder}}/{file}; without it a split is made here",
    )
