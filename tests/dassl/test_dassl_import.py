"""What importing the engine costs and does, and the names that third-party code imports."""

import ast
import importlib
import subprocess
import sys

import pytest

NAMES = {
    "dassl.config": "clean_cfg get_cfg_default",
    "dassl.data": "DataManager DatasetWrapper",
    "dassl.data.data_manager": "DataManager DatasetWrapper INTERPOLATION_MODES build_data_loader build_transform",
    "dassl.data.datasets": "DATASET_REGISTRY DatasetBase Datum DigitsDG DomainNet Office31 OfficeHome OfficeHomeDG "
    "PACS VLCS VisDA17 build_dataset miniDomainNet",
    "dassl.data.datasets.base_dataset": "DatasetBase Datum",
    "dassl.data.datasets.build": "DATASET_REGISTRY build_dataset",
    "dassl.data.samplers": "RandomClassSampler RandomDomainSampler SeqDomainSampler build_sampler",
    "dassl.data.transforms": "INTERPOLATION_MODES build_transform",
    "dassl.data.transforms.randaugment": "RandAugmentFixMatch",
    "dassl.data.transforms.transforms": "build_transform",
    "dassl.engine": "SimpleNet SimpleTrainer TRAINER_REGISTRY TrainerBase TrainerX TrainerXU build_trainer",
    "dassl.engine.build": "TRAINER_REGISTRY build_trainer",
    "dassl.engine.trainer": "AverageMeter MetricMeter SimpleNet SimpleTrainer SummaryWriter TrainerBase TrainerX "
    "TrainerXU build_backbone build_head build_lr_scheduler build_optimizer count_num_param load_checkpoint "
    "load_pretrained_weights resume_from_checkpoint save_checkpoint tolist_if_not",
    "dassl.evaluation": "Classification EVALUATOR_REGISTRY EvaluatorBase build_evaluator",
    "dassl.metrics": "compute_accuracy compute_distance_matrix cosine_distance euclidean_squared_distance",
    "dassl.modeling": "BACKBONE_REGISTRY Backbone HEAD_REGISTRY NETWORK_REGISTRY build_backbone build_head "
    "build_network",
    "dassl.modeling.backbone": "BACKBONE_REGISTRY Backbone build_backbone",
    "dassl.modeling.backbone.backbone": "Backbone",
    "dassl.modeling.backbone.build": "BACKBONE_REGISTRY build_backbone",
    "dassl.modeling.head": "HEAD_REGISTRY build_head mlp",
    "dassl.modeling.head.build": "HEAD_REGISTRY build_head",
    "dassl.modeling.network": "NETWORK_REGISTRY SimpleNet build_network",
    "dassl.modeling.ops": "EFDMix MixStyle crossdomain_mixstyle deactivate_mixstyle mixup random_mixstyle "
    "run_with_mixstyle",
    "dassl.modeling.ops.efdmix": "EFDMix crossdomain_efdmix deactivate_efdmix random_efdmix run_with_efdmix",
    "dassl.modeling.ops.mixstyle": "MixStyle activate_mixstyle deactivate_mixstyle run_without_mixstyle",
    "dassl.modeling.ops.mixup": "mixup",
    "dassl.modeling.ops.utils": "create_onehot",
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
ours = [module for name, module in sys.modules.items() if name.split(".")[0] == "dassl"]
others = [module.__name__ for module in ours if module.__doc__.startswith("For third-party code")]
assert not others, others
import random, numpy, torch
state = lambda: (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
before = state()
import torch.utils.tensorboard, dassl.data.transforms, dassl.data.domain_samplers, dassl.modeling.backbone.vision
assert state() == before  # what is imported in the midst of a run draws nothing
"""
    subprocess.run([sys.executable, "-c", program], cwd=repo_root, check=True)


def _imports(path):
    """The modules that a file imports, at whatever place in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_files_for_third_parties_say_so(repo_root):
    """In their first line: the files that no other room imports, nor the rest of the engine."""
    modules = {
        path: ".".join(path.relative_to(repo_root).with_suffix("").parts) for path in repo_root.glob("*/**/*.py")
    }
    engine = {path: name.removesuffix(".__init__") for path, name in modules.items() if name.startswith("dassl.")}
    marked = {name for path, name in engine.items() if path.read_text().startswith('"""For third-party code')}
    others = [path for path, name in modules.items() if not name.startswith(("dassl.", "tests.", "docs.", "."))]
    reached = set().union(*map(_imports, others))
    assert not marked & reached
    reached = reached.union(*(_imports(path) for path, name in engine.items() if name not in marked))
    assert not set(engine.values()) - marked - reached
