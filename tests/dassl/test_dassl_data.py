"""Samples, data sets, transforms, loaders; order and augmentation as functions of (seed, epoch)."""

import copy
import os
import pickle
import random
import shutil
import sys
import types

import pytest
import torch
from dassl_toys import CLASSES, PER_CLASS, SIDE, ToyData, draw_samples, toy_config
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

from dassl.config import get_cfg_default
from dassl.data import DataManager, DatasetWrapper, build_data_loader
from dassl.data.datasets import DatasetBase, Datum, build_dataset, class_name_clash, subsample_classes
from dassl.data.samplers import EpochRandomSampler, build_sampler, set_epoch
from dassl.data.transforms import TRANSFORMS, build_transform

forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def samples(tmp_path):
    return draw_samples(tmp_path / "toy")


def _relabelled(samples, labels, names=None):
    names = names or [f"c{label}" for label in labels]
    rows = zip(samples, labels, names, strict=False)
    return [Datum(impath=item.impath, label=label, classname=name) for item, label, name in rows]


# Samples and data sets


def test_datum(samples):
    item = samples[-1]
    assert (item.label, item.domain, item.classname) == (CLASSES - 1, 0, f"shade_{CLASSES - 1}")
    assert f"{item.impath!r}" in repr(item)
    for kind in (AssertionError, FileNotFoundError):
        with pytest.raises(kind, match=r'No file found at ".*missing\.png"'):
            Datum(impath="missing.png", label=0, classname="x")
    with pytest.raises(AttributeError):
        item.label = 3


def test_datum_pickles_as_dassl_does(samples):
    """Draws pickled by Dassl name this module and these attributes; that a file has moved does not matter."""
    assert Datum.__module__ == "dassl.data.datasets.base_dataset"
    assert set(vars(samples[0])) == {"_impath", "_label", "_domain", "_classname"}
    stored = pickle.dumps(samples[0])
    os.unlink(samples[0].impath)
    assert pickle.loads(stored).classname == "shade_0"


def test_dataset_base(samples):
    dataset = DatasetBase(train_x=samples, test=samples[:3])
    assert dataset.num_classes == CLASSES
    assert dataset.classnames == [f"shade_{label}" for label in range(CLASSES)]
    assert dataset.lab2cname[1] == "shade_1"
    assert (dataset.train_u, dataset.val, len(dataset.test)) == (None, None, 3)
    assert DatasetBase.get_num_classes(samples) == CLASSES
    assert DatasetBase.get_lab2cname(samples[::-1])[1] == dataset.classnames
    groups = dataset.split_dataset_by_label(samples[::-1])
    assert list(groups) == [2, 1, 0]
    assert list(dataset.split_dataset_by_domain(samples)) == [0]


def test_domains_are_checked(samples):
    dataset = DatasetBase(train_x=samples)
    dataset.domains = ["photo", "sketch"]
    dataset.check_input_domains(["photo"], ["sketch"])
    with pytest.raises(ValueError, match=r"do you mean .'sketch'"):
        dataset.check_input_domains(["photo"], ["sketsh"])


def test_labels_are_checked(samples):
    with pytest.raises(ValueError, match="no training data"):
        DatasetBase(train_x=[], test=samples)
    with pytest.warns(UserWarning, match=r"should be 0\.\.C-1.*lack \[1\]"):
        assert DatasetBase(train_x=_relabelled(samples, [0, 2, 3])).num_classes == 4
    with pytest.warns(UserWarning, match=r"test has labels \[2\].* 2 of training"):
        DatasetBase(train_x=_relabelled(samples, [0, 1]), test=_relabelled(samples, [2]))


def test_two_names_for_a_label_are_noticed(samples):
    train, test = _relabelled(samples, [0, 1]), _relabelled(samples, [1, 1], ["c1", "dog"])
    assert class_name_clash(train=train) == ""
    assert 'label 1 is "c1" in train but "dog" in test' in class_name_clash(train=train, test=test)
    with pytest.warns(UserWarning, match=r'label 1 is "c1"'):
        DatasetBase(train_x=train, test=test)


