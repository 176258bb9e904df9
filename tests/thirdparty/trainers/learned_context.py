"""Trainers as repositories of the CoOp family write them, over `build_model(state_dict)`: context learned in the input.

Nothing here knows this project: only the public surface of `clip` and `dassl` is used, and no configuration key is
declared.
"""

import os.path as osp

import torch
import torch.nn as nn
from torch.cuda.amp import GradScaler, autocast
from torch.nn import functional as F

from clip import clip
from clip.simple_tokenizer import SimpleTokenizer as _Tokenizer
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights

_tokenizer = _Tokenizer()


def load_clip_to_cpu(cfg):
    path = clip._download(clip._MODELS[cfg.MODEL.BACKBONE.NAME])
    try:
        archive = torch.jit.load(path, map_location="cpu").eval()
        state_dict = archive.state_dict()
    except RuntimeError:
        state_dict = torch.load(path, map_location="cpu")
    return clip.build_model(state_dict)


class TextEncoder(nn.Module):
    def __init__(self, clip_model):
        super().__init__()
        self.transformer = clip_model.transformer
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.dtype = clip_model.dtype

    def forward(self, prompts, tokenized_prompts):
        x = prompts + self.positional_embedding.type(self.dtype)
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_final(x).type(self.dtype)
        return x[torch.arange(x.shape[0]), tokenized_prompts.argmax(dim=-1)] @ self.text_projection


class PromptLearner(nn.Module):
    def __init__(self, settings, classnames, clip_model):
        super().__init__()
        n_ctx, words = settings.N_CTX, settings.CTX_INIT
        dtype, width = clip_model.dtype, clip_model.ln_final.weight.shape[0]
        if words:
            n_ctx = len(words.split(" "))
            with torch.no_grad():
                ctx = clip_model.token_embedding(clip.tokenize(words)).type(dtype)[0, 1 : 1 + n_ctx, :]
        else:
            words, ctx = " ".join(["X"] * n_ctx), torch.empty(n_ctx, width, dtype=dtype)
            nn.init.normal_(ctx, std=0.02)
        self.ctx = nn.Parameter(ctx)
        classnames = [name.replace("_", " ") for name in classnames]
        self.name_lens = [len(_tokenizer.encode(name)) for name in classnames]
        self.tokenized_prompts = torch.cat([clip.tokenize(f"{words} {name}.") for name in classnames])
        with torch.no_grad():
            embedding = clip_model.token_embedding(self.tokenized_prompts).type(dtype)
        self.register_buffer("token_prefix", embedding[:, :1, :])
        self.register_buffer("token_suffix", embedding[:, 1 + n_ctx :, :])

    def forward(self, shift=None):
        ctx = self.ctx if shift is None else self.ctx + shift
        ctx = ctx.unsqueeze(0).expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)


class CustomCLIP(nn.Module):
    def __init__(self, settings, classnames, clip_model):
        super().__init__()
        self.prompt_learner = PromptLearner(settings, classnames, clip_model)
        self.tokenized_prompts = self.prompt_learner.tokenized_prompts
        self.image_encoder = clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype

    def classify(self, image_features, prompts):
        text_features = self.text_encoder(prompts, self.tokenized_prompts)
        image_features = image_features / image_features.norm(dim=-1, keepdim=True)
        text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        return self.logit_scale.exp() * image_features @ text_features.t()

    def forward(self, image):
        return self.classify(self.image_encoder(image.type(self.dtype)), self.prompt_learner())


class ConditionalCLIP(CustomCLIP):
    def __init__(self, settings, classnames, clip_model):
        super().__init__(settings, classnames, clip_model)
        width, out = clip_model.visual.output_dim, clip_model.ln_final.weight.shape[0]
        hidden = width // 16
        self.prompt_learner.meta_net = nn.Sequential()
        self.prompt_learner.meta_net.add_module("linear1", nn.Linear(width, hidden))
        self.prompt_learner.meta_net.add_module("relu", nn.ReLU())
        self.prompt_learner.meta_net.add_module("linear2", nn.Linear(hidden, out))

    def forward(self, image):
        features = F.normalize(self.image_encoder(image.type(self.dtype)), dim=-1)
        shifts = self.prompt_learner.meta_net(features)
        return torch.stack([self.classify(z, self.prompt_learner(s)) for z, s in zip(features, shifts, strict=True)])


@TRAINER_REGISTRY.register()
class LearnedContext(TrainerX):
    kind = CustomCLIP

    def check_cfg(self, cfg):
        assert cfg.TRAINER.LEARNEDCONTEXT.PREC in ["fp16", "fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        settings = cfg.TRAINER.LEARNEDCONTEXT
        clip_model = load_clip_to_cpu(cfg)
        if settings.PREC in ("fp32", "amp"):
            clip_model.float()
        assert cfg.INPUT.SIZE[0] == clip_model.visual.input_resolution
        self.model = self.kind(settings, self.dm.dataset.classnames, clip_model)
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model.prompt_learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)
        self.scaler = GradScaler() if settings.PREC == "amp" else None
        if torch.cuda.device_count() > 1:
            self.model = nn.DataParallel(self.model)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        if self.cfg.TRAINER.LEARNEDCONTEXT.PREC == "amp":
            with autocast():
                output = self.model(image)
                loss = F.cross_entropy(output, label)
            self.optim.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        else:
            output = self.model(image)
            loss = F.cross_entropy(output, label)
            self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        file = "model-best.pth.tar" if epoch is None else "model.pth.tar-" + str(epoch)
        for name in self.get_model_names():
            path = osp.join(directory, name, file)
            if not osp.exists(path):
                raise FileNotFoundError(f'Model not found at "{path}"')
            checkpoint = load_checkpoint(path)
            state_dict = checkpoint["state_dict"]
            for buffer in ("token_prefix", "token_suffix"):
                state_dict.pop(buffer, None)
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint["epoch"]})')
            self._models[name].load_state_dict(state_dict, strict=False)


@TRAINER_REGISTRY.register()
class ConditionalContext(LearnedContext):
    kind = ConditionalCLIP
