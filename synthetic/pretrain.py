"""Train the carried CLIP on drawn pictures and their captions.

    OMP_NUM_THREADS=1 python -m synthetic.pretrain --out clip/checkpoints/tiny-ViT.pt --log synthetic/pretrain.log

An OpenAI ViT CLIP (32x32 pixels, patches of 8, six image and three text blocks of width 128). What makes it learn in
minutes on one core: Muon on the matrices of the blocks and AdamW elsewhere; attention that starts near the identity
("mimetic"), sine-cosine positions; a head, dropped afterwards, that predicts what the caption says; and a contrastive
loss that does not call a pair wrong whose caption is true of the picture. The logit scale is ramped to 100 before
much is learned and held there, as in OpenAI's models: trained with a smaller one, class names end up nearly orthogonal
(a mean cosine distance near 0.9 instead of 0.2), which is not how a large CLIP looks to a method that uses distances.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.clip import tokenize
from clip.model import CLIP, Attention, from_state_dict
from clip.weight_files import read_state_dict
from synthetic.archive import expand_vocabulary, write_weights
from synthetic.captions import caption, left_out
from synthetic.scenes import draw_scene, facts, sample_scene
from synthetic.sets import SETS
from synthetic.zeroshot import measure, normalised, table

logger = logging.getLogger(__name__)

CONTEXT, VOCABULARY = 77, 49408
REPORT_EVERY = 250  # steps
SIZES = {
    "embed_dim": 128,
    "image_resolution": 32,
    "vision_layers": 6,
    "vision_width": 128,
    "vision_patch_size": 8,
    "context_length": CONTEXT,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 3,
}


@dataclass(frozen=True)
class Hyperparameters:
    """Everything that the training depends on.

    The logit scale goes from `scale_start` to 100 in the first `scale_ramp` steps. `says_weight` weighs the auxiliary
    head, down to 0 at the fraction `says_until` of the steps.
    """

    seed: int = 0
    pictures: int = 100_000
    batch: int = 96
    steps: int = 2400
    warmup: int = 150
    lr_adamw: float = 2e-3
    lr_muon: float = 3e-3
    scale_start: float = 14.0
    scale_ramp: int = 100
    says_weight: float = 0.5
    says_until: float = 0.6


QUICK = Hyperparameters(pictures=400, batch=16, steps=16, warmup=3, scale_ramp=3)


@dataclass(frozen=True)
class Pool:
    """Drawn pictures with captions. N pictures, L tokens, F fields of facts.

    `pictures` (N, S, S, 3) bytes; `tokens` (N, L) rows of the shortened token table; `used` (V,) the token id of each
    row; `shown` and `said` (N, F): what is true of the picture and what its caption says, -1 where nothing; `rarity`
    (K,): log of how seldom each fact is said.
    """

    pictures: Tensor
    tokens: Tensor
    used: Tensor
    shown: Tensor
    said: Tensor
    rarity: Tensor


def draw_pool(count: int, seed: int) -> Pool:
    """Draw pictures and captions, each from a random stream of its own."""
    pictures, sentences, shown, said = [], [], [], []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        scene = sample_scene(rng)
        told = left_out(scene, rng)
        sentences.append(caption(told, rng))
        pictures.append(draw_scene(scene, rng))
        shown.append(facts(scene))
        said.append(facts(told))
    distinct = {sentence: row for row, sentence in enumerate(dict.fromkeys(sentences))}
    ids = tokenize(list(distinct), CONTEXT)
    used = torch.unique(ids)
    tokens = torch.searchsorted(used, ids)[[distinct[sentence] for sentence in sentences]]
    shown_codes, said_codes = numbered(shown, said)
    times = torch.bincount(said_codes[said_codes >= 0], minlength=int(shown_codes.max()) + 1)
    rarity = torch.log(count / times.clamp_min(1)) * (times > 0)
    return Pool(torch.from_numpy(np.stack(pictures)), tokens, used, shown_codes, said_codes, rarity)


def numbered(*tables: list[tuple[str, ...]]) -> list[Tensor]:
    """Tables of facts (N, F) as numbers, the same fact in the same field having the same one; -1 for empty ones."""
    codes: dict[tuple[int, str], int] = {}

    def code(fact: tuple[int, str]) -> int:
        return codes.setdefault(fact, len(codes)) if fact[1] else -1

    return [torch.tensor([[code(fact) for fact in enumerate(row)] for row in rows]) for rows in tables]


def mimetic_attention(attention: Attention, generator: torch.Generator) -> None:
    """Start an attention layer near what trained ones look like (Trockman and Kolter, ICML 2023).

    Per head, query times key is about a multiple of the identity, and value times output about a negative one. The
    first is weak enough here that the class token, which is read out, still sees the patches from the first step.
    """
    width = attention.out_proj.in_features
    q, k, v = (torch.empty(width, width) for _ in range(3))
    out = torch.empty(width, width)
    eye = torch.eye(width)
    for head in torch.arange(width).chunk(attention.num_heads):
        noise = torch.randn(2, width, width, generator=generator) * width**-0.5
        left, strength, right = torch.linalg.svd(0.14 * noise[0] + 0.14 * eye)
        root = strength[: len(head)].sqrt()[:, None]
        q[head], k[head] = root * left.T[: len(head)], root * right[: len(head)]
        left, strength, right = torch.linalg.svd(0.4 * noise[1] - 0.4 * eye)
        root = strength[: len(head)].sqrt()[:, None]
        out[:, head], v[head] = (root * left.T[: len(head)]).T, root * right[: len(head)]
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([q, k, v]))
        attention.in_proj_bias.zero_()
        attention.out_proj.weight.copy_(out)


def sine_cosine(grid: int, width: int) -> Tensor:
    """Two-dimensional sine-cosine positions (grid * grid, width)."""
    frequency = 100.0 ** -torch.linspace(0, 1, width // 4)
    angle = torch.arange(grid)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def build_model(vocabulary: int, seed: int) -> CLIP:
    """The small CLIP with a token table of that many rows, at its initial weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**SIZES, vocab_size=vocabulary)
    for block in model.visual.transformer.resblocks:
        mimetic_attention(block.attn, generator)
    grid = SIZES["image_resolution"] // SIZES["vision_patch_size"]
    with torch.no_grad():
        model.visual.positional_embedding[1:] = 0.5 * sine_cosine(grid, SIZES["vision_width"])
    model.logit_scale.requires_grad_(False)
    return model


