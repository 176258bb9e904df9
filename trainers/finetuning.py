"""Fine-tuning of CLIP's own weights with cross-entropy, the class features computed anew in every step: the baselines.

All weights of the towers: with ALPHA below 1 averaged with the frozen ones for evaluation (Wortsman et al., "Robust
fine-tuning of zero-shot models", CVPR 2022, arXiv 2109.01903). Biases alone: Ben Zaken et al., "BitFit: Simple
Parameter-efficient Fine-tuning for Transformer-based Masked Language-models", ACL 2022 (arXiv 2106.10199). Scales and
shifts of the LayerNorms alone: the first stage of Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language
Models in Two Stages", CVPR 2025 (arXiv 2503.11609), for all steps.
"""

from yacs.config import CfgNode

from adaptation.learned_weights import LearnedTowers, LearnedTowersTrainer, tower_weights
from adaptation.method import Method
from adaptation.step_budget import StepBudgetTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY


class FineTuning(LearnedTowersTrainer):
    """Fine-tunes one kind of weights.

    Class attributes:
        kind: which, as in `tower_weights`.
    """

    kind = "all"

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """The towers with these weights to learn, as the keys say."""
        names = tower_weights(backbone, self.settings.ENCODER, self.kind)
        return LearnedTowers(backbone, classnames, self.template, names, self.settings.ALPHA)


@TRAINER_REGISTRY.register()
class FullFineTuning(FineTuning):
    """Fine-tunes all weights of the towers; the logit scale stays."""

    supports_stacking = False  # several runs' weights and their optimisers' states do not belong into one memory
    CONFIG = {"FULLFINETUNING": CfgNode({**LearnedTowersTrainer.KEYS})}


class SmallFineTuning(StepBudgetTrainer, FineTuning):
    """Fine-tunes few weights, for a number of steps."""

    KEYS = {**LearnedTowersTrainer.KEYS, "N_ITERS": 0, "LR_MIN": 1e-6}


@TRAINER_REGISTRY.register()
class LayerNormTuning(SmallFineTuning):
    """Fine-tunes scale and shift of all LayerNorms."""

    kind = "norm"
    CONFIG = {"LAYERNORMTUNING": CfgNode({**SmallFineTuning.KEYS})}


@TRAINER_REGISTRY.register()
class BitFit(SmallFineTuning):
    """Fine-tunes all biases."""

    kind = "bias"
    CONFIG = {"BITFIT": CfgNode({**SmallFineTuning.KEYS})}
