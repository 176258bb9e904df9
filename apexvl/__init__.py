"""APEX and 28 methods of few-shot adaptation of CLIP as a package.

    import apexvl
    result = apexvl.train(trainer="APEX", dataset="drawn_thermal", seed=1, shots=16)
    print(result.accuracy, result.per_class)
    probabilities = apexvl.Predictor(result.folder)(["photo.jpg"])

The rooms of the repository (`clip`, `adaptation`, `trainers`, ...) are below this package: `apexvl.clip.backbone`. Only
`dassl` is at the top as well, where code written for it looks for it. The command line is `apexvl`.

Names are found when they are asked for: importing this package imports no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from apexvl.names import as_top_level, find_rooms

if TYPE_CHECKING:
    from adaptation.method import Method
    from adaptation.plugins import load_plugin
    from apexvl.runs import Result, compare, data_frame, evaluate, read_result, read_results, rows, train
    from clip.backbone import Backbone
    from clip.loading import load_backbone
    from predict import Predictor

__version__ = "1.0.0"
__all__ = [
    "Backbone", "Method", "Predictor", "Result", "as_top_level", "compare", "data_frame", "evaluate", "load_backbone",
    "load_plugin", "read_result", "read_results", "rows", "train",
]  # fmt: skip

_RUNS = ("Result", "compare", "data_frame", "evaluate", "read_result", "read_results", "rows", "train")
_PLACES = dict.fromkeys(_RUNS, "apexvl.runs") | {
    "Backbone": "apexvl.clip.backbone",
    "Method": "apexvl.adaptation.method",
    "Predictor": "apexvl.programs.predict",
    "load_backbone": "apexvl.clip.loading",
    "load_plugin": "apexvl.adaptation.plugins",
}

find_rooms()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