def split_parameters(model: CLIP, head: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(matrices of the transformer blocks, which Muon takes; all the rest, which AdamW takes)."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if "resblocks" in name and parameter.ndim == 2 else rest).append(parameter)
    return matrices, rest + list(head.parameters())


def learning_rate(step: int, settings: Hyperparameters) -> float:
    """Factor of the peak learning rate: linear up, then linear down to 0."""
    return min(
        (step + 1) / settings.warmup,
        (settings.steps - step) / (settings.steps - settings.warmup),
        1.0,
    )


def logit_scale(step: int, settings: Hyperparameters) -> float:
    """Scale of the cosines: geometrically from `scale_start` to 100 during the ramp, then 100."""
    left = max(0.0, 1 - step / settings.scale_ramp)
    return 100.0 * (settings.scale_start / 100.0) ** left


def true_of(said: Tensor, shown: Tensor) -> Tensor:
    """Which captions are true of which pictures: facts (B, F) and (B, F) -> (pictures, captions) boolean."""
    agrees = (said[None] == -1) | (said[None] == shown[:, None])
    return agrees.all(dim=2)


def contrastive_loss(z: Tensor, t: Tensor, scale: float, true: Tensor) -> Tensor:
    """Symmetric InfoNCE of unit features (B, E); true pairs that are not each other's own do not count as wrong."""
    own = torch.arange(len(z))
    logits = scale * z @ t.T
    logits = logits.masked_fill(true & ~torch.eye(len(z), dtype=torch.bool), -math.inf)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def says_loss(scores: Tensor, said: Tensor, rarity: Tensor) -> Tensor:
    """Cross-entropy of predicted facts (B, K) with those said (B, F), rare ones weighing more."""
    target = torch.zeros_like(scores).scatter_(1, said.clamp_min(0), 1.0)
    target[:, 0] = (said == 0).any(dim=1).to(target.dtype)
    target = target * rarity
    return F.cross_entropy(scores, target / target.sum(dim=1, keepdim=True).clamp_min(1e-6))


def batches(settings: Hyperparameters) -> Iterator[Tensor]:
    """Endless batches of picture numbers, in a new random order each time round."""
    generator = torch.Generator().manual_seed(settings.seed)
    while True:
        order = torch.randperm(settings.pictures, generator=generator)
        yield from order[: settings.pictures // settings.batch * settings.batch].split(settings.batch)


def train(
    settings: Hyperparameters, pool: Pool, report_every: int = REPORT_EVERY, snapshot: Path | None = None
) -> tuple[CLIP, list[float]]:
    """Train on the pool and return the model (token table still short) and the contrastive loss of each step."""
    model = build_model(len(pool.used), settings.seed)
    head = nn.Linear(SIZES["embed_dim"], len(pool.rarity))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    matrices, rest = split_parameters(model, head)
    muon = torch.optim.Muon(matrices, lr=settings.lr_muon, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=settings.lr_adamw, betas=(0.9, 0.98), weight_decay=0.05)
    losses: list[float] = []
    for step, rows in zip(range(settings.steps), batches(settings), strict=False):
        factor = learning_rate(step, settings)
        muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"] = (
            settings.lr_muon * factor,
            settings.lr_adamw * factor,
        )
        z = model.encode_image(normalised(pool.pictures[rows]))
        t = F.normalize(model.encode_text(pool.tokens[rows]), dim=-1)
        true = true_of(pool.said[rows], pool.shown[rows])
        loss = contrastive_loss(F.normalize(z, dim=-1), t, logit_scale(step, settings), true)
        losses.append(loss.item())
        weight = settings.says_weight * max(0.0, 1 - step / (settings.says_until * settings.steps))
        (loss + weight * says_loss(head(z), pool.said[rows], pool.rarity)).backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        for optimiser in (muon, adamw):
            optimiser.step()
            optimiser.zero_grad()
        if (step + 1) % report_every == 0:
            report(step + 1, settings, model, pool, float(np.mean(losses[-report_every:])))
            if snapshot:
                save(model, pool, settings, step + 1, snapshot)
    return model, losses


def report(step: int, settings: Hyperparameters, model: CLIP, pool: Pool, loss: float) -> None:
    """Log progress: zero-shot accuracy on validation pictures of the *base* classes; new ones are for the end."""
    measured = {name: measure(model, drawn, "val", settings.seed, pool.used) for name, drawn in SETS.items()}
    scores = " ".join(f"{name} {m.base:.0f}" for name, m in measured.items())
    apart = measured["thermal"]
    logger.info(
        "step %d/%d loss %.3f scale %.0f | base val: %s | thermal d_nn %.3f d_avg %.3f",
        *(step, settings.steps, loss, logit_scale(step, settings), scores, apart.d_nn, apart.d_avg),
    )


def save(model: CLIP, pool: Pool, settings: Hyperparameters, step: int, path: Path) -> None:
    """Write the model with the whole token table and the scale of that step."""
    state = expand_vocabulary(model.state_dict(), pool.used, VOCABULARY)
    state["logit_scale"] = torch.tensor(math.log(logit_scale(step, settings)))
    write_weights(state, path)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="weights file to write")
    parser.add_argument("--log", type=Path, help="log file to write")
    parser.add_argument("--seed", type=int, default=Hyperparameters.seed)
    parser.add_argument("--steps", type=int, help=f"training steps (default {Hyperparameters.steps})")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few pictures: does it run?")
    parser.add_argument("--snapshots", type=Path, help="weights file to write at each report")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Draw, train, write, measure."""
    args = build_parser().parse_args(words)
    settings = replace(QUICK if args.quick else Hyperparameters(), seed=args.seed)
    if args.steps is not None:
        if args.steps <= settings.warmup:
            raise ValueError(f"--steps {args.steps}: there must be more than the {settings.warmup} of the warm-up")
        settings = replace(settings, steps=args.steps)
    logger.info("hyperparameters: %s", asdict(settings))
    begun = time.process_time()
    pool = draw_pool(settings.pictures, settings.seed)
    longest = int(pool.tokens.argmax(dim=1).max()) + 1
    logger.info("drew %d pictures, %d token ids, longest caption %d", settings.pictures, len(pool.used), longest)
    model, losses = train(settings, pool, min(REPORT_EVERY, settings.steps), args.snapshots)
    save(model, pool, settings, settings.steps, args.out)
    tenth = max(1, settings.steps // 10)
    first, last = np.mean(losses[:tenth]), np.mean(losses[-tenth:])
    minutes = (time.process_time() - begun) / 60
    logger.info("loss %.3f -> %.3f in %.1f CPU minutes", first, last, minutes)
    logger.info("%s: %.2f MB; zero-shot on test pictures:", args.out.name, args.out.stat().st_size / 1e6)
    names = ("easy",) if args.quick else tuple(SETS)
    logger.info("%s", table(from_state_dict(read_state_dict(args.out)), names=names))


def log_to(path: Path | None) -> None:
    """Send this module's lines to standard output and, where one is named, to a file."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if path:
        handlers.append(logging.FileHandler(path, mode="w", encoding="utf-8"))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers)


if __name__ == "__main__":
    log_to(build_parser().parse_args().log)
    main()
