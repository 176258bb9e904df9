"""From the configuration to the loaders of batches."""

import copy
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch.utils.data import DataLoader, Dataset
from yacs.config import CfgNode

from dassl.config import with_defaults
from dassl.data.datasets import DatasetBase, Datum, build_dataset
from dassl.data.image_store import ImageStore, shared_store
from dassl.data.samplers import EpochClock, build_sampler, keyed_streams, set_stream
from dassl.utils import RUNS_IN_PROCESS, available_cpus, choose_device, on_gpu, read_image, seeded, stream_seed
from dassl.utils.processes import start_loader_worker
from dassl.utils.third_party import names_from

logger = logging.getLogger(__name__)

Transform = Callable[[Any], Any]


class DatasetWrapper(Dataset):
    """A list of :class:`Datum` as a data set of images.

    An item is a dictionary with ``img`` (tensor (3, H, W), the Pillow image if ``transform`` is None, a list if there are
    several augmentations), ``label``, ``domain``, ``impath`` and ``index``; with a list of transforms also ``img2``,
    ``img3``...; with ``DATALOADER.RETURN_IMG0`` also ``img0``, the image without augmentation.

    Decoded images are kept in memory, up to ``DATALOADER.CACHE_MB``: those that are trained on as long as there is room, the
    lists that are only evaluated where half of the room is enough for the whole list.

    Args:
        cfg: nodes ``INPUT`` and ``DATALOADER`` are read.
        data_source: the samples.
        transform: one, or a list of them; may be exchanged later.
        is_train: augment ``DATALOADER.K_TRANSFORMS`` times.
    """

    clock: EpochClock | None = None  # with it, augmentation is a function of (seed, epoch, index)
    images: ImageStore | None = None  # None: every image is decoded each time
    loader: "weakref.ref[DataLoader] | None" = None  # whose workers know this data set as it was

    def __init__(
        self,
        cfg: CfgNode,
        data_source: Sequence[Datum],
        transform: Transform | Sequence[Transform] | None = None,
        is_train: bool = False,
    ) -> None:
        from dassl.data.transforms import build_plain_transform

        self.cfg = cfg = with_defaults(cfg)
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        self.to_tensor = build_plain_transform(cfg)
        self.images = shared_store(cfg.DATALOADER.CACHE_MB, self)
        if self.k_tfm > 1 and transform is None:
            raise ValueError(f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but there is no transform to apply")

    def __setattr__(self, name: str, value: Any) -> None:
        """Exchange something, such as the transform; workers that are kept do not know of it and are ended."""
        super().__setattr__(name, value)
        if self.loader is not None and name != "loader":
            release_workers(self.loader())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "loader"}

    def __deepcopy__(self, memo: dict[int, Any]) -> "DatasetWrapper":
        """Copy, also with a loader around it: workers, which cannot be copied, are ended before."""
        loader = None if self.loader is None else self.loader()
        release_workers(loader)
        other = memo[id(self)] = type(self).__new__(type(self))
        vars(other).update(copy.deepcopy(self.__getstate__(), memo))
        if id(loader) in memo:  # it is being copied
            other.loader = weakref.ref(memo[id(loader)])
        return other

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        return self._item(idx, self.transform)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the items of a batch, the same as one by one; called by PyTorch's loaders.

        Conversion to tensors and normalisation, where these end the transform, are done once for the batch.
        """
        from dassl.data.transforms import split_tensor_steps

        if type(self).__getitem__ is not DatasetWrapper.__getitem__ or self.k_tfm > 1:
            return [self[idx] for idx in indices]
        transform, to_tensors = split_tensor_steps(self.transform)
        items = [self._item(idx, transform) for idx in indices]
        if to_tensors is not None:
            for item, image in zip(items, to_tensors([item["img"] for item in items]), strict=True):
                item["img"] = image
        return items

    def _item(self, idx: int, transform: Transform | Sequence[Transform] | None) -> dict[str, Any]:
        """Return item ``idx`` under a transform."""
        from dassl.data.transforms import draws_from_torch_only

        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        image = self._read(item.impath)
        if self.clock is None:
            output |= self._augment(image, transform)
        else:
            with seeded(self.clock.seed_for("augmentation", idx), torch_only=draws_from_torch_only(transform)):
                output |= self._augment(image, transform)
        if self.return_img0:
            output["img0"] = self.to_tensor(image)
        return output

    def _read(self, path: str) -> Image:
        """Return the Pillow image of a file, decoded now or before."""
        if self.images is None:
            return read_image(path)
        return self.images.read(path, among=1 if self.is_train else len(self))

    def _augment(self, image: Image, transform: Transform | Sequence[Transform] | None) -> dict[str, Any]:
        """Return the entries ``img``, ``img2``... for a Pillow image."""
        if transform is None:
            return {"img": image}
        if not callable(transform):
            names = ["img", *(f"img{number}" for number in range(2, len(transform) + 1))]
            return {name: self._repeated(one, image) for name, one in zip(names, transform, strict=True)}
        return {"img": self._repeated(transform, image)}

    def _repeated(self, transform: Transform, image: Image) -> Any:
        """Transform the image once, or ``k_tfm`` times into a list."""
        return transform(image) if self.k_tfm == 1 else [transform(image) for _ in range(self.k_tfm)]


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Transform | Sequence[Transform] | None = None,
    is_train: bool = True,
    dataset_wrapper: Callable[..., Dataset] | None = None,
    random_streams: str = "global",
) -> DataLoader:
    """Return the loader of ``data_source``.

    Training drops an incomplete last batch, unless it is the only one.  With keyed streams (:mod:`dassl.data.samplers`) no
    more workers are used than there are processors for this run, since their number does not change the batches, and
    nothing is drawn from the global generators; the workers of a training list stay for all passes
    (:func:`release_workers` ends them).  Without, the random numbers are those of a plain ``DataLoader``.

    Raises:
        ValueError: ``data_source`` is empty.
    """
    cfg = with_defaults(cfg)
    if not data_source:
        raise ValueError(f"DATASET.NAME {cfg.DATASET.NAME}: there is nothing to load")
    sampler = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins, random_streams)
    dataset: Any = (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train)
    if hasattr(sampler, "clock"):
        dataset.clock = sampler.clock
    workers, generator = cfg.DATALOADER.NUM_WORKERS, None
    if keyed_streams(cfg, random_streams):
        workers = min(workers, math.ceil(available_cpus() / RUNS_IN_PROCESS.get()))
        generator = torch.Generator().manual_seed(stream_seed(cfg.SEED, "workers")) if cfg.SEED >= 0 else None
    # the clock is in shared memory, so kept workers know which pass it is; a data set of another kind may not say changes
    keeps = workers > 0 and is_train and isinstance(dataset, DatasetWrapper) and dataset.clock is not None
    loader: DataLoader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=on_gpu(choose_device(cfg.USE_CUDA)),
        generator=generator,
        persistent_workers=keeps,
        worker_init_fn=start_loader_worker if workers else None,
    )
    if keeps:
        dataset.loader = weakref.ref(loader)
    return loader


def release_workers(loader: Any) -> None:
    """End the workers that a loader keeps between its passes, if it is one that does; the next pass starts others."""
    if isinstance(loader, DataLoader) and loader.persistent_workers:
        loader._iterator = None  # its end is theirs; PyTorch has no public name for this


class DataManager:
    """The data set of the configuration, with a loader for each of its lists.

    ``train_loader_u`` and ``val_loader`` (and ``test_loader``) are None when the data set has no such list.

    Args:
        cfg: the configuration.
        custom_tfm_train: transform for training, in place of the configured one.
        custom_tfm_test: transform for validation and test.
        dataset_wrapper: class to use in place of :class:`DatasetWrapper`.
        random_streams: ``"keyed"`` or ``"global"``, as :mod:`dassl.data.samplers` explains.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Transform | Sequence[Transform] | None = None,
        custom_tfm_test: Transform | None = None,
        dataset_wrapper: Callable[..., Dataset] | None = None,
        random_streams: str = "global",
    ) -> None:
        cfg = with_defaults(cfg)
        self.dataset: DatasetBase = build_dataset(cfg)
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        common = {"dataset_wrapper": dataset_wrapper, "random_streams": random_streams}
        train = {"is_train": True, "tfm": self._transform(cfg, True, custom_tfm_train), **common}
        test = {"is_train": False, "tfm": self._transform(cfg, False, custom_tfm_test), **common}
        nodes = cfg.DATALOADER
        self.train_loader_x = self._loader(cfg, nodes.TRAIN_X, self.dataset.train_x, **train)
        node_u = nodes.TRAIN_X if nodes.TRAIN_U.SAME_AS_X else nodes.TRAIN_U
        self.train_loader_u = self._loader(cfg, node_u, self.dataset.train_u, **train)
        set_stream(self.train_loader_u, "train_u")
        self.val_loader = self._loader(cfg, nodes.TEST, self.dataset.val, **test)
        self.test_loader = self._loader(cfg, nodes.TEST, self.dataset.test, **test)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    @staticmethod
    def _loader(
        cfg: CfgNode, node: CfgNode, data_source: Sequence[Datum] | None, **settings: Any
    ) -> DataLoader | None:
        """Return the loader of one list by a node of ``DATALOADER``, None for a list that the data set does not have."""
        if not data_source:
            return None
        settings |= {"n_domain": node.get("N_DOMAIN", 0), "n_ins": node.get("N_INS", 0)}
        return build_data_loader(cfg, node.SAMPLER, data_source, node.BATCH_SIZE, **settings)

    @staticmethod
    def _transform(cfg: CfgNode, is_train: bool, custom: Any) -> Any:
        """Return the given transform, or the configured one."""
        from dassl.data.transforms import build_transform

        if custom is None:
            return build_transform(cfg, is_train=is_train)
        logger.info("* Using custom transform for %s", "training" if is_train else "testing")
        return custom

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.dataset.num_classes

    @property
    def num_source_domains(self) -> int:
        """Number of source domains."""
        return self._num_source_domains

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class name of each label."""
        return self.dataset.lab2cname

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Log a table with the sizes of the data set."""
        rows = {"Dataset": cfg.DATASET.NAME}
        for title, domains in (("Source", cfg.DATASET.SOURCE_DOMAINS), ("Target", cfg.DATASET.TARGET_DOMAINS)):
            if domains:
                rows[title] = str(list(domains))
        rows["# classes"] = f"{self.num_classes:,}"
        for split in ("train_x", "train_u", "val", "test"):
            items = getattr(self.dataset, split)
            if items:
                rows[f"# {split}"] = f"{len(items):,}"
        left, right = (max(map(len, column)) for column in (rows, rows.values()))
        rule = f"{'-' * left}  {'-' * right}"
        lines = (f"{name:<{left}}  {value:<{right}}".rstrip() for name, value in rows.items())
        logger.info("%s", "\n".join([rule, *lines, rule]))

__getattr__ = names_from(__name__, dict.fromkeys(("build_transform", "INTERPOLATION_MODES"), "dassl.data.transforms"))
