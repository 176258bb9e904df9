"""Where runs lie below an output folder: the directories of the code family's scripts, built and recognised by the
same templates.

A protocol (`protocols/`) declares the roles of its runs, each with its template.
"""

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# The sets of the base-to-new protocol in the order of the papers' tables, and the four ImageNet variants.
BENCHMARKS = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
)
IMAGENET_VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")

ZERO_SHOT = "Zeroshot"  # how the names of zero-shot CLIP's trainers begin
USUAL_SOURCE = "imagenet"

_PATTERNS = {
    "dataset": r"(?!seed_?\d)[^/]+",  # or a stray seed1_old would be a data set of zero-shot CLIP
    "shots": r"-?\d+",
    "seed": r"-?\d+",
    "zeroshot": rf"{ZERO_SHOT}[^/]*",
    "origin": r"(?:_from_[^/]+)?",
    "variant": r"(?:/[^/]+)?",
}
# the level of a grid's point, above all others: KEY=VALUE, several with commas between
_GRID = r"(?:(?P<grid>[A-Z][A-Z0-9_]*\.[A-Za-z0-9_.]+=[^/]*)/)?"
LONGEST_VALUE = 60  # letters in a directory's name, of which file systems bear 255 bytes


def grid_level(settings: Mapping[str, Any]) -> str:
    """The name of the directory of a grid's point, such as `OPTIM.LR=0.1,TRAINER.APEX.BETA=2`; "" without settings."""
    return ",".join(f"{key}={grid_value(value)}" for key, value in settings.items())


def grid_value(value: Any) -> str:
    """A setting's value as part of a directory's name: the same for values that are equal, such as 1 and 1.0."""
    text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    text = re.sub(r"[^\w.+-]+", "-", text).strip("-") or "none"
    return text if len(text) <= LONGEST_VALUE else f"{text[:40]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def grid_settings(level: str) -> dict[str, str]:
    """The values of a grid's point by key, as `grid_value` writes them, from the name of its directory."""
    return dict(part.split("=", 1) for part in level.split(",")) if level else {}


@dataclass(frozen=True)
class Role:
    """What a run is in its protocol.

    Attributes:
        template: its directory below the output folder, of the fields of `RunDirectory`. `{origin}` stands for the data
            set that was trained on where another one is tested, `{zeroshot}` for a trainer that learns nothing.
        classes: the classes that it is tested on: `base`, `new` or `all`; "" where the template does not say.
        evaluates: the role of the training whose checkpoint it evaluates; "" for one that evaluates nothing else's.
        variant_is: the field of a record that the variant repeats, with `_` for spaces; "" where it repeats none.
        adds_images: whether the data set is that of images of none of the classes, beside those of the training's.
        transductive: whether it looks at all test images before it answers for one.
    """

    template: str
    classes: str = "all"
    evaluates: str = ""
    variant_is: str = ""
    adds_images: bool = False
    transductive: bool = False

    @property
    def part(self) -> str:
        """What of a protocol it belongs to: `test` if it evaluates what another run learned, else `train`."""
        return "test" if self.evaluates else "train"

    @property
    def has_source(self) -> bool:
        """Whether a run tests on another data set than it was trained on."""
        return "{origin}" in self.template

    @property
    def has_variant(self) -> bool:
        """Whether the directory has a level for a variant."""
        return "{variant}" in self.template

    @property
    def trains(self) -> bool:
        """Whether a run learns something."""
        return self.part == "train" and "{zeroshot}" not in self.template


_ROLES: dict[str, Role] = {}


def declare_roles(roles: Mapping[str, Role]) -> None:
    """Make the roles of a protocol known; ValueError for a role that is known as something else."""
    for name, role in roles.items():
        if _ROLES.setdefault(name, role) != role:
            raise ValueError(f"role {name!r} is declared twice, with different directories: {role} and {_ROLES[name]}")
    _recognisers.cache_clear()


def known_roles() -> dict[str, Role]:
    """The roles of all protocols, by name. Importing `protocols` declares them."""
    assert _ROLES, "no protocol has declared its roles: import protocols first"
    return _ROLES


