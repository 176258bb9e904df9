"""The default configuration tree.

Every key that Dassl's data and trainers may read is here.  Keys marked (foreign) are read by nothing in this engine:
they are there because data sets and trainers written for Dassl read them.
"""

from yacs.config import CfgNode as CN

DEFAULTS = CN()

DEFAULTS.VERSION = 1
DEFAULTS.OUTPUT_DIR = "./output"
DEFAULTS.RESUME = ""  # folder of an interrupted run; empty: OUTPUT_DIR
DEFAULTS.SEED = -1  # from 0 on: of all random numbers
DEFAULTS.USE_CUDA = True
DEFAULTS.VERBOSE = True

DEFAULTS.INPUT = CN(
    {
        "SIZE": (224, 224),  # height, width
        "INTERPOLATION": "bilinear",  # bilinear, bicubic or nearest
        "RESIZE_MODE": "shortest",  # of test images: shortest (side to SIZE, centre taken), longest (padded) or squash
        "FILL_COLOR": 0,  # 0 to 255: grey of what longest pads
        "TRANSFORMS": (),  # names of dassl.data.transforms
        "NO_TRANSFORM": False,
        "PIXEL_MEAN": [0.485, 0.456, 0.406],
        "PIXEL_STD": [0.229, 0.224, 0.225],
        "CROP_PADDING": 4,
        "RRCROP_SCALE": (0.08, 1.0),
        "CUTOUT_N": 1,
        "CUTOUT_LEN": 16,
        "GN_MEAN": 0.0,
        "GN_STD": 0.15,
        "RANDAUGMENT_N": 2,
        "RANDAUGMENT_M": 10,
        "COLORJITTER_B": 0.4,
        "COLORJITTER_C": 0.4,
        "COLORJITTER_S": 0.4,
        "COLORJITTER_H": 0.1,
        "RGS_P": 0.2,
        "GB_P": 0.5,
        "GB_K": 21,
    }
)

DEFAULTS.DATASET = CN(
    {
        "ROOT": "",
        "NAME": "",
        "SUBSAMPLE_CLASSES": "all",  # all, base or new
        "NUM_SHOTS": -1,  # training samples per class; below 1: all
        "ALLOW_SAME_NAMES": False,  # run although classes have names that are the same sentence to the model
        "SOURCE_DOMAINS": (),
        "TARGET_DOMAINS": (),
        "NUM_LABELED": -1,  # (foreign), as all below
        "VAL_PERCENT": 0.1,
        "STL10_FOLD": -1,
        "CIFAR_C_TYPE": "",
        "CIFAR_C_LEVEL": 1,
        "ALL_AS_UNLABELED": False,
    }
)

_TRAIN_LOADER = {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16}
DEFAULTS.DATALOADER = CN(
    {
        "NUM_WORKERS": 4,
        "CACHE_MB": 1024,  # decoded images are kept in memory up to so much, for all runs of a process; 0: none
        "RANDOM_STREAMS": "auto",  # of order and augmentation: keyed by (seed, epoch, sample), global generators, auto
        "K_TRANSFORMS": 1,  # how many times each training image is augmented
        "RETURN_IMG0": False,  # also give the image without augmentation
        "TRAIN_X": dict(_TRAIN_LOADER),
        "TRAIN_U": {"SAME_AS_X": True, **_TRAIN_LOADER},
        "TEST": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32},
    }
)

DEFAULTS.MODEL = CN(
    {
        "INIT_WEIGHTS": "",  # checkpoint to start from
        "BACKBONE": {"NAME": "", "PATH": "", "PRETRAINED": True},  # PATH: weights file, or folder of weights files
        "HEAD": {"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0},
    }
)

DEFAULTS.OPTIM = CN(
    {
        "NAME": "adam",
        "LR": 0.0003,
        "WEIGHT_DECAY": 5e-4,
        "MOMENTUM": 0.9,
        "SGD_DAMPNING": 0,
        "SGD_NESTEROV": False,
        "RMSPROP_ALPHA": 0.99,
        "ADAM_BETA1": 0.9,
        "ADAM_BETA2": 0.999,
        "STAGED_LR": False,  # children named in NEW_LAYERS learn at LR, the others at LR * BASE_LR_MULT
        "NEW_LAYERS": (),
        "BASE_LR_MULT": 0.1,
        "LR_SCHEDULER": "single_step",
        "STEPSIZE": (-1,),  # epochs; -1: MAX_EPOCH
        "GAMMA": 0.1,
        "MAX_EPOCH": 10,
        "WARMUP_EPOCH": -1,  # above 0: that many epochs of warm-up
        "WARMUP_TYPE": "linear",  # linear or constant
        "WARMUP_CONS_LR": 1e-5,
        "WARMUP_MIN_LR": 1e-5,
        "WARMUP_RECOUNT": True,  # the schedule begins after the warm-up, not with it
    }
)

DEFAULTS.TRAIN = CN(
    {
        "CHECKPOINT_FREQ": 0,  # epochs; 0: only the last
        "CHECKPOINT_MINUTES": 10.0,  # between interim checkpoints, two of which are kept until the last epoch; 0: none
        "PRINT_FREQ": 10,  # batches
        "TRACKERS": (),  # where numbers go beside TensorBoard: csv, wandb, mlflow
        "MEMORY_GB": 0.0,  # that a step's activations may take, where a trainer can save some; 0: what is free
        "COUNT_ITER": "train_x",  # of two loaders, which one measures the epoch: train_x, train_u, smaller_one
    }
)

DEFAULTS.TEST = CN(
    {
        "EVALUATOR": "Classification",
        "PER_CLASS_RESULT": False,
        "COMPUTE_CMAT": False,  # save the confusion matrix to OUTPUT_DIR/cmat.pt
        "NO_TEST": False,
        "SPLIT": "test",
        "FINAL_MODEL": "last_step",  # last_step or best_val
        "TRANSDUCTIVE": "",  # how all test images are looked at before any is answered; empty: they are not
        "KEEP_PREDICTIONS": True,  # write what was answered for each image to OUTPUT_DIR/predictions.npz
        "KEEP_VAL_PREDICTIONS": False,  # beside a test, also evaluate the validation images: predictions-val.npz
        "CACHE_FEATURES": True,  # features of frozen towers may be kept on disk, where a trainer does that
    }
)

DEFAULTS.TRAINER = CN({"NAME": ""})
