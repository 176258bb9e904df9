"""What a data set is: lists of labelled files, and the few-shot and base/new selections from them.

The module path and the private attribute names of :class:`Datum` are a contract: pickled few-shot draws refer to them.
"""

import logging
import os
import random
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from dassl.utils import check_availability, download_url

logger = logging.getLogger(__name__)


class MissingFileError(FileNotFoundError, AssertionError):
    """A data set names a file that is not there.  (Also an AssertionError, which is what Dassl raises here.)"""


class Datum:
    """One sample: a file, its label, its domain and the name of its class.

    Args:
        impath: path of an existing file.
        label: class number, from 0.
        domain: number of the domain.
        classname: name of the class.

    Raises:
        MissingFileError: ``impath`` is no file.
    """

    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = "") -> None:
        assert isinstance(impath, str), f"impath must be a string, got {impath!r}"
        if not os.path.isfile(impath):
            raise MissingFileError(f'No file found at "{impath}" (check DATASET.ROOT and the list of files)')
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        """Path of the file."""
        return self._impath

    @property
    def label(self) -> int:
        """Class number."""
        return self._label

    @property
    def domain(self) -> int:
        """Domain number."""
        return self._domain

    @property
    def classname(self) -> str:
        """Name of the class."""
        return self._classname

    def __repr__(self) -> str:
        return f"Datum(impath={self.impath!r}, label={self.label}, domain={self.domain}, classname={self.classname!r})"