def test_fewshot(samples, capsys):
    dataset = DatasetBase(train_x=samples)
    assert dataset.generate_fewshot_dataset(samples, num_shots=0) is samples
    assert dataset.generate_fewshot_dataset(samples, samples[:2])[1] == samples[:2]
    assert capsys.readouterr().out == ""
    random.seed(1)
    one = dataset.generate_fewshot_dataset(samples, num_shots=2)
    assert capsys.readouterr().out == "Creating a 2-shot dataset\n"
    assert [item.label for item in one] == [0, 0, 1, 1, 2, 2]
    random.seed(1)
    both = dataset.generate_fewshot_dataset(samples, samples[:5], num_shots=2)
    assert (both[0], len(both[1])) == (one, 2)
    everything = dataset.generate_fewshot_dataset(samples, num_shots=PER_CLASS + 1)
    assert everything == samples
    repeated = dataset.generate_fewshot_dataset(samples, num_shots=PER_CLASS + 1, repeat=True)
    assert len(repeated) == CLASSES * (PER_CLASS + 1)


def test_subsample_classes(samples, capsys):
    base, val = subsample_classes(samples, None, subsample="base")
    assert (sorted({item.label for item in base}), val) == ([0, 1], None)
    assert capsys.readouterr().out == "SUBSAMPLE BASE CLASSES!\n"
    (new,) = subsample_classes(samples, subsample="new")
    assert {(item.label, item.classname) for item in new} == {(0, "shade_2")}
    assert subsample_classes(samples, samples) == [samples, samples]
    with pytest.raises(ValueError, match="SUBSAMPLE_CLASSES"):
        subsample_classes(samples, subsample="novel")


@pytest.mark.parametrize("from_gdrive", [False, True])
@pytest.mark.parametrize(("kind", "suffix"), [("zip", ".zip"), ("gztar", ".tar.gz")])
def test_archives_are_unpacked(samples, tmp_path, monkeypatch, kind, suffix, from_gdrive):
    fetch = types.SimpleNamespace(download=lambda url, dst, quiet: shutil.copy(url.removeprefix("file://"), dst))
    monkeypatch.setitem(sys.modules, "gdown", fetch)
    source = shutil.make_archive(str(tmp_path / "source" / kind), kind, tmp_path / "toy")
    target = tmp_path / "target" / f"images{suffix}"
    DatasetBase(train_x=samples).download_data(f"file://{source}", str(target), from_gdrive=from_gdrive)
    assert len(list(target.parent.glob("*.png"))) == CLASSES * PER_CLASS


def test_unknown_dataset(tmp_path, monkeypatch):
    cfg = toy_config(monkeypatch, tmp_path, DATASET__NAME="ToyDta")
    with pytest.raises(ValueError, match=r'unknown dataset "ToyDta": do you mean \[.ToyData'):
        build_dataset(cfg)


# Transforms


def _transform_cfg(*choices):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (16, 24)
    cfg.INPUT.GB_K = 3
    cfg.INPUT.TRANSFORMS = choices
    return cfg


@pytest.mark.parametrize("choice", TRANSFORMS)
def test_every_transform_gives_a_tensor_of_the_size(choice):
    image = Image.radial_gradient("L").convert("RGB").resize((40, 30))
    for is_train in (True, False):
        transform = build_transform(_transform_cfg(choice), is_train=is_train)
        for _ in range(4):
            assert transform(image).shape == (3, 16, 24)


