"""Repositories that bring a tree of default configuration keys of their own."""

import functools
import json

import pytest
import torch
from dassl_toys import ToyData, draw_samples, toy_config
from yacs.config import CfgNode

from dassl.config import DEFAULTS, get_cfg_default, with_defaults
from dassl.data import DataManager, DatasetWrapper, build_data_loader
from dassl.data.samplers import build_sampler
from dassl.data.transforms import build_transform
from dassl.engine import build_trainer
from dassl.evaluation import build_evaluator
from dassl.utils import set_random_seed

UPSTREAM = {  # all keys of Dassl 0.6.3
    "": "VERSION OUTPUT_DIR RESUME SEED USE_CUDA VERBOSE",
    "INPUT": "SIZE INTERPOLATION TRANSFORMS NO_TRANSFORM PIXEL_MEAN PIXEL_STD CROP_PADDING RRCROP_SCALE CUTOUT_N "
    "CUTOUT_LEN GN_MEAN GN_STD RANDAUGMENT_N RANDAUGMENT_M COLORJITTER_B COLORJITTER_C COLORJITTER_S COLORJITTER_H "
    "RGS_P GB_P GB_K",
    "DATASET": "ROOT NAME SOURCE_DOMAINS TARGET_DOMAINS NUM_LABELED NUM_SHOTS VAL_PERCENT STL10_FOLD CIFAR_C_TYPE "
    "CIFAR_C_LEVEL ALL_AS_UNLABELED",
    "DATALOADER": "NUM_WORKERS K_TRANSFORMS RETURN_IMG0",
    "DATALOADER.TRAIN_X": "SAMPLER BATCH_SIZE N_DOMAIN N_INS",
    "DATALOADER.TRAIN_U": "SAME_AS_X SAMPLER BATCH_SIZE N_DOMAIN N_INS",
    "DATALOADER.TEST": "SAMPLER BATCH_SIZE",
    "MODEL": "INIT_WEIGHTS",
    "MODEL.BACKBONE": "NAME PRETRAINED",
    "MODEL.HEAD": "NAME HIDDEN_LAYERS ACTIVATION BN DROPOUT",
    "OPTIM": "NAME LR WEIGHT_DECAY MOMENTUM SGD_DAMPNING SGD_NESTEROV RMSPROP_ALPHA ADAM_BETA1 ADAM_BETA2 STAGED_LR "
    "NEW_LAYERS BASE_LR_MULT LR_SCHEDULER STEPSIZE GAMMA MAX_EPOCH WARMUP_EPOCH WARMUP_TYPE WARMUP_CONS_LR "
    "WARMUP_MIN_LR WARMUP_RECOUNT",
    "TRAIN": "CHECKPOINT_FREQ PRINT_FREQ COUNT_ITER",
    "TEST": "EVALUATOR PER_CLASS_RESULT COMPUTE_CMAT NO_TEST SPLIT FINAL_MODEL",
    "TRAINER": "NAME",
}
OLDER = {  # what copies of older versions lack beside
    "": "VERSION USE_CUDA VERBOSE",
    "INPUT": "NO_TRANSFORM RRCROP_SCALE RGS_P GB_P GB_K",
    "DATASET": "TARGET_DOMAINS NUM_LABELED",
    "DATALOADER": "K_TRANSFORMS RETURN_IMG0",
    "DATALOADER.TRAIN_U": UPSTREAM["DATALOADER.TRAIN_U"],
    "MODEL.HEAD": UPSTREAM["MODEL.HEAD"],
    "OPTIM": "WARMUP_RECOUNT",
    "TRAIN": "COUNT_ITER",
    "TEST": "COMPUTE_CMAT NO_TEST SPLIT FINAL_MODEL",
}
TREES = {
    "upstream's": UPSTREAM,
    "an older one": {
        node: " ".join(set(UPSTREAM[node].split()) - set(OLDER.get(node, "").split())) for node in UPSTREAM
    },
}


def own_tree(keys, cfg):
    """A tree with these keys alone, and the values of `cfg`."""
    tree = CfgNode()
    for path, names in keys.items():
        nodes = path.split(".") if path else []
        source = functools.reduce(CfgNode.__getitem__, nodes, cfg)
        for name in names.split():
            functools.reduce(lambda node, child: node.setdefault(child, CfgNode()), nodes, tree)[name] = source[name]
    return tree


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("trainer", ["ToyTrainer", "ToyPairTrainer"])
def test_a_run_goes_to_its_end(tmp_path, monkeypatch, tree, trainer):
    """And is the run of the engine's own tree."""
    accuracies, histories = [], []
    for place in ("ours", "theirs"):
        cfg = toy_config(monkeypatch, tmp_path / place, trainer, TEST__PER_CLASS_RESULT=True, TRAIN__PRINT_FREQ=1)
        if place == "theirs":
            cfg = own_tree(TREES[tree], cfg)
            before = json.dumps(cfg)
            cfg.freeze()
        set_random_seed(3)
        run = build_trainer(cfg)
        run.train()
        histories.append(run.history)
        accuracies.append(json.loads((tmp_path / place / "out" / "metrics.json").read_text()))
        assert "not_recorded" not in accuracies[-1]
    assert histories[0] == histories[1]
    assert accuracies[0]["accuracy"] == accuracies[1]["accuracy"]
    assert json.dumps(cfg) == before  # the tree is theirs
    assert run.cfg.is_frozen()


@pytest.mark.parametrize("tree", TREES)
def test_parts_take_such_a_tree(tmp_path, monkeypatch, tree):
    """What trainers and scripts build by themselves."""
    cfg = own_tree(TREES[tree], toy_config(monkeypatch, tmp_path))
    samples = draw_samples(tmp_path / "toy")
    manager = DataManager(cfg)
    assert isinstance(manager.dataset, ToyData)
    assert len(next(iter(manager.train_loader_u))["img"]) == 6
    transform = build_transform(cfg, is_train=True)
    data = DatasetWrapper(cfg, samples, transform=transform, is_train=True)
    assert data[0]["img"].shape == build_data_loader(cfg, data_source=samples, tfm=transform).dataset[0]["img"].shape
    assert sorted(build_sampler("RandomSampler", cfg, samples)) == list(range(len(samples)))
    evaluator = build_evaluator(cfg, lab2cname={0: "a", 1: "b"})
    evaluator.process(torch.eye(2), torch.tensor([0, 0]))
    assert evaluator.evaluate()["accuracy"] == 50.0


def test_data_without_unlabelled_images_need_no_node_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyData, "train_u", property(lambda self: None))
    cfg = toy_config(monkeypatch, tmp_path)
    del cfg.DATALOADER["TRAIN_U"]
    trainer = build_trainer(cfg)
    assert trainer.train_loader_u is None


def test_a_whole_tree_stays_what_it_is():
    cfg = get_cfg_default()
    assert with_defaults(cfg) is cfg
    cfg.DATASET.MINE = 3
    assert with_defaults(cfg) is cfg
    del cfg.INPUT["FILL_COLOR"]
    cfg.TRAINER = "mine"  # of another type
    whole = with_defaults(cfg)
    assert (whole.INPUT.FILL_COLOR, whole.DATASET.MINE, whole.TRAINER) == (DEFAULTS.INPUT.FILL_COLOR, 3, "mine")
    assert "FILL_COLOR" not in cfg.INPUT