class DatasetBase:
    """Lists of :class:`Datum` for training (labelled, unlabelled), validation and test.

    A subclass finds its files, then calls this constructor.

    Raises:
        ValueError: there is no training data.
    """

    dataset_dir = ""  # name of the folder below DATASET.ROOT
    domains: Sequence[str] = ()
    same_names: Sequence[str] = ()  # names that several classes have in the published list
    draw_source: str | None = None  # of few-shot lists: "rule", "list", or "stored": a stored draw, not the rule's
    wrong_labels = 0  # how many training images were given the label of another class
    full_split_hash: str | None = None  # SHA-256 of the whole split, before shots and classes are selected from it

    def __init__(
        self,
        train_x: list[Datum] | None = None,
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ) -> None:
        check_labels(type(self).__name__, train_x, val=val, test=test)
        assert train_x is not None
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    @property
    def train_x(self) -> list[Datum]:
        """Labelled training data."""
        return self._train_x

    @property
    def train_u(self) -> list[Datum] | None:
        """Unlabelled training data."""
        return self._train_u

    @property
    def val(self) -> list[Datum] | None:
        """Validation data."""
        return self._val

    @property
    def test(self) -> list[Datum] | None:
        """Test data."""
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class name of each label."""
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        """Class names in the order of their labels."""
        return self._classnames

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Iterable[Datum]) -> int:
        """Return the largest label plus one."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Iterable[Datum]) -> tuple[dict[int, str], list[str]]:
        """Return the class name of each label, and the names in the order of the labels."""
        names = {item.label: item.classname for item in data_source}
        return names, [names[label] for label in sorted(names)]

    def check_input_domains(self, source_domains: Sequence[str], target_domains: Sequence[str]) -> None:
        """Raise a ValueError unless all these domains are domains of the data set."""
        self.is_input_domain_valid(source_domains)
        self.is_input_domain_valid(target_domains)

    def is_input_domain_valid(self, input_domains: Sequence[str]) -> None:
        """Raise a ValueError unless each domain is one of the data set's."""
        for domain in input_domains:
            check_availability(domain, list(self.domains), f"domain of {type(self).__name__}")

    def generate_fewshot_dataset(
        self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False
    ) -> list[Datum] | list[list[Datum]] | tuple[list[Datum], ...]:
        """Draw ``num_shots`` samples of each class, from Python's global generator.

        Classes come in the order of their first appearance, one source after the other, so the draw is a function of the
        state of :mod:`random` and the order of the lists.

        Args:
            data_sources: one or more lists.
            num_shots: samples per class; below 1 the sources come back unchanged.
            repeat: draw with replacement from a class that has too few; else such a class is taken whole.

        Returns:
            The few-shot list; a list of them for several sources.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        logger.info("Creating a %d-shot dataset", num_shots)
        drawn = [draw_shots(data_source, num_shots, repeat) for data_source in data_sources]
        return drawn[0] if len(drawn) == 1 else drawn

    def split_dataset_by_label(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Group by label, in the order of first appearance."""
        return _by_label(data_source)

    def split_dataset_by_domain(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Group by domain, in the order of first appearance."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups

    def download_data(self, url: str, dst: str, from_gdrive: bool = True) -> None:
        """Download ``url`` to ``dst`` and, if it is an archive, unpack it beside itself.

        Args:
            url: what to fetch.
            dst: the file to write.
            from_gdrive: fetch with gdown, which has to be installed.
        """
        os.makedirs(os.path.dirname(dst) or ".", exist_ok=True)
        if from_gdrive:
            import gdown

            gdown.download(url, dst, quiet=False)
        else:
            download_url(url, dst)
        if dst.endswith((".zip", ".tar", ".tar.gz", ".tgz")):
            logger.info("Extracting %s", dst)
            shutil.unpack_archive(dst, os.path.dirname(dst) or ".", filter=None if dst.endswith(".zip") else "data")


def draw_shots(data_source: Iterable[Any], num_shots: int, repeat: bool = False) -> list[Any]:
    """Return the few-shot list of one source; see :meth:`DatasetBase.generate_fewshot_dataset`."""
    return [item for items in _by_label(data_source).values() for item in _draw(items, num_shots, repeat)]


def _by_label(data_source: Iterable[Any]) -> dict[int, list[Any]]:
    groups = defaultdict(list)
    for item in data_source:
        groups[item.label].append(item)
    return groups


def _draw(items: list[Datum], num_shots: int, repeat: bool) -> list[Datum]:
    """Draw from one class."""
    if len(items) >= num_shots:
        return random.sample(items, num_shots)
    return random.choices(items, k=num_shots) if repeat else items


def subsample_classes(*splits: list[Datum] | None, subsample: str = "all") -> list[list[Datum] | None]:
    """Keep the base or the new half of the classes, relabelled from 0.

    The labels of the first split are sorted; the first ``ceil(n / 2)`` are base, the others new.

    Args:
        splits: lists of samples (None stays None).
        subsample: ``"all"`` (the lists come back as they are), ``"base"`` or ``"new"``.
    """
    check_availability(subsample, ["all", "base", "new"], "value of DATASET.SUBSAMPLE_CLASSES")
    if subsample == "all":
        return list(splits)
    logger.info("SUBSAMPLE %s CLASSES!", subsample.upper())
    first = splits[0]
    assert first is not None, "the first list says which classes there are"
    labels = sorted({item.label for item in first})
    middle = (len(labels) + 1) // 2
    kept = labels[:middle] if subsample == "base" else labels[middle:]
    relabel = {old: new for new, old in enumerate(kept)}
    return [split if split is None else _relabelled(split, relabel) for split in splits]


def _relabelled(split: list[Datum], relabel: dict[int, int]) -> list[Datum]:
    """Return the samples whose label is in ``relabel``, with their new labels."""
    return [
        Datum(impath=item.impath, label=relabel[item.label], domain=item.domain, classname=item.classname)
        for item in split
        if item.label in relabel
    ]


def check_labels(dataset: str, train_x: list[Datum] | None, **others: list[Datum] | None) -> None:
    """Raise a ValueError without training data; warn of labels that look like a mistake.

    These are training labels other than 0..C-1, labels of another split that are not among them, and a label that goes
    by different names.  They draw warnings only, because some protocols test on other classes than they train on.
    """
    if not train_x:
        raise ValueError(f"{dataset}: there is no training data (train_x is empty)")
    names, _ = DatasetBase.get_lab2cname(train_x)
    missing = sorted(set(range(max(names) + 1)) - set(names))
    doubts = [f"training labels should be 0..C-1; they lack {missing[:10]}"] if missing else []
    for split, items in others.items():
        outside = sorted({item.label for item in items or ()} - set(names))
        if outside:
            doubts.append(f"{split} has labels {outside[:10]} that are not among the {len(names)} of training")
    clash = class_name_clash(train=train_x, **others)
    for doubt in [*doubts, clash] if clash else doubts:
        warnings.warn(f"{dataset}: {doubt}", stacklevel=3)


def class_name_clash(**splits: Any) -> str:
    """Return a sentence naming the first label that goes by two class names, within a split or between splits; else ``""``."""
    names: dict[int, tuple[str, str]] = {}
    for split, items in splits.items():
        for item in items or ():
            where, name = names.setdefault(item.label, (split, item.classname))
            if name != item.classname:
                return f'label {item.label} is "{name}" in {where} but "{item.classname}" in {split} ({item.impath})'
    return ""