def test_steps_of_training_come_in_their_order(capsys):
    build_transform(_transform_cfg("normalize", "cutout", "colorjitter", "random_flip", "random_crop"))
    lines = [line[2:].split(" (")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    order = ["random crop", "random flip", "color jitter", "to torch tensor of range [0, 1]", "cutout", "normalization"]
    assert lines == order


def test_transform_choices():
    cfg = _transform_cfg("normalize")
    with pytest.raises(ValueError, match=r'unknown transform "random_flp": do you mean \[.random_flip'):
        build_transform(cfg, choices=["random_flp"])
    cfg.INPUT.INTERPOLATION = "cubic"
    with pytest.raises(ValueError, match=r"INTERPOLATION.*bicubic"):
        build_transform(cfg)
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None


# Items


def test_items(samples):
    cfg = _transform_cfg("normalize")
    item = DatasetWrapper(cfg, samples)[3]
    assert item["img"].size == (SIDE + 4, SIDE + 2)
    assert (item["label"], item["domain"], item["index"], item["impath"]) == (0, 0, 3, samples[3].impath)
    plain = build_transform(cfg, is_train=False)
    dataset = DatasetWrapper(cfg, samples)
    dataset.transform = plain
    assert dataset[3]["img"].shape == (3, 16, 24)
    assert len(dataset) == len(samples)
    item = DatasetWrapper(cfg, samples, transform=[plain, plain, plain])[0]
    assert {"img", "img2", "img3"} <= set(item)
    cfg.DATALOADER.K_TRANSFORMS = 2
    cfg.DATALOADER.RETURN_IMG0 = True
    item = DatasetWrapper(cfg, samples, transform=plain, is_train=True)[0]
    assert [image.shape for image in item["img"]] == [(3, 16, 24)] * 2
    assert item["img0"].shape == (3, 16, 24)
    assert DatasetWrapper(cfg, samples, transform=plain)[0]["img"].shape == (3, 16, 24)
    with pytest.raises(ValueError, match="K_TRANSFORMS"):
        DatasetWrapper(cfg, samples, is_train=True)


@forks
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_named(samples, tmp_path, monkeypatch, workers):
    cfg = toy_config(monkeypatch, tmp_path, DATALOADER__NUM_WORKERS=workers)
    loader = DataManager(cfg).test_loader
    with open(samples[0].impath, "wb") as file:
        file.write(b"no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*0_0\.png"):
        list(loader)
    os.unlink(samples[0].impath)
    with pytest.raises(FileNotFoundError, match=r"0_0\.png"):
        list(loader)


# Loaders


def test_data_manager(tmp_path, monkeypatch, capsys):
    cfg = toy_config(monkeypatch, tmp_path, DATALOADER__TEST__BATCH_SIZE=4)
    manager = DataManager(cfg)
    out = capsys.readouterr().out
    assert "Loading dataset: ToyData\nBuilding transform_train\n" in out
    table = "# classes  3\n# train_x  21\n# train_u  11\n# val      7\n# test     21\n---------  -------\n"
    assert out.endswith(f"---------  -------\nDataset    ToyData\n{table}")
    assert (manager.num_classes, manager.num_source_domains, manager.lab2cname[0]) == (CLASSES, 0, "shade_0")
    assert isinstance(manager.dataset, ToyData)
    assert [len(loader) for loader in (manager.train_loader_x, manager.train_loader_u)] == [3, 1]
    assert [len(loader) for loader in (manager.val_loader, manager.test_loader)] == [2, 6]
    batch = next(iter(manager.test_loader))
    assert (batch["img"].shape, batch["label"].tolist()) == ((4, 3, SIDE, SIDE), [0] * 4)
    cfg.VERBOSE = False
    quiet = DataManager(cfg, custom_tfm_train=lambda image: 1, custom_tfm_test=lambda image: 2)
    assert "Dataset" not in capsys.readouterr().out
    assert next(iter(quiet.train_loader_x))["img"].tolist() == [1] * 6
    assert next(iter(quiet.val_loader))["img"].tolist() == [2] * 4


def test_loaders_are_plain(tmp_path, monkeypatch):
    """What CLAP does with them: copy, exchange the transform, build another loader from their attributes."""
    loader = DataManager(toy_config(monkeypatch, tmp_path)).train_loader_x
    assert type(loader) is DataLoader
    next(iter(loader))
    other = copy.deepcopy(loader)
    other.dataset.transform = lambda image: 0
    assert next(iter(other))["img"].tolist() == [0] * 6
    assert next(iter(loader))["img"].shape == (6, 3, SIDE, SIDE)
    settings = {"batch_size": loader.batch_size, "sampler": loader.sampler, "pin_memory": loader.pin_memory}
    again = DataLoader(loader.dataset, num_workers=loader.num_workers, **settings)
    assert len(list(again)) == 4


def test_last_batch(samples, tmp_path, monkeypatch):
    cfg = toy_config(monkeypatch, tmp_path)
    assert len(build_data_loader(cfg, "SequentialSampler", samples[:5], batch_size=4, is_train=True)) == 1
    assert len(build_data_loader(cfg, "SequentialSampler", samples[:5], batch_size=4, is_train=False)) == 2
    assert len(build_data_loader(cfg, "SequentialSampler", samples[:5], batch_size=8, is_train=True)) == 1
    with pytest.raises(ValueError, match="nothing to load"):
        build_data_loader(cfg, "SequentialSampler", [], is_train=True)


def test_samplers(samples):
    cfg = get_cfg_default()
    assert list(build_sampler("SequentialSampler", cfg, samples)) == list(range(len(samples)))
    assert type(build_sampler("RandomSampler", cfg, samples)) is RandomSampler
    assert type(build_sampler("RandomSampler", cfg, samples, random_streams="keyed")) is RandomSampler  # without a seed
    cfg.SEED = 0
    assert type(build_sampler("RandomSampler", cfg, samples)) is RandomSampler
    seeded = build_sampler("RandomSampler", cfg, samples, random_streams="keyed")
    assert isinstance(seeded, EpochRandomSampler)
    assert sorted(seeded) == list(range(len(samples)))
    with pytest.raises(ValueError, match="RandomSampler"):
        build_sampler("RandomSampel", cfg, samples)


KEYED = {"DATALOADER__RANDOM_STREAMS": "keyed"}


def _passes(cfg, count=2, start=0):
    loader = DataManager(cfg).train_loader_x
    set_epoch(loader, start)
    return [[(batch["index"], batch["img"]) for batch in loader] for _ in range(count)]


def _equal(first, second):
    pairs = [pair for one, two in zip(first, second, strict=True) for pair in zip(one, two, strict=True)]
    return all(torch.equal(i, j) and torch.equal(x, y) for (i, x), (j, y) in pairs)


@forks
def test_passes_are_a_function_of_seed_and_epoch(tmp_path, monkeypatch):
    cfg = toy_config(monkeypatch, tmp_path, **KEYED)
    first = _passes(cfg)
    random.seed(5)
    torch.manual_seed(5)
    assert _equal(first, _passes(cfg))  # whatever ran before
    assert _equal(first[1:], _passes(cfg, count=1, start=1))  # whatever epoch is the first
    cfg.DATALOADER.NUM_WORKERS = 2
    assert _equal(first, _passes(cfg))  # however many workers
    loader = copy.deepcopy(DataManager(cfg).train_loader_x)
    assert _equal(first[:1], [[(batch["index"], batch["img"]) for batch in loader]])
    cfg.SEED = 2
    assert not _equal(first[:1], _passes(cfg, count=1))
    assert not torch.equal(first[0][0][1], first[1][0][1])


def test_loading_leaves_the_global_generators_alone(tmp_path, monkeypatch):
    manager = DataManager(toy_config(monkeypatch, tmp_path, **KEYED))
    before = random.getstate(), torch.get_rng_state()
    for loader in (manager.train_loader_x, manager.test_loader):
        list(loader)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_two_training_lists_have_two_orders(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(ToyData, "train_u", property(lambda self: self._train_x))
    manager = DataManager(toy_config(monkeypatch, tmp_path, **KEYED))
    assert list(manager.train_loader_x.sampler) != list(manager.train_loader_u.sampler)


def test_without_a_seed_the_global_generator_decides(tmp_path, monkeypatch):
    cfg = toy_config(monkeypatch, tmp_path, SEED=-1, **KEYED)
    first = _passes(cfg, count=1)
    assert not _equal(first, _passes(cfg, count=1))
    torch.manual_seed(4)
    second = _passes(cfg, count=1)
    torch.manual_seed(4)
    assert _equal(second, _passes(cfg, count=1))
