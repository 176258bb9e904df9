"""Helpers without knowledge of data or training."""

from dassl.utils.logger import Logger, close_logger, log_to_stdout, setup_logger
from dassl.utils.meters import AverageMeter, MetricMeter
from dassl.utils.registry import Registry
from dassl.utils.tools import (
    atomic_write,
    available_cpus,
    check_availability,
    check_isfile,
    collect_env_info,
    did_you_mean,
    download_url,
    get_most_similar_str_to_a_from_b,
    listdir_nohidden,
    mkdir_if_missing,
    read_image,
    read_json,
    seeded,
    set_random_seed,
    stream_seed,
    tolist_if_not,
    write_json,
)

__all__ = [
    "AverageMeter",
    "Logger",
    "MetricMeter",
    "Registry",
    "atomic_write",
    "available_cpus",
    "check_availability",
    "check_isfile",
    "close_logger",
    "collect_env_info",
    "did_you_mean",
    "download_url",
    "get_most_similar_str_to_a_from_b",
    "listdir_nohidden",
    "log_to_stdout",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "seeded",
    "set_random_seed",
    "setup_logger",
    "stream_seed",
    "tolist_if_not",
    "write_json",
]
