"""What importing the engine costs and does, and the names that third-party code imports."""

import importlib
import subprocess
import sys

import pytest

NAMES = {
    "dassl.config": "clean_cfg get_cfg_default",
    "dassl.data": "DataManager DatasetWrapper",
    "dassl.data.data_manager": "DataManager DatasetWrapper build_data_loader",
    "dassl.data.datasets": "DATASET_REGISTRY DatasetBase Datum build_dataset",
    "dassl.data.datasets.base_dataset": "DatasetBase Datum",
    "dassl.data.datasets.build": "DATASET_REGISTRY build_dataset",
    "dassl.data.samplers": "build_sampler",
    "dassl.data.transforms": "build_transform",
    "dassl.data.transforms.transforms": "build_transform",
    "dassl.engine": "SimpleTrainer TRAINER_REGISTRY TrainerBase TrainerX TrainerXU build_trainer",
    "dassl.engine.build": "TRAINER_REGISTRY build_trainer",
    "dassl.engine.trainer": "AverageMeter MetricMeter SimpleTrainer SummaryWriter TrainerBase TrainerX TrainerXU",
    "dassl.evaluation": "Classification EVALUATOR_REGISTRY EvaluatorBase build_evaluator",
    "dassl.metrics": "compute_accuracy compute_distance_matrix cosine_distance euclidean_squared_distance",
    "dassl.optim": "build_lr_scheduler build_optimizer",
    "dassl.optim.lr_scheduler": "ConstantWarmupScheduler LinearWarmupScheduler build_lr_scheduler",
    "dassl.optim.optimizer": "build_optimizer",
    "dassl.optim.radam": "RAdam",
    "dassl.utils": "AverageMeter Logger MetricMeter Registry check_availability check_isfile collect_env_info "
    "count_num_param download_url get_most_similar_str_to_a_from_b listdir_nohidden load_checkpoint "
    "load_pretrained_weights mkdir_if_missing open_all_layers open_specified_layers read_image read_json "
    "resume_from_checkpoint save_checkpoint set_random_seed setup_logger tolist_if_not write_json",
    "dassl.utils.logger": "Logger setup_logger",
    "dassl.utils.meters": "AverageMeter MetricMeter",
    "dassl.utils.registry": "Registry",
    "dassl.utils.tools": "collect_env_info listdir_nohidden mkdir_if_missing read_json set_random_seed write_json",
    "dassl.utils.torchtools": "load_checkpoint load_pretrained_weights save_checkpoint",
}


@pytest.mark.parametrize("module", NAMES)
def test_names(module):
    loaded = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(loaded, name)] == []


def test_importing_registers_nothing_and_loads_little(repo_root):
    program = """
import sys, dassl, dassl.config, dassl.data, dassl.data.datasets, dassl.engine, dassl.evaluation, dassl.optim
assert dassl.__version__ == "0.6.3"
assert dassl.engine.TRAINER_REGISTRY.registered_names() == []
assert dassl.data.datasets.DATASET_REGISTRY.registered_names() == []
foreign = {"adaptation", "clip", "datasets", "trainers", "utils", "templates"}
heavy = {"torchvision", "sklearn", "scipy", "pandas", "tensorboard", "gdown", "matplotlib"}
assert not (foreign | heavy) & set(sys.modules), (foreign | heavy) & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], cwd=repo_root, check=True)