@dataclass(frozen=True)
class RunDirectory:
    """What the directory of a run says about it.

    Attributes:
        role: what it is in its protocol: `base` (trained and tested on base classes), `new` (the same run on new
            classes), `all` (trained and tested on all classes), `transfer` (trained on another set), `zeroshot` (all
            classes, nothing learned), or another one of `known_roles`.
        dataset: name of the data set's configuration file, without its suffix; of the tested one.
        trainer: registered name.
        cfg: name of the method's configuration file, without its suffix.
        shots: training images per class; 0 for zero-shot.
        seed: of the run; 0 where there is none.
        variant: a level of directories of its own: in CoOp's scripts, `nctx16_cscFalse_ctpend`; in protocols with
            several settings, which one (`sym_0.5`); else "".
        source: of a transfer: the data set that was trained on.
        grid: the settings that a sweep over values of keys gave it, `OPTIM.LR=0.1`: the level above all others.
    """

    role: str
    dataset: str
    trainer: str
    cfg: str
    shots: int = 0
    seed: int = 0
    variant: str = ""
    source: str = USUAL_SOURCE
    grid: str = ""

    @property
    def kind(self) -> Role:
        """The role, as its protocol declares it."""
        return known_roles()[self.role]

    @property
    def trained_on(self) -> str:
        """The data set that the run, or the one that it evaluates, was trained on."""
        return self.source if self.kind.has_source else self.dataset

    @property
    def configured(self) -> str:
        """The data set whose configuration file and classes the run has."""
        return self.trained_on if self.kind.adds_images else self.dataset

    def training(self) -> "RunDirectory":
        """The directory of the training whose checkpoint this run evaluates; of itself if it evaluates none."""
        if not self.kind.evaluates:
            return self
        trained = replace(self, role=self.kind.evaluates, dataset=self.trained_on, source=USUAL_SOURCE)
        return trained if trained.kind.has_variant else replace(trained, variant="")

    def path(self) -> str:
        """Directory of the run, relative to the output folder, with `/`."""
        fields = {**vars(self), "zeroshot": self.trainer}
        fields["variant"] = f"/{self.variant}" if self.variant else ""
        fields["origin"] = "" if self.source == USUAL_SOURCE else f"_from_{self.source}"
        path = self.kind.template.format(**fields)
        return f"{self.grid}/{path}" if self.grid else path


def _compile(template: str) -> re.Pattern[str]:
    """The pattern of the directories that a template makes, at the end of a path."""
    parts = re.split(r"\{(\w+)\}", template)
    named = [
        re.escape(part) if index % 2 == 0 else f"(?P<{part}>{_PATTERNS.get(part, '[^/]+')})"
        for index, part in enumerate(parts)
    ]
    return re.compile(f"(?:^|/){_GRID}{''.join(named)}$")


@functools.cache
def _recognisers() -> dict[str, re.Pattern[str]]:
    """The patterns of all roles, those with the most fixed letters first: others match parts of their directories."""

    def fixed_letters(name: str) -> int:
        return len(re.sub(r"\{\w+\}", "", _ROLES[name].template))

    return {name: _compile(_ROLES[name].template) for name in sorted(known_roles(), key=fixed_letters, reverse=True)}


def recognise(path: str, learnless: str = "") -> RunDirectory | None:
    """What a directory (absolute, with `/`) says, or None if no template makes such a one.

    Args:
        path: the directory.
        learnless: name of the trainer whose run it is, if it learns nothing. The directories of zero-shot CLIP are
            known without it, by their name.
    """
    for role, pattern in _recognisers().items():
        if match := pattern.search(path):
            found = match.groupdict()
            return RunDirectory(
                role=role,
                dataset=found["dataset"],
                trainer=found.get("trainer") or found["zeroshot"],
                cfg=found["cfg"],
                shots=int(found.get("shots", 0)),
                seed=int(found.get("seed", 0)),
                variant=found.get("variant", "").removeprefix("/"),
                source=found.get("origin", "").removeprefix("_from_") or USUAL_SOURCE,
                grid=found["grid"] or "",
            )
    own = re.search(rf"(?:^|/){_GRID}{re.escape(learnless)}/([^/]+)/([^/]+)$", path) if learnless else None
    return RunDirectory("zeroshot", own[3], learnless, own[2], grid=own["grid"] or "") if own else None
