"""Whether the images and the split that finished runs were made with are still those that lie there."""

import logging
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import train
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.evidence import images_hash
from sweep.plan import Run

logger = logging.getLogger(__name__)

FIELDS = ("full_split_hash", "test_images_hash", "train_images_hash")


class Images:
    """Hashes of data sets as they are now; each is looked at once."""

    def __init__(self):
        self.known: dict[Any, dict[str, str | None]] = {}

    def changed(self, run: Run, wanted: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
        """In what the data of a finished run differ from what its record says.

        What the record does not say, and data that are not there, are not compared.

        Args:
            run: the run.
            wanted: its flat configuration.
            record: its result.
        """
        if not any(record.get(field) for field in FIELDS):
            return []
        trained = bool(record.get("train_images_hash"))
        of_the_draw = () if trained else ("DATASET.NUM_SHOTS",)
        key = (
            run.argv[run.argv.index("--root") + 1],
            wanted["SEED"] if trained else None,
            record.get("split"),
            *sorted((k, str(v)) for k, v in wanted.items() if k.startswith("DATASET.") and k not in of_the_draw),
        )
        if key not in self.known:
            self.known[key] = self._look(run, trained, record.get("split") == "val")
        now = self.known[key]
        changed = {
            f: (record[f], there) for f in FIELDS if (there := now.get(f)) and record.get(f) not in (None, there)
        }
        return [
            f"{field.removesuffix('_hash').replace('_', ' ')}: {then[:12]} there, {there[:12]} now"
            for field, (then, there) in changed.items()
        ]

    def _look(self, run: Run, trained: bool, validation: bool) -> dict[str, str | None]:
        """The hashes of a run's data, {} if they are not there."""
        cfg = train.build_config(train.build_parser().parse_args(list(run.argv)))
        kind = DATASET_REGISTRY.get(cfg.DATASET.NAME)
        try:
            if hasattr(kind, "located") and not os.path.isdir(kind.located(cfg).image_dir):
                return {}
            dataset = kind.__new__(kind)
            dataset.keeps = False  # nothing is written
            with open(os.devnull, "w", encoding="utf-8") as silence, redirect_stdout(silence):
                dataset.__init__(cfg)
            found = {"full_split_hash": getattr(dataset, "full_split_hash", None)}
            found["test_images_hash"] = images_hash((dataset.val if validation else dataset.test) or ())
            found["train_images_hash"] = images_hash(dataset.train_x) if trained else None
        except (OSError, ValueError) as error:
            logger.warning("%s: whether its images have changed cannot be told (%s)", run.output_dir, error)
            return {}
        return found
