"""The data side against the golden vectors of the official code: data.json and data.npz, whatever set they are."""

import ast
import json
import random
import re

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data.datasets import DatasetBase, Datum, subsample_classes
from dassl.data.transforms import build_transform
from dassl.evaluation import build_evaluator
from dassl.optim import build_lr_scheduler, build_optimizer


@pytest.fixture(scope="module")
def golden(parity_dir):
    return json.loads((parity_dir / "data.json").read_text())


@pytest.fixture(scope="module")
def arrays(parity_dir):
    return dict(np.load(parity_dir / "data.npz"))


def _recipes(golden):
    return sorted(key.removesuffix("_transform_log") for key in golden if key.endswith("_transform_log"))


def _input_config(golden, recipe):
    """Read the INPUT node off the log lines and the printed transforms."""
    log, shown = golden[f"{recipe}_transform_log"], golden[f"{recipe}_train_repr"]
    cfg = get_cfg_default()
    height, width = re.search(r"\+ (\d+)x(\d+) center crop", log).groups()
    cfg.INPUT.SIZE = (int(height), int(width))
    cfg.INPUT.INTERPOLATION = re.search(r"interpolation=(\w+)", shown)[1]
    choices = []
    if crop := re.search(r"random resized crop .*scale=(\(.*?\))\)", log):
        choices.append("random_resized_crop")
        cfg.INPUT.RRCROP_SCALE = ast.literal_eval(crop[1])
    if "random flip" in log:
        choices.append("random_flip")
    if norm := re.search(r"normalization \(mean=(\[.*?\]), std=(\[.*?\])\)", log):
        choices.append("normalize")
        cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = map(ast.literal_eval, norm.groups())
    cfg.INPUT.TRANSFORMS = tuple(choices)
    return cfg


def _image(golden, row):
    zoom = int(re.search(r"repeat\(small,(\d+)", golden["image_recipe"])[1])
    small = np.random.RandomState(row["seed"]).randint(0, 256, (row["h"] // zoom, row["w"] // zoom, 3))
    return Image.fromarray(small.astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1))


def test_transforms(golden, arrays, capsys):
    same_versions = PIL.__version__ == golden["pillow"]
    for recipe in _recipes(golden):
        cfg = _input_config(golden, recipe)
        capsys.readouterr()
        train, test = build_transform(cfg, is_train=True), build_transform(cfg, is_train=False)
        assert capsys.readouterr().out == golden[f"{recipe}_transform_log"]
        assert (repr(train), repr(test)) == (golden[f"{recipe}_train_repr"], golden[f"{recipe}_test_repr"])
        tolerance = 1e-6 if same_versions else 1.01 / 255 / min(cfg.INPUT.PIXEL_STD)
        for row in golden["images"]:
            image = _image(golden, row)
            np.testing.assert_allclose(test(image), arrays[f"{recipe}/test/{row['i']}"], atol=tolerance, rtol=0)
            torch.manual_seed(row["torch_seed_for_train"])
            np.testing.assert_allclose(train(image), arrays[f"{recipe}/train/{row['i']}"], atol=tolerance, rtol=0)


def _samples(labels, folder):
    samples = []
    for index, label in enumerate(labels):
        path = folder / str(index)
        path.touch()
        samples.append(Datum(impath=str(path), label=label, classname=f"c{label}"))
    return samples


def _rows(samples):
    return [[int(item.impath.rsplit("/", 1)[1]), item.label, item.classname] for item in samples]


def test_fewshot_draws(golden, tmp_path):
    train = _samples(golden["fewshot"]["train_labels"], tmp_path)
    val = _samples(golden["fewshot"]["val_labels"], tmp_path)
    base = DatasetBase.__new__(DatasetBase)
    for name, chosen in golden["fewshot"]["chosen"].items():
        seed, shots = map(int, re.findall(r"\d+", name))
        random.seed(seed)
        drawn = base.generate_fewshot_dataset(train, num_shots=shots)
        drawn_val = base.generate_fewshot_dataset(val, num_shots=min(shots, 4))
        assert [row[0] for row in _rows(drawn)] == chosen["train"], name
        assert [row[0] for row in _rows(drawn_val)] == chosen["val"], name


def test_base_and_new_classes(golden, tmp_path):
    train = _samples(golden["fewshot"]["train_labels"], tmp_path)
    for subsample, rows in golden["subsample_classes"].items():
        (selected,) = subsample_classes(train, subsample=subsample)
        assert _rows(selected) == rows, subsample


def test_evaluator(golden, arrays, capsys):
    evaluator = build_evaluator(get_cfg_default())
    scores, labels = torch.from_numpy(arrays["evaluator/scores"]), torch.from_numpy(arrays["evaluator/y"])
    for part in np.array_split(np.arange(len(labels)), 3):
        evaluator.process(scores[part], labels[part])
    capsys.readouterr()
    results = evaluator.evaluate()
    assert list(results) == list(golden["evaluator"]["results"])
    assert results == pytest.approx(golden["evaluator"]["results"], rel=1e-12)
    text = re.sub(r"\d+\.\d\d(?=%)", lambda match: f"{float(match[0]):.1f}", capsys.readouterr().out)
    assert text == golden["evaluator"]["text"]


def test_learning_rates(golden):
    for name, run in golden["lr"].items():
        cfg = get_cfg_default().OPTIM
        for key, value in run["optim"].items():
            cfg[key] = tuple(value) if isinstance(value, list) else value
        parameter = torch.nn.Parameter(torch.zeros(2))
        optimizer = build_optimizer([parameter], cfg)
        scheduler = build_lr_scheduler(optimizer, cfg)
        rates = []
        for _ in range(cfg.MAX_EPOCH):
            rates.append(optimizer.param_groups[0]["lr"])
            parameter.grad = torch.ones(2)
            optimizer.step()
            scheduler.step()
        assert rates == pytest.approx(run["per_epoch"], rel=1e-12), name
