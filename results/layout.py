"""Where runs lie below an output folder: the directories of the code family's scripts, built and recognised by the
same templates.
"""

import re
from dataclasses import dataclass

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

TEMPLATES = {
    "base": "base2new/train_base/{dataset}/shots_{shots}/{trainer}/{cfg}/seed{seed}",
    "new": "base2new/test_new/{dataset}/shots_{shots}/{trainer}/{cfg}/seed{seed}",
    "transfer": "evaluation{origin}/{trainer}/{cfg}_{shots}shots{variant}/{dataset}/seed{seed}",
    "all": "{dataset}/{trainer}/{cfg}_{shots}shots{variant}/seed{seed}",
    "zeroshot": "{zeroshot}/{cfg}/{dataset}",
}
_PATTERNS = {
    "shots": r"-?\d+",
    "seed": r"-?\d+",
    "zeroshot": rf"{ZERO_SHOT}[^/]*",
    "origin": r"(?:_from_[^/]+)?",
    "variant": r"(?:/[^/]+)?",
}


@dataclass(frozen=True)
class Place:
    """What the directory of a run says about it.

    Attributes:
        role: `base` (trained and tested on base classes), `new` (the same run on new classes), `all` (trained and
            tested on all classes), `transfer` (trained on another set), `zeroshot` (all classes, nothing learned).
        dataset: name of the data set's configuration file, without its suffix; of the tested one.
        trainer: registered name.
        cfg: name of the method's configuration file, without its suffix.
        shots: training images per class; 0 for zero-shot.
        seed: of the run; 0 where there is none.
        variant: a level of directories of its own that CoOp's scripts have, `nctx16_cscFalse_ctpend`; else "".
        source: of a transfer: the data set that was trained on.
    """

    role: str
    dataset: str
    trainer: str
    cfg: str
    shots: int = 0
    seed: int = 0
    variant: str = ""
    source: str = "imagenet"

    def path(self) -> str:
        """Directory of the run, relative to the output folder, with `/`."""
        fields = {**vars(self), "zeroshot": self.trainer}
        fields["variant"] = f"/{self.variant}" if self.variant else ""
        fields["origin"] = "" if self.source == "imagenet" else f"_from_{self.source}"
        return TEMPLATES[self.role].format(**fields)


def _compile(template: str) -> re.Pattern[str]:
    """The pattern of the directories that a template makes, at the end of a path."""
    parts = re.split(r"\{(\w+)\}", template)
    named = [
        re.escape(part) if index % 2 == 0 else f"(?P<{part}>{_PATTERNS.get(part, '[^/]+')})"
        for index, part in enumerate(parts)
    ]
    return re.compile(f"(?:^|/){''.join(named)}$")


_RECOGNISERS = {role: _compile(template) for role, template in TEMPLATES.items()}


def recognise(path: str, learnless: str = "") -> Place | None:
    """The place that a directory (absolute, with `/`) is, or None if no template makes such a one.

    Args:
        path: the directory.
        learnless: name of the trainer whose run it is, if it learns nothing. The directories of zero-shot CLIP are
            known without it, by their name.
    """
    if learnless and not learnless.startswith(ZERO_SHOT):
        found = re.search(rf"(?:^|/){re.escape(learnless)}/([^/]+)/([^/]+)$", path)
        if found:
            return Place("zeroshot", found[2], learnless, found[1])
    for role, pattern in _RECOGNISERS.items():
        if match := pattern.search(path):
            found = match.groupdict()
            return Place(
                role=role,
                dataset=found["dataset"],
                trainer=found.get("trainer") or found["zeroshot"],
                cfg=found["cfg"],
                shots=int(found.get("shots", 0)),
                seed=int(found.get("seed", 0)),
                variant=found.get("variant", "").removeprefix("/"),
                source=found.get("origin", "").removeprefix("_from_") or "imagenet",
            )
    return None
