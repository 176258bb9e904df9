"""Trainers as repositories of the MaPLe family write them, over `build_model(state_dict, design_details)`.

Nothing here knows this project: only the public surface of `clip` and `dassl` is used. `extend_cfg` is part of
`train.py` in such a repository.
"""

import copy
import os.path as osp

import torch
import torch.nn as nn
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from clip import clip
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint


def extend_cfg(cfg):
    cfg.TRAINER.BOTHTOWERS = CN()
    cfg.TRAINER.BOTHTOWERS.N_CTX_VISION = 2
    cfg.TRAINER.BOTHTOWERS.N_CTX_TEXT = 2
    cfg.TRAINER.BOTHTOWERS.CTX_INIT = "a photo of a"
    cfg.TRAINER.BOTHTOWERS.PREC = "fp16"
    cfg.TRAINER.BOTHTOWERS.PROMPT_DEPTH_VISION = 9
    cfg.TRAINER.BOTHTOWERS.PROMPT_DEPTH_TEXT = 9
    cfg.TRAINER.IMAGETOWER = CN()
    cfg.TRAINER.IMAGETOWER.N_CTX_VISION = 2
    cfg.TRAINER.IMAGETOWER.CTX_INIT = "a photo of a"
    cfg.TRAINER.IMAGETOWER.PREC = "fp16"
    cfg.TRAINER.IMAGETOWER.PROMPT_DEPTH_VISION = 1
    cfg.TRAINER.COUPLEDTOWERS = CN()
    cfg.TRAINER.COUPLEDTOWERS.N_CTX = 2
    cfg.TRAINER.COUPLEDTOWERS.CTX_INIT = "a photo of a"
    cfg.TRAINER.COUPLEDTOWERS.PREC = "fp16"
    cfg.TRAINER.COUPLEDTOWERS.PROMPT_DEPTH = 9
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"


def load_clip_to_cpu(cfg, **design):
    url = clip._MODELS[cfg.MODEL.BACKBONE.NAME]
    model_path = clip._download(url)
    try:
        model, state_dict = torch.jit.load(model_path, map_location="cpu").eval(), None
    except RuntimeError:
        model, state_dict = None, torch.load(model_path, map_location="cpu")
    design_details = {"vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0, **design}
    return clip.build_model(state_dict or model.state_dict(), design_details)


class TextEncoder(nn.Module):
    def __init__(self, clip_model):
        super().__init__()
        self.transformer = clip_model.transformer
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.dtype = clip_model.dtype

    def forward(self, prompts, tokenized_prompts, deeper=None):
        x = (prompts + self.positional_embedding.type(self.dtype)).permute(1, 0, 2)
        x = self.transformer(x) if deeper is None else self.transformer([x, deeper, 0])[0]
        x = self.ln_final(x.permute(1, 0, 2)).type(self.dtype)
        return x[torch.arange(x.shape[0]), tokenized_prompts.argmax(dim=-1)] @ self.text_projection


class PromptLearner(nn.Module):
    def __init__(self, words, n_ctx, classnames, clip_model):
        super().__init__()
        dtype = clip_model.dtype
        self.tokenized_prompts = torch.cat([clip.tokenize(f"{words} {c.replace('_', ' ')}.") for c in classnames])
        with torch.no_grad():
            ctx = clip_model.token_embedding(clip.tokenize(words)).type(dtype)[0, 1 : 1 + n_ctx, :]
            embedding = clip_model.token_embedding(self.tokenized_prompts).type(dtype)
        self.ctx = nn.Parameter(ctx)
        self.register_buffer("token_prefix", embedding[:, :1, :])
        self.register_buffer("token_suffix", embedding[:, 1 + n_ctx :, :])

    def forward(self):
        ctx = self.ctx.unsqueeze(0).expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)


class CoupledPromptLearner(PromptLearner):
    def __init__(self, words, n_ctx, depth, classnames, clip_model):
        super().__init__(words, n_ctx, classnames, clip_model)
        text_width = clip_model.ln_final.weight.shape[0]
        image_width = clip_model.visual.conv1.weight.shape[0]
        self.proj = nn.Linear(text_width, image_width)
        self.compound_prompts_text = nn.ParameterList(
            [nn.Parameter(torch.empty(n_ctx, text_width)) for _ in range(depth - 1)]
        )
        for prompt in self.compound_prompts_text:
            nn.init.normal_(prompt, std=0.02)
        layer = nn.Linear(text_width, image_width)
        self.compound_prompt_projections = nn.ModuleList([copy.deepcopy(layer) for _ in range(depth - 1)])

    def deeper_visual(self):
        pairs = zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)
        return [layer(prompt) for layer, prompt in pairs]


