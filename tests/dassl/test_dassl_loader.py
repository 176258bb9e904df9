"""What makes loaders fast changes no bit: decoded images in memory, seeding, tensor steps on a whole batch."""

import contextlib
import copy
import gc
import logging
import multiprocessing
import os
import pickle
import random
import resource

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from dassl_toys import CLASSES, PER_CLASS, SIDE, ToyTrainer, draw_samples, toy_config
from PIL import Image
from torch.utils.data import DataLoader, Subset

from dassl.config import get_cfg_default
from dassl.data import DataManager, DatasetWrapper, image_store
from dassl.data.data_manager import release_workers
from dassl.data.image_store import ImageStore, shared_store
from dassl.data.samplers import set_epoch
from dassl.data.transforms import TRANSFORMS, build_transform, draws_from_torch_only, split_tensor_steps
from dassl.engine.record import config_hash
from dassl.utils import read_image, seeded

forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
COUNT = CLASSES * PER_CLASS


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    """Each test has the store of a fresh process."""
    monkeypatch.setattr(image_store, "_store", None)


@pytest.fixture
def samples(tmp_path):
    return draw_samples(tmp_path / "toy")


def _no_decoding(path):
    raise AssertionError(f"{path} is decoded again")


def _random_image(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


# The store


def test_stored_images_are_those_of_the_files(samples, monkeypatch):
    store = ImageStore(1)
    first = [store.read(item.impath) for item in samples]
    assert (store.images, store.filled) == (COUNT, pytest.approx(COUNT * 3 * 10 * 12 / 2**20, rel=0.01))
    monkeypatch.setattr(image_store, "read_image", _no_decoding)
    for item, image in zip(samples, first, strict=True):
        again = store.read(item.impath)
        assert (again.mode, again.size) == (image.mode, image.size)
        assert again.tobytes() == image.tobytes() == read_image(item.impath).tobytes()
        again.paste((1, 2, 3), (0, 0, 5, 5))
        assert store.read(item.impath).tobytes() == image.tobytes()


def test_a_file_written_anew_is_decoded_anew(samples):
    store, path = ImageStore(1), samples[0].impath
    store.read(path)
    status = os.stat(path)
    _random_image(12, 10, seed=7).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert store.read(path).tobytes() == read_image(path).tobytes()
    _random_image(12, 10, seed=8).save(f"{path}.new", format="png")
    os.utime(f"{path}.new", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    os.replace(f"{path}.new", path)
    assert store.read(path).tobytes() == read_image(path).tobytes()
    os.unlink(path)
    with pytest.raises(FileNotFoundError, match=r"0_0\.png"):
        store.read(path)


def test_unreadable_files_stay_errors(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no image")
    store = ImageStore(1)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"cannot read the image .*broken\.png"):
            store.read(str(path))
    assert store.images == 0


def test_a_full_store_keeps_what_it_has(tmp_path):
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number}.bmp")
        _random_image(300, 320, seed=number).save(paths[-1])  # 288,000 bytes
    store = ImageStore(1)
    for _ in range(2):
        assert all(store.read(path).tobytes() == read_image(path).tobytes() for path in paths)
    assert store.images == 3
    assert 0.8 < store.filled <= 1


def test_a_list_that_would_fill_the_store_is_not_kept(tmp_path):
    path = tmp_path / "image.bmp"
    _random_image(200, 100).save(path)  # 60,000 bytes
    store = ImageStore(1)
    store.read(path, among=9)
    assert store.images == 0
    store.read(path, among=8)
    assert store.images == 1


def test_the_table_stays_half_free(samples, monkeypatch):
    monkeypatch.setattr(image_store, "BYTES_PER_SLOT", 2**20 // 32)
    store = ImageStore(1)
    for _ in range(2):
        images = [store.read(item.impath) for item in samples]
        assert store.images == 16
    assert all(
        image.tobytes() == read_image(item.impath).tobytes() for image, item in zip(images, samples, strict=True)
    )


def _read_all(store, paths):
    for path in paths:
        assert store.read(path).tobytes() == read_image(path).tobytes()


@forks
def test_processes_fill_it_together(tmp_path, monkeypatch):
    paths = []
    for number in range(120):
        paths.append(str(tmp_path / f"{number}.png"))
        _random_image(16, 16, seed=number).save(paths[-1])
    store, context = ImageStore(1), multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_read_all, args=(store, paths[start:] + paths[:start])) for start in (0, 3, 60, 100)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert store.images == 120
    expected = [read_image(path).tobytes() for path in paths]
    monkeypatch.setattr(image_store, "read_image", _no_decoding)
    assert [store.read(path).tobytes() for path in paths] == expected


def test_a_lock_that_is_never_given_back(samples, monkeypatch):
    monkeypatch.setattr(image_store, "LOCK_SECONDS", 0.01)
    store = ImageStore(1)
    store.read(samples[0].impath)
    store._lock.acquire()
    for item in samples[:2]:
        assert store.read(item.impath).tobytes() == read_image(item.impath).tobytes()
    store._lock.release()
    assert store.read(samples[1].impath).tobytes() == read_image(samples[1].impath).tobytes()
    assert store.images == 1  # not used any more


def test_copies_share_and_pickles_leave_it_behind():
    store = ImageStore(1)
    assert copy.deepcopy([store])[0] is store
    assert pickle.loads(pickle.dumps(store)) is None


def test_an_empty_store_takes_no_memory(samples):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store = ImageStore(512)
    store.read(samples[0].impath)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


class _User:
    pass


def test_runs_of_a_process_share_a_store(tmp_path):
    users = [_User(), _User()]
    store = shared_store(1, users[0])
    assert shared_store(1, users[1]) is store
    assert shared_store(0, users[1]) is None
    path = tmp_path / "image.bmp"
    for number in range(2):
        _random_image(300, 320).save(path)
        os.utime(path, (number, number))
        store.read(path)
    assert store.filled > 0.5
    users.pop(0)
    assert shared_store(1, users[0]) is store  # there is still somebody
    users.pop()
    user = _User()
    assert shared_store(1, user).images == 0
    assert shared_store(2, user).megabytes == 2
    with pytest.raises(ValueError, match=r"DATALOADER.CACHE_MB.*-1"):
        shared_store(-1, user)


def test_memory_that_cannot_be_had(monkeypatch, caplog):
    def refuse(*args):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(image_store.mmap, "mmap", refuse)
    monkeypatch.setattr(logging.getLogger("dassl"), "propagate", True)
    assert shared_store(8, _User()) is None
    assert "no 8 MB" in caplog.text


# Loaders


def _batches(cfg, passes=2, loader_name="train_x"):
    loader = getattr(DataManager(cfg), {"train_x": "train_loader_x", "test": "test_loader"}[loader_name])
    set_epoch(loader, 0)
    return [{**batch, "pass": number} for number in range(passes) for batch in loader]


def _assert_equal(first, second):
    assert len(first) == len(second) > 0
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            same = torch.equal(value, two[name]) if torch.is_tensor(value) else value == two[name]
            assert same, name


KEYED = {"DATALOADER__RANDOM_STREAMS": "keyed"}
RECIPES = [
    ("random_resized_crop", "random_flip", "normalize"),
    ("random_translation", "colorjitter", "cutout", "normalize", "gaussian_noise"),
    ("random_flip",),
]


def _one_by_one(monkeypatch):
    """Loaders as if the store, the cheap seeding and the joint tensor steps did not exist."""
    monkeypatch.delattr(DatasetWrapper, "__getitems__")
    monkeypatch.setattr("dassl.data.transforms.draws_from_torch_only", lambda transform: False)


@forks
@pytest.mark.parametrize("loader", ["train_x", "test"])
@pytest.mark.parametrize("recipe", RECIPES, ids=len)
def test_no_bit_depends_on_store_or_workers(tmp_path, monkeypatch, recipe, loader):
    cfg = toy_config(monkeypatch, tmp_path, INPUT__TRANSFORMS=recipe, DATALOADER__CACHE_MB=0, **KEYED)
    with monkeypatch.context() as plain:
        _one_by_one(plain)
        expected = _batches(cfg, loader_name=loader)
    _assert_equal(_batches(cfg, loader_name=loader), expected)
    cfg.DATALOADER.CACHE_MB = 4
    for workers in (2, 0):
        cfg.DATALOADER.NUM_WORKERS = workers
        _assert_equal(_batches(cfg, loader_name=loader), expected)
        assert image_store._store.images == COUNT
    monkeypatch.setattr(image_store, "read_image", _no_decoding)
    cfg.DATALOADER.NUM_WORKERS = 1
    _assert_equal(_batches(cfg, loader_name=loader), expected)


@pytest.mark.parametrize("streams", ["global", "keyed"])
def test_without_keys_the_draws_are_the_same_too(tmp_path, monkeypatch, streams):
    """From the global generators, or from keyed streams that lack a seed."""
    cfg = toy_config(monkeypatch, tmp_path, SEED=1 if streams == "global" else -1, DATALOADER__RANDOM_STREAMS=streams)
    with monkeypatch.context() as plain:
        _one_by_one(plain)
        torch.manual_seed(3)
        expected = _batches(cfg)
    torch.manual_seed(3)
    _assert_equal(_batches(cfg), expected)


def test_evaluated_lists_are_kept_if_they_are_small(tmp_path, monkeypatch, samples):
    cfg = toy_config(monkeypatch, tmp_path)
    cfg.DATALOADER.CACHE_MB = 1
    for number in range(COUNT):
        _random_image(128, 128, seed=number).save(samples[number].impath)  # all together 1,032,192 bytes
    list(DatasetWrapper(cfg, samples))
    assert image_store._store.images == 0
    list(DatasetWrapper(cfg, samples[:10]))
    assert image_store._store.images == 10
    list(DatasetWrapper(cfg, samples, is_train=True))
    assert image_store._store.images > 15


def test_copied_loaders_share_the_images(tmp_path, monkeypatch):
    loader = DataManager(toy_config(monkeypatch, tmp_path, **KEYED)).train_loader_x
    list(loader)
    other = copy.deepcopy(loader)
    monkeypatch.setattr(image_store, "read_image", _no_decoding)
    other.dataset.transform = lambda image: image.getpixel((0, 0))[0]
    assert len(next(iter(other))["img"]) == 6
    again = DataLoader(Subset(loader.dataset, [3, 4]), batch_size=2)
    assert next(iter(again))["img"].shape == (2, 3, SIDE, SIDE)
    assert pickle.loads(pickle.dumps(loader.dataset.data_source[0])).label == 0


def test_runs_that_ended_leave_their_test_images(tmp_path, monkeypatch):
    cfg = toy_config(monkeypatch, tmp_path)
    list(DataManager(cfg).test_loader)
    gc.collect()
    monkeypatch.setattr(image_store, "read_image", _no_decoding)
    assert len(list(DataManager(cfg).test_loader)) > 0


def test_the_log_says_how_much_is_kept(tmp_path, monkeypatch, capsys):
    cfg = toy_config(monkeypatch, tmp_path)
    ToyTrainer(cfg).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "in memory" in line]
    assert lines == ["Decoded images in memory: 18, 0.0 MB of at most 1024 (DATALOADER.CACHE_MB)"]
    cfg.DATALOADER.CACHE_MB = 0
    monkeypatch.setattr(image_store, "_store", None)
    ToyTrainer(cfg).train()
    assert "in memory" not in capsys.readouterr().out


