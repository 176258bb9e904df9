"""For third-party code: orders in which each batch has its share of every domain, or of every class.

All draw from Python's global generator, when they are made too: that is how their length is found out.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from dassl.data.datasets import Datum
from dassl.utils import seeded


class GroupSampler(Sampler[int]):
    """Whole batches of samples that are drawn without replacement, until a group has too few left.

    Args:
        data_source: the samples.
        batch_size: size of the loader's batches.

    Attributes:
        length: number of samples of the first pass, which is drawn when the sampler is made.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int) -> None:
        self.data_source, self.batch_size = data_source, batch_size
        self.prepare()
        self.length = len(list(iter(self)))

    def prepare(self) -> None:
        """Group the samples, and check the sizes."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.length

    def _grouped(self, attribute: str) -> dict[Any, list[int]]:
        """Return the indices of the samples by their domain or label, in the order of first appearance."""
        groups = defaultdict(list)
        for index, item in enumerate(self.data_source):
            groups[getattr(item, attribute)].append(index)
        return groups


class RandomDomainSampler(GroupSampler):
    """Each batch has equally many samples of ``n_domain`` domains, which are drawn anew for each.

    Args:
        data_source: the samples.
        batch_size: size of the loader's batches, a multiple of the number of domains.
        n_domain: domains of a batch; 0 or None: all.

    Raises:
        ValueError: a batch cannot be divided among so many domains.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_domain: int | None = None) -> None:
        self.n_domain = n_domain or 0
        super().__init__(data_source, batch_size)

    def prepare(self) -> None:
        """Group by domain."""
        self.domain_dict = self._grouped("domain")
        self.domains = list(self.domain_dict)
        self.n_domain = self.n_domain if self.n_domain > 0 else len(self.domains)
        if self.batch_size % self.n_domain or self.n_domain > len(self.domains):
            raise ValueError(
                f"batches of {self.batch_size} cannot be divided among {self.n_domain} of {len(self.domains)} domains "
                "(DATALOADER.TRAIN_X.BATCH_SIZE, N_DOMAIN)"
            )
        self.n_img_per_domain = self.batch_size // self.n_domain
        fewest = min(self.domains, key=lambda domain: len(self.domain_dict[domain]))
        if len(self.domain_dict[fewest]) < self.n_img_per_domain:
            raise ValueError(
                f"domain {fewest} has {len(self.domain_dict[fewest])} images, fewer than its {self.n_img_per_domain} of "
                f"a batch of {self.batch_size} (DATALOADER.TRAIN_X.BATCH_SIZE)"
            )

    def chosen_domains(self) -> list[int]:
        """Return the domains of the next batch."""
        return random.sample(self.domains, self.n_domain)

    def __iter__(self) -> Iterator[int]:
        left = {domain: list(indices) for domain, indices in self.domain_dict.items()}
        order: list[int] = []
        while all(len(indices) >= self.n_img_per_domain for indices in left.values()):
            for domain in self.chosen_domains():
                drawn = random.sample(left[domain], self.n_img_per_domain)
                order.extend(drawn)
                taken = set(drawn)
                left[domain] = [index for index in left[domain] if index not in taken]
        return iter(order)


class SeqDomainSampler(RandomDomainSampler):
    """Each batch has equally many samples of all domains, one domain after the other.

    Args:
        data_source: the samples.
        batch_size: size of the loader's batches, a multiple of the number of domains.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int) -> None:
        super().__init__(data_source, batch_size)

    def prepare(self) -> None:
        """Group by domain, in the order of their numbers."""
        super().prepare()
        self.domains.sort()

    def chosen_domains(self) -> list[int]:
        """Return all domains."""
        return self.domains


class RandomClassSampler(GroupSampler):
    """Each batch has ``n_ins`` samples of each of its classes; a class that has fewer repeats some.

    Args:
        data_source: the samples.
        batch_size: size of the loader's batches.
        n_ins: samples of a class.

    Raises:
        ValueError: a batch is smaller than that, or needs more classes than there are.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_ins: int) -> None:
        self.n_ins = n_ins
        super().__init__(data_source, batch_size)

    def prepare(self) -> None:
        """Group by label."""
        self.index_dic = self._grouped("label")
        self.labels = list(self.index_dic)
        self.ncls_per_batch = self.batch_size // self.n_ins
        if not 1 <= self.ncls_per_batch <= len(self.labels):
            raise ValueError(
                f"batches of {self.batch_size} with {self.n_ins} samples of each class have {self.ncls_per_batch} of "
                f"{len(self.labels)} classes (DATALOADER.TRAIN_X.BATCH_SIZE, N_INS)"
            )

    def __iter__(self) -> Iterator[int]:
        left = {label: self._portions(indices) for label, indices in self.index_dic.items()}
        available, order = list(self.labels), []
        while len(available) >= self.ncls_per_batch:
            for label in random.sample(available, self.ncls_per_batch):
                order.extend(left[label].pop(0))
                if not left[label]:
                    available.remove(label)
        return iter(order)

    def _portions(self, indices: list[int]) -> list[list[int]]:
        """Shuffle the samples of a class and deal them out by ``n_ins``."""
        dealt = list(indices)
        if len(dealt) < self.n_ins:
            dealt = np.random.choice(dealt, size=self.n_ins, replace=True).tolist()  # noqa: NPY002
        random.shuffle(dealt)
        return [dealt[start : start + self.n_ins] for start in range(0, len(dealt) - self.n_ins + 1, self.n_ins)]


class EpochGroupSampler(Sampler[int]):
    """A group sampler whose order is a function of (seed, pass).

    Args:
        make: makes the sampler.
        clock: an ``EpochClock``.
    """

    def __init__(self, make: Callable[[], GroupSampler], clock: Any) -> None:
        self.clock = clock
        with seeded(clock.seed_for("order")):
            self.sampler = make()

    def __iter__(self) -> Iterator[int]:
        self.clock.tick()
        with seeded(self.clock.seed_for("order")):
            return iter(list(self.sampler))

    def __len__(self) -> int:
        return len(self.sampler)


def build_group_sampler(
    name: str, data_source: Sequence[Datum], batch_size: int, n_domain: int, n_ins: int, clock: Any = None
) -> Sampler:
    """Return the sampler of a name, whose order follows ``clock`` where there is one; see ``build_sampler``."""
    makers = {
        "RandomDomainSampler": lambda: RandomDomainSampler(data_source, batch_size, n_domain),
        "SeqDomainSampler": lambda: SeqDomainSampler(data_source, batch_size),
        "RandomClassSampler": lambda: RandomClassSampler(data_source, batch_size, n_ins),
    }
    return makers[name]() if clock is None else EpochGroupSampler(makers[name], clock)
