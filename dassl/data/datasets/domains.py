"""For third-party code: data sets with domains. ``DATASET.SOURCE_DOMAINS`` are trained on, ``TARGET_DOMAINS`` tested.

Each is a folder below ``DATASET.ROOT``, laid out as its class says; nothing is downloaded.  Labels are the positions of the
sorted class folders; images come in the order in which the system lists them, as in Dassl, so that the same disk and the
same seed give the same order.  A data set that a repository registers under one of these names takes its place.
"""

import os
from collections.abc import Iterator, Sequence
from typing import ClassVar

from yacs.config import CfgNode

from dassl.data.datasets.base_dataset import DatasetBase, Datum
from dassl.utils import listdir_nohidden

# of each list: the domains that it is read from, and the parts of them
ADAPTATION = {"train_x": ("source", [""]), "train_u": ("target", [""]), "test": ("target", [""])}
GENERALIZATION = {"train_x": ("source", ["train"]), "val": ("source", ["val"]), "test": ("target", ["train", "val"])}

Row = tuple[str, int]  # path, label


class DomainDataset(DatasetBase):
    """Images at ``<dataset_dir>/<domain>/<part>/<class>/``; without a part, at ``<dataset_dir>/<domain>/<class>/``.

    Class attributes:
        lists: for each list, ``"source"`` or ``"target"``, and the parts of these domains that it consists of.
        lowered: class names are the folder's in lower case.

    Raises:
        FileNotFoundError: a folder or a list of images is missing.
        ValueError: a domain that the data set does not have, or no domain to train on.
    """

    replaceable = True
    lists: ClassVar[dict[str, tuple[str, list[str]]]] = ADAPTATION
    lowered = False

    def __init__(self, cfg: CfgNode) -> None:
        self.dataset_dir = os.path.join(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT)), self.dataset_dir)
        sides = {"source": cfg.DATASET.SOURCE_DOMAINS, "target": cfg.DATASET.TARGET_DOMAINS}
        self.check_input_domains(*sides.values())
        for side, domains in sides.items():
            if not domains:
                raise ValueError(f"DATASET.{side.upper()}_DOMAINS is empty; {cfg.DATASET.NAME} has {list(self.domains)}")
        super().__init__(**{name: self._read(sides[side], parts) for name, (side, parts) in self.lists.items()})

    def _read(self, domains: Sequence[str], parts: Sequence[str]) -> list[Datum]:
        """Return the images of some parts of some domains, which are numbered in the order in which they are given."""
        items = []
        for number, domain in enumerate(domains):
            for path, label in (row for part in parts for row in self.rows(domain, part)):
                name = os.path.basename(os.path.dirname(path))
                name = name.lower() if self.lowered else name
                items.append(Datum(impath=path, label=label, domain=number, classname=name))
        return items

    def rows(self, domain: str, part: str) -> Iterator[Row]:
        """Yield path and label of each image of a part of a domain."""
        folder = os.path.join(self.dataset_dir, self.folder(domain), part)
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"{type(self).__name__}: there is no folder {folder} (DATASET.ROOT)")
        for label, name in enumerate(listdir_nohidden(folder, sort=True)):
            for image in listdir_nohidden(os.path.join(folder, name)):
                yield os.path.join(folder, name, image), label

    def folder(self, domain: str) -> str:
        """Return the name of a domain's folder."""
        return domain


class ListedDataset(DomainDataset):
    """Images that are listed in text files, a line ``<path> <label>`` for each.

    Class attributes:
        image_dir: folder that the paths are relative to.
        first_label: label of the first class in the files.
        damaged: paths that are left out.
    """

    image_dir = ""
    first_label = 0
    damaged: Sequence[str] = ()

    def rows(self, domain: str, part: str) -> Iterator[Row]:
        """Yield path and label of each image of a part of a domain."""
        path = os.path.join(self.dataset_dir, self.list_file(domain, part))
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{type(self).__name__}: there is no list of images {path} (DATASET.ROOT)")
        with open(path, encoding="utf-8") as file:
            rows = [line.split() for line in file if line.strip()]
        for name, label in rows:
            if name not in self.damaged:
                yield os.path.join(self.dataset_dir, self.images_of(domain), name), int(label) - self.first_label

    def list_file(self, domain: str, part: str) -> str:
        """Return the file of a part of a domain, relative to ``dataset_dir``."""
        raise NotImplementedError

    def images_of(self, domain: str) -> str:
        """Return the folder that a domain's paths are relative to."""
        return self.image_dir