def test_the_size_of_the_store_changes_no_result():
    cfg = get_cfg_default()
    before = config_hash(cfg)
    cfg.DATALOADER.CACHE_MB = 0
    assert config_hash(cfg) == before


class Overridden(DatasetWrapper):
    """A wrapper in the style of other repositories: items of its own."""

    def __getitem__(self, idx):
        return {**super().__getitem__(idx), "img": idx}


def test_items_of_a_subclass_are_its_own(samples):
    cfg = get_cfg_default()
    loader = DataLoader(Overridden(cfg, samples, transform=build_transform(cfg, is_train=False)), batch_size=4)
    assert next(iter(loader))["img"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("keys", [{"K_TRANSFORMS": 2}, {"RETURN_IMG0": True}], ids=str)
def test_batches_are_the_items(samples, keys):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (16, 12)
    cfg.DATALOADER.merge_from_list([part for pair in keys.items() for part in pair])
    plain = build_transform(cfg, is_train=False, choices=["normalize"])
    transforms = {
        "as configured": plain,
        "several": [plain, plain],
        "grey": T.Compose([T.Grayscale(), T.ToTensor()]),
        "sizes that differ": T.Compose(
            [lambda image: image.crop((0, 0, 1 + image.getpixel((0, 0))[0] % 3, 4)), *plain.transforms[2:]]
        ),
        "arrays": T.Compose([np.array, T.ToTensor(), plain.transforms[-1]]),
        "a function": plain.transforms[0],
        "none of the steps": T.Compose([T.PILToTensor()]),
    }
    for name, transform in transforms.items():
        dataset = DatasetWrapper(cfg, samples, transform=transform, is_train=True)
        together, single = dataset.__getitems__([5, 2, 9]), [dataset[index] for index in (5, 2, 9)]
        for one, two in zip(together, single, strict=True):
            assert one.keys() == two.keys()
            assert all(_same(one[key], two[key]) for key in one), name


def _same(one, two):
    if isinstance(one, list):
        return all(map(_same, one, two))
    return torch.equal(one, two) if torch.is_tensor(one) else one == two


# Tensor steps and random numbers


@pytest.mark.parametrize("choices", [(), ("normalize",)], ids=str)
def test_tensor_steps_on_a_batch_give_the_same_bits(choices):
    cfg = get_cfg_default()
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    images = [Image.fromarray(np.stack([values, values.T, np.roll(values, shift)], -1)) for shift in range(5)]
    for size in (16, 9, 33):
        cfg.INPUT.SIZE = (size, size)
        transform = build_transform(cfg, is_train=False, choices=choices)
        rest, to_tensors = split_tensor_steps(transform)
        together = to_tensors([rest(image) for image in images])
        for one, image in zip(together, images, strict=True):
            assert torch.equal(one, transform(image))
            assert one.is_contiguous()


def test_only_the_known_end_is_split_off():
    plain = T.Compose([T.Resize(4), T.ToTensor()])
    assert repr(split_tensor_steps(plain)[0]) == repr(T.Compose([T.Resize(4)]))
    assert repr(plain) == repr(T.Compose([T.Resize(4), T.ToTensor()]))
    others = [None, plain.transforms, T.ToTensor(), T.Compose([]), T.Compose([*plain.transforms, T.RandomErasing()])]
    others.append(T.Compose([T.PILToTensor(), T.Normalize([0.5] * 3, [0.5] * 3)]))
    for transform in others:
        assert split_tensor_steps(transform) == (transform, None)


DRAW_ELSEWHERE = ("random_translation", "randaugment_fixmatch", "cutout", "gaussian_noise")


@pytest.mark.parametrize("choice", DRAW_ELSEWHERE)
def test_transforms_that_draw_elsewhere_are_known(choice):
    assert not draws_from_torch_only(build_transform(get_cfg_default(), choices=[choice]))


@pytest.mark.parametrize("choice", sorted({*TRANSFORMS} - {*DRAW_ELSEWHERE}))
def test_configured_transforms_draw_from_torch_only(choice):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (16, 24)
    cfg.INPUT.GB_K = 3
    transform = build_transform(cfg, choices=[choice])
    assert draws_from_torch_only(transform)
    before = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    for number in range(10):
        transform(_random_image(seed=number))
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])  # noqa: NPY002


