"""Names as people write them on command lines: trainers in any case, configuration files by their stems."""

import difflib
from pathlib import Path

OWN = Path(__file__).resolve().parents[1] / "configs"
SUFFIXES = (".yaml", ".yml")


def configs() -> Path:
    """The folder of this project's configuration files, whatever the working folder is.

    It is relative in the project's own folder, so that the lines that are printed there can be copied.
    """
    here = Path("configs")
    return here if here.is_dir() and here.samefile(OWN) else OWN


def trainer_name(name: str) -> str:
    """The registered name of a trainer that is given in any case.

    Raises:
        ValueError: there is none, with the nearest ones, and with the files of `trainers/` that register nothing.
    """
    import trainers
    from dassl.engine import TRAINER_REGISTRY
    from dassl.utils import did_you_mean

    registered = TRAINER_REGISTRY.registered_names()
    if name in registered:
        return name
    found = [known for known in registered if known.lower() == name.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"trainer {name}: {' and '.join(found)} differ in case alone: write it as it is registered")
    raise ValueError(" ".join([did_you_mean(name, registered, "trainer"), *trainers.unregistered(name)]).strip())


def config_file(name: str, trainer: str = "") -> str:
    """The path of a configuration file that is given by its path, its name or its stem.

    Args:
        name: a path; or, where there is no such file, a file of `configs/trainers/<trainer>` or, without a trainer, of
            `configs/datasets`, with or without its suffix; `FOLDER/STEM` is a file of another trainer.
        trainer: registered name; "" for the file of a data set.

    Raises:
        FileNotFoundError: there is none; the sentence has the nearest ones that there are.
    """
    if not name or Path(name).is_file():
        return name
    folder = configs() / "trainers" / trainer if trainer else configs() / "datasets"
    stem = Path(name).stem if name.lower().endswith(SUFFIXES) else name
    there = {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.name != "sweep.yaml"}
    found = there.get(stem) or next((path for known, path in there.items() if known.lower() == stem.lower()), None)
    if found is None and trainer and stem.count("/") == 1:
        other = configs() / "trainers" / f"{stem}.yaml"
        found = other if other.is_file() else None
    if found is None:
        near = difflib.get_close_matches(stem, list(there), n=5, cutoff=0.3) or list(there)[:5]
        raise FileNotFoundError(
            f'there is no configuration file "{name}", and none of that name in {folder}'
            + (f", which has {', '.join(near)}" if near else "")
        )
    return str(found)


def dataset_name(name: str) -> str:
    """The stem of a file in `configs/datasets` that is given in any case; any other name as it is."""
    stems = {path.stem.lower(): path.stem for path in (configs() / "datasets").glob("*.yaml")}
    return stems.get(name.lower(), name)
