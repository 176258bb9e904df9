"""What the rows of tables and figures are: methods, data sets, pairs of base and new results, and their order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from results.layout import BENCHMARKS, IMAGENET_VARIANTS, ZERO_SHOT
from results.records import Record
from results.statistics import Summary, harmonic_mean, summarise

Method = tuple[str, str, int]  # trainer, configuration, shots


def method_of(record: Record) -> Method:
    """What is averaged over seeds: trainer, configuration (with its variant and its point of a grid) and shots."""
    place = record.place
    return place.trainer, "/".join(filter(None, (place.cfg, place.variant, place.grid))), place.shots


def method_names(methods: Iterable[Method]) -> dict[Method, str]:
    """A name for each method: the trainer, with configuration and shots only where the trainer alone is not enough.

    Of points of one grid, the settings that they differ in are enough.
    """
    methods = list(dict.fromkeys(methods))
    names = {}
    for method in methods:
        trainer, cfg, shots = method
        rivals = [other for other in methods if other[0] == trainer and other != method]
        point = _point(cfg)
        same = all(other[1].removesuffix(_point(other[1])) == cfg.removesuffix(point) for other in rivals)
        extra = [point if point and same else cfg] if any(other[1] != cfg for other in rivals) else []
        extra += [shots_name(shots)] if any(other[2] != shots for other in rivals) else []
        names[method] = f"{trainer} ({', '.join(extra)})" if extra else trainer
    return names


def _point(cfg: str) -> str:
    """The point of a grid in what `method_of` calls a configuration, `OPTIM.LR=0.1`; "" if it is of none."""
    last = cfg.rpartition("/")[2]
    return last if "=" in last else ""


def shots_name(shots: int) -> str:
    """`1 shot`, `2 shots`."""
    return f"{shots} shot{'' if shots == 1 else 's'}"


def in_order(names: Iterable[str], order: Sequence[str] = ()) -> list[str]:
    """Names as in `order`, then data sets as in the papers, then zero-shot, then the rest by the alphabet."""
    ranks = {name: rank for rank, name in enumerate([*order, *BENCHMARKS, *IMAGENET_VARIANTS])}
    return sorted(set(names), key=lambda name: (ranks.get(name, len(ranks)), not name.startswith(ZERO_SHOT), name))


def methods_in_order(methods: Iterable[Method], order: Sequence[str] = ()) -> list[Method]:
    """Methods by their trainers as in `in_order`, then by configuration and shots."""
    methods = set(methods)
    trainers = in_order((trainer for trainer, _, _ in methods), order)
    return sorted(methods, key=lambda method: (trainers.index(method[0]), method))


@dataclass
class Pair:
    """Base and new accuracy of one method on one data set, by seed, where both are there."""

    base: dict[int, float]
    new: dict[int, float]

    @property
    def seeds(self) -> list[int]:
        """Seeds that have both."""
        return sorted(self.base.keys() & self.new.keys())

    def summaries(self) -> list[Summary]:
        """Base, new and harmonic mean over the seeds that have both (at least one)."""
        base = summarise([self.base[seed] for seed in self.seeds])
        new = summarise([self.new[seed] for seed in self.seeds])
        own = [harmonic_mean(self.base[seed], self.new[seed]) for seed in self.seeds]
        return [base, new, summarise(own, mean=harmonic_mean(base.mean, new.mean))]


def pairs_of(records: Iterable[Record]) -> dict[tuple[str, Method], Pair]:
    """Base and new accuracies of sound records by data set and method."""
    pairs: dict[tuple[str, Method], Pair] = {}
    for record in records:
        if record.place.role in ("base", "new"):
            pair = pairs.setdefault((record.place.dataset, method_of(record)), Pair({}, {}))
            if not record.problem:
                getattr(pair, record.place.role)[record.place.seed] = record.accuracy
    return pairs


def few_shot_runs(records: Iterable[Record], role: str = "all") -> list[Record]:
    """Those of a role; of `all`, less those that were trained to be tested on other data sets."""

    def key(record: Record, dataset: str) -> tuple:
        return dataset, method_of(record), record.place.seed

    records = list(records)
    sources = {key(record, record.place.source) for record in records if record.place.role == "transfer"}
    own = [record for record in records if record.place.role == role]
    return [r for r in own if role != "all" or key(r, r.place.dataset) not in sources]


def few_shot_rows(records: Iterable[Record], order: Sequence[str] = (), role: str = "all") -> dict[str, list[Record]]:
    """The runs of few-shot by the rows that they make: one per trainer, for recipes differ by data set and shots.

    Where a trainer has several configurations or variants for one data set and number of shots, each is a row; a point
    of a grid always is.
    """
    runs: dict[str, dict[str, list[Record]]] = {}
    names: dict[str, str] = {}
    for record in few_shot_runs(records, role):
        trainer, config, _ = method_of(record)
        name = f"{trainer} ({record.place.grid})" if record.place.grid else trainer
        names[name] = trainer
        runs.setdefault(name, {}).setdefault(config.removesuffix(f"/{record.place.grid}"), []).append(record)
    rows = {}
    trainers = in_order(names.values(), order)
    for trainer in sorted(runs, key=lambda name: (trainers.index(names[name]), name)):
        by_config = runs[trainer]
        cells = [{(r.place.dataset, r.place.shots) for r in own} for own in by_config.values()]
        if sum(map(len, cells)) == len(set().union(*cells)):
            rows[trainer] = [record for own in by_config.values() for record in own]
        else:
            rows |= {f"{trainer} ({config})": by_config[config] for config in sorted(by_config)}
    return rows