class CustomCLIP(nn.Module):
    """Learned context; deep prompts of both towers are parameters of the towers."""

    def __init__(self, prompt_learner, clip_model):
        super().__init__()
        self.prompt_learner = prompt_learner
        self.tokenized_prompts = prompt_learner.tokenized_prompts
        self.image_encoder = clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype

    def features(self, image):
        prompts = self.prompt_learner()
        return self.image_encoder(image.type(self.dtype)), self.text_encoder(prompts, self.tokenized_prompts)

    def forward(self, image, label=None):
        z, t = (x / x.norm(dim=-1, keepdim=True) for x in self.features(image))
        logits = self.logit_scale.exp() * z @ t.t()
        return F.cross_entropy(logits, label) if self.prompt_learner.training else logits


class CoupledCLIP(CustomCLIP):
    """Learned context and deep text prompts, which linear maps carry into the image tower."""

    def features(self, image):
        learner = self.prompt_learner
        text_features = self.text_encoder(learner(), self.tokenized_prompts, learner.compound_prompts_text)
        shared_ctx = learner.proj(learner.ctx)
        return self.image_encoder(image.type(self.dtype), shared_ctx, learner.deeper_visual()), text_features


class FixedTextCLIP(CustomCLIP):
    """Fixed class features; deep prompts of the image tower are parameters of it."""

    def __init__(self, prompt_learner, clip_model):
        super().__init__(prompt_learner, clip_model)
        with torch.no_grad():
            self.register_buffer("fixed", clip_model.encode_text(self.tokenized_prompts), persistent=False)

    def features(self, image):
        return self.image_encoder(image.type(self.dtype)), self.fixed


class PromptedTowers(TrainerX):
    """What the three trainers share."""

    node = registered = ""

    def check_cfg(self, cfg):
        assert cfg.TRAINER[self.node].PREC in ["fp16", "fp32", "amp"]

    def custom_clip(self, settings, classnames):
        raise NotImplementedError

    def build_model(self):
        settings, classnames = self.cfg.TRAINER[self.node], self.dm.dataset.classnames
        self.model = self.custom_clip(settings, classnames)
        assert self.cfg.INPUT.SIZE[0] == self.model.image_encoder.input_resolution
        for name, param in self.model.named_parameters():
            param.requires_grad_("prompt_learner" in name or "VPT" in name)
        print(f"Parameters to be updated: {sorted(n for n, p in self.model.named_parameters() if p.requires_grad)}")
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model(self.registered, self.model, self.optim, self.sched)

    def load_clip(self, settings, **design):
        print(f"Loading CLIP (backbone: {self.cfg.MODEL.BACKBONE.NAME})")
        clip_model = load_clip_to_cpu(self.cfg, **design)
        return clip_model.float() if settings.PREC in ("fp32", "amp") else clip_model

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        loss = self.model(image, label)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        if not directory:
            return
        for name in self.get_model_names():
            file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
            checkpoint = load_checkpoint(osp.join(directory, name, file))
            state_dict = checkpoint["state_dict"]
            for buffer in ("prompt_learner.token_prefix", "prompt_learner.token_suffix"):
                if buffer in state_dict:
                    del state_dict[buffer]
            print(f"Loading weights to {name} from {directory} (epoch = {checkpoint['epoch']})")
            self._models[name].load_state_dict(state_dict, strict=False)


@TRAINER_REGISTRY.register()
class BothTowers(PromptedTowers):
    node, registered = "BOTHTOWERS", "VLPromptLearner"

    def custom_clip(self, settings, classnames):
        clip_model = self.load_clip(
            settings,
            trainer="IVLP",
            vision_depth=settings.PROMPT_DEPTH_VISION,
            vision_ctx=settings.N_CTX_VISION,
            language_depth=settings.PROMPT_DEPTH_TEXT,
            language_ctx=settings.N_CTX_TEXT,
        )
        learner = PromptLearner(settings.CTX_INIT, settings.N_CTX_TEXT, classnames, clip_model)
        return CustomCLIP(learner, clip_model)


@TRAINER_REGISTRY.register()
class ImageTower(PromptedTowers):
    node, registered = "IMAGETOWER", "prompt_learner"

    def custom_clip(self, settings, classnames):
        depth, n_ctx = settings.PROMPT_DEPTH_VISION, settings.N_CTX_VISION
        clip_model = self.load_clip(settings, trainer="VPT", vision_depth=depth, vision_ctx=n_ctx)
        learner = PromptLearner("a photo of a", 0, classnames, clip_model)
        return FixedTextCLIP(learner, clip_model)


@TRAINER_REGISTRY.register()
class CoupledTowers(PromptedTowers):
    node, registered = "COUPLEDTOWERS", "MultiModalPromptLearner"

    def custom_clip(self, settings, classnames):
        assert settings.PROMPT_DEPTH >= 1
        clip_model = self.load_clip(settings, trainer="MaPLe", maple_length=settings.N_CTX)
        learner = CoupledPromptLearner(settings.CTX_INIT, settings.N_CTX, settings.PROMPT_DEPTH, classnames, clip_model)
        return CoupledCLIP(learner, clip_model)