class Office31(DomainDataset):
    """Office-31: 31 classes, 3 domains (Saenko et al., ECCV 2010)."""

    dataset_dir = "office31"
    domains = ("amazon", "webcam", "dslr")


class OfficeHome(DomainDataset):
    """Office-Home: 65 classes, 4 domains (Venkateswara et al., CVPR 2017)."""

    dataset_dir = "office_home"
    domains = ("art", "clipart", "product", "real_world")
    lowered = True


class OfficeHomeDG(DomainDataset):
    """Office-Home for domain generalization: ``<domain>/train`` and ``<domain>/val``."""

    dataset_dir = "office_home_dg"
    domains = OfficeHome.domains
    lists = GENERALIZATION
    lowered = True


class DigitsDG(DomainDataset):
    """Digits-DG: 10 classes, 4 domains (Zhou et al., ECCV 2020)."""

    dataset_dir = "digits_dg"
    domains = ("mnist", "mnist_m", "svhn", "syn")
    lists = GENERALIZATION
    lowered = True


class VLCS(DomainDataset):
    """VLCS: 5 classes, 4 domains (Fang et al., ICCV 2013); folders of domains are in capitals."""

    dataset_dir = "VLCS"
    domains = ("caltech", "labelme", "pascal", "sun")
    lists: ClassVar = {"train_x": ("source", ["train"]), "val": ("source", ["crossval"]), "test": ("target", ["test"])}

    def folder(self, domain: str) -> str:
        """Return the name of a domain's folder."""
        return domain.upper()


class PACS(ListedDataset):
    """PACS: 7 classes, 4 domains (Li et al., ICCV 2017); ``images`` and ``splits/<domain>_<part>_kfold.txt``."""

    dataset_dir = "pacs"
    domains = ("art_painting", "cartoon", "photo", "sketch")
    image_dir = "images"
    first_label = 1
    damaged = ("sketch/dog/n02103406_4068-1.png",)
    lists: ClassVar = {
        "train_x": ("source", ["train"]),
        "val": ("source", ["crossval"]),
        "test": ("target", ["train", "crossval"]),
    }

    def list_file(self, domain: str, part: str) -> str:
        """Return the file of a part of a domain."""
        return os.path.join("splits", f"{domain}_{part}_kfold.txt")


class VisDA17(ListedDataset):
    """VisDA-2017: 12 classes, synthetic to real; ``train/image_list.txt`` and ``validation/image_list.txt``."""

    dataset_dir = "visda17"
    domains = ("synthetic", "real")

    def images_of(self, domain: str) -> str:
        """Return the folder of a domain."""
        return "train" if domain == "synthetic" else "validation"

    def list_file(self, domain: str, part: str) -> str:
        """Return the file of a domain."""
        return os.path.join(self.images_of(domain), "image_list.txt")


class DomainNet(ListedDataset):
    """DomainNet: 345 classes, 6 domains (Peng et al., ICCV 2019); ``splits/<domain>_<part>.txt``."""

    dataset_dir = "domainnet"
    domains: Sequence[str] = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    split_dir = "splits"
    lists: ClassVar = {
        "train_x": ("source", ["train"]),
        "train_u": ("target", ["train"]),
        "val": ("source", ["test"]),
        "test": ("target", ["test"]),
    }

    def list_file(self, domain: str, part: str) -> str:
        """Return the file of a part of a domain."""
        return os.path.join(self.split_dir, f"{domain}_{part}.txt")


class miniDomainNet(DomainNet):  # noqa: N801 - its name in configurations
    """A part of DomainNet: 126 classes, 4 domains (Zhou et al., 2021); ``splits_mini/<domain>_<part>.txt``."""

    domains = ("clipart", "painting", "real", "sketch")
    split_dir = "splits_mini"
