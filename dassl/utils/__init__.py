"""Helpers without knowledge of data or training. Those that need PyTorch load it when somebody asks for them."""

from typing import TYPE_CHECKING

from dassl.utils.files import atomic_write, read_json, remove_leftovers, write_json
from dassl.utils.images import read_image
from dassl.utils.logger import Logger, close_logger, log_to_stdout, open_log, printable, setup_logger, to_log_file
from dassl.utils.meters import AverageMeter, MetricMeter
from dassl.utils.registry import Registry
from dassl.utils.third_party import names_from
from dassl.utils.tools import (
    RUNS_IN_PROCESS,
    available_cpus,
    check_availability,
    check_isfile,
    collect_env_info,
    did_you_mean,
    download_url,
    get_most_similar_str_to_a_from_b,
    group_equal,
    listdir_nohidden,
    mkdir_if_missing,
    seeded,
    set_random_seed,
    stream_seed,
    tolist_if_not,
)

if TYPE_CHECKING:
    from dassl.utils.torchtools import (
        choose_device,
        count_num_param,
        load_checkpoint,
        load_pretrained_weights,
        on_gpu,
        open_all_layers,
        open_specified_layers,
        resume_from_checkpoint,
        save_checkpoint,
    )

__all__ = [
    "RUNS_IN_PROCESS",
    "AverageMeter",
    "Logger",
    "MetricMeter",
    "Registry",
    "atomic_write",
    "available_cpus",
    "check_availability",
    "check_isfile",
    "choose_device",
    "close_logger",
    "collect_env_info",
    "count_num_param",
    "did_you_mean",
    "download_url",
    "get_most_similar_str_to_a_from_b",
    "group_equal",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "log_to_stdout",
    "mkdir_if_missing",
    "on_gpu",
    "open_all_layers",
    "open_log",
    "open_specified_layers",
    "printable",
    "read_image",
    "read_json",
    "remove_leftovers",
    "resume_from_checkpoint",
    "save_checkpoint",
    "seeded",
    "set_random_seed",
    "setup_logger",
    "stream_seed",
    "to_log_file",
    "tolist_if_not",
    "write_json",
]

_OF_TORCHTOOLS = (
    *("choose_device", "count_num_param", "load_checkpoint", "load_pretrained_weights", "on_gpu", "open_all_layers"),
    *("open_specified_layers", "resume_from_checkpoint", "save_checkpoint"),
)
__getattr__ = names_from(__name__, dict.fromkeys(_OF_TORCHTOOLS, "dassl.utils.torchtools"))