def test_unknown_transforms_may_draw_from_anything():
    known = T.Compose([T.Resize(4)])
    assert draws_from_torch_only([known, None])
    for transform in (lambda image: image, T.RandomChoice([known]), T.RandomApply([T.Lambda(str)]), [known, str]):
        assert not draws_from_torch_only(transform)


def _draws():
    return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002


def test_seeded():
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    expected = _draws()
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    with seeded(5):
        everything = _draws()
    with seeded(5, torch_only=True):
        assert torch.rand(()).item() == everything[2]
    for torch_only in (False, True):
        with contextlib.suppress(KeyError), seeded(5, torch_only):
            _draws_and_fails(torch_only)
    assert _draws() == expected


def _draws_and_fails(torch_only):
    """Draw as much as is allowed, then fail."""
    raise KeyError(torch.rand(()) if torch_only else _draws())


def _workers_of(batches):
    return {int(pid) for batch in batches for pid in batch["img"]}


def _pid(image):
    """A transform that says which process it runs in."""
    return torch.tensor(os.getpid())


@forks
def test_workers_are_kept_between_passes_until_they_are_released_or_outdated(tmp_path, monkeypatch):
    cfg = toy_config(monkeypatch, tmp_path, DATALOADER__NUM_WORKERS=2, **KEYED)
    manager = DataManager(cfg, custom_tfm_train=_pid, custom_tfm_test=_pid)
    loader = manager.train_loader_x
    first, second = (_workers_of(loader) for _ in range(2))
    assert first == second
    assert os.getpid() not in first
    loader.dataset.transform = lambda image: -torch.tensor(os.getpid())  # kept workers would not know
    third = _workers_of(loader)
    assert max(third) < 0
    release_workers(loader)
    gc.collect()
    assert {process.pid for process in multiprocessing.active_children()}.isdisjoint({-pid for pid in third} | first)
    assert len(_workers_of(loader)) <= 2
    tests = [_workers_of(manager.test_loader) for _ in range(2)]
    assert tests[0].isdisjoint(tests[1])  # those that are evaluated once need no workers between
    release_workers(manager.test_loader)
    release_workers(None)


@forks
def test_a_loader_whose_workers_are_kept_can_be_copied(tmp_path, monkeypatch):
    cfg = toy_config(monkeypatch, tmp_path, DATALOADER__NUM_WORKERS=1, **KEYED)
    loader = DataManager(cfg, custom_tfm_train=_pid, custom_tfm_test=_pid).train_loader_x
    assert min(_workers_of(loader)) > 0
    other = copy.deepcopy(loader)
    assert min(_workers_of(other) | _workers_of(loader)) > 0
    other.dataset.transform = lambda image: -torch.tensor(os.getpid())
    assert max(_workers_of(other)) < 0 < min(_workers_of(loader))
    release_workers(other)
    release_workers(loader)


@forks
def test_a_run_leaves_no_worker(tmp_path, monkeypatch):
    cfg = toy_config(monkeypatch, tmp_path, DATALOADER__NUM_WORKERS=2, **KEYED)
    trainer = ToyTrainer(cfg)
    trainer.train()
    gc.collect()
    assert multiprocessing.active_children() == []
