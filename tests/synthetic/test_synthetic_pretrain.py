"""The training script runs and learns, and the carried CLIP is what it says: small, ordinary, and not at chance."""

import dataclasses
import math

import pytest
import torch

from clip.clip import locate, tokenize
from clip.model import from_state_dict
from clip.weight_files import read_state_dict
from synthetic import pretrain
from synthetic.archive import expand_vocabulary, write_weights
from synthetic.captions import FRAMES
from synthetic.sets import SETS
from synthetic.zeroshot import measure

LIMIT = 5_000_000  # bytes


@pytest.fixture(scope="module")
def pool():
    return pretrain.draw_pool(pretrain.QUICK.pictures, seed=0)


@pytest.fixture(scope="module")
def carried():
    return read_state_dict(locate("tiny-ViT"))


def test_pool_is_a_function_of_the_seed(pool):
    again, other = pretrain.draw_pool(50, seed=0), pretrain.draw_pool(50, seed=1)
    assert torch.equal(again.pictures, pool.pictures[:50])
    assert torch.equal(again.used[again.tokens], pool.used[pool.tokens[:50]])
    assert not torch.equal(other.pictures, again.pictures)


def test_captions_are_true_of_their_own_picture_and_not_of_all(pool):
    true = pretrain.true_of(pool.said[:200], pool.shown[:200])
    assert true.diagonal().all()
    assert 0.005 < true.float().mean() < 0.2


def test_contrastive_loss_does_not_punish_true_captions():
    z = torch.eye(4)
    t = z[[0, 0, 2, 3]]  # caption 0 is also true of picture 1, and is told of picture 0 as well
    true = torch.eye(4, dtype=torch.bool)
    plain = pretrain.contrastive_loss(z, t, 10.0, true)
    true[1, 0] = true[0, 1] = True
    assert pretrain.contrastive_loss(z, t, 10.0, true) < plain


def test_logit_scale_ends_at_100_and_the_learning_rate_at_0():
    settings = pretrain.Hyperparameters()
    scales = [pretrain.logit_scale(step, settings) for step in range(settings.steps + 1)]
    assert scales == sorted(scales)
    assert scales[0] == pytest.approx(settings.scale_start)
    assert all(scale == pytest.approx(100) for scale in scales[settings.scale_ramp :])
    rates = [pretrain.learning_rate(step, settings) for step in range(settings.steps + 1)]
    assert max(rates) == 1
    assert rates[settings.warmup - 1] == 1
    assert rates[-1] == 0


def test_training_learns_and_is_reproducible(pool):
    settings = dataclasses.replace(pretrain.QUICK, scale_start=100.0)  # losses of one scale
    _, losses = pretrain.train(settings, pool, report_every=10**6)
    assert len(losses) == settings.steps
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.1
    short = dataclasses.replace(settings, steps=4)
    first, again = (pretrain.train(short, pool, report_every=10**6) for _ in range(2))
    assert first[1] == again[1]
    assert torch.equal(first[0].visual.proj, again[0].visual.proj)


def test_quick_mode_writes_a_whole_checkpoint(tmp_path, caplog):
    caplog.set_level("INFO")
    out = tmp_path / "tiny.pt"
    pretrain.main(["--quick", "--out", str(out), "--snapshots", str(tmp_path / "snapshot.pt")])
    model = from_state_dict(read_state_dict(out))
    assert model.token_embedding.weight.shape == (49408, 128)
    assert model.logit_scale.exp().item() == pytest.approx(100)
    assert (tmp_path / "snapshot.pt").is_file()
    assert out.stat().st_size < LIMIT
    assert "zero-shot" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshot.pt", "tiny.pt"]


def test_too_few_steps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--steps 2"):
        pretrain.main(["--quick", "--steps", "2", "--out", str(tmp_path / "tiny.pt")])


def test_archive_is_small_exact_and_the_same_each_time(tmp_path):
    used = torch.tensor([0, 5, 9])
    state = {"token_embedding.weight": torch.randn(3, 8), "logit_scale": torch.tensor(math.log(100))}
    whole = expand_vocabulary(state, used, 1000)
    write_weights(whole, tmp_path / "a.pt")
    write_weights(whole, tmp_path / "b.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    read = torch.load(tmp_path / "a.pt", weights_only=True)
    rows = read["token_embedding.weight"]
    assert torch.equal(rows[used[1:]], state["token_embedding.weight"][1:].half())
    assert rows.count_nonzero(dim=1).gt(0).sum() == 2
    assert read["logit_scale"] == state["logit_scale"]


def test_carried_weights_are_ordinary(carried):
    path = locate("tiny-ViT")
    loaded = torch.load(path, weights_only=True)
    assert set(loaded) == set(carried)
    assert {value.dtype for value in loaded.values() if value.ndim} == {torch.float16}
    model = from_state_dict(loaded)
    assert len(model.visual.transformer.resblocks) == 6
    assert loaded["token_embedding.weight"].shape[0] == 49408
    assert model.logit_scale.exp().item() == pytest.approx(100)
    with open(path, "rb") as file:
        assert len(file.read()) <= LIMIT


def test_carried_weights_know_every_class_name_and_frame(carried):
    known = carried["token_embedding.weight"].count_nonzero(dim=1) > 0
    names = [name for drawn in SETS.values() for name in drawn.class_names]
    tokens = tokenize([f"a photo of a {name}." for name in names] + [frame.format("star") for frame in FRAMES])
    assert known[tokens[tokens > 0]].all()


def test_carried_clip_is_far_above_chance(carried):
    """Chance is 10 %; a few pictures per class."""
    model = from_state_dict(carried)
    for name, floor in (("easy", 85), ("thermal", 30)):
        scores = measure(model, dataclasses.replace(SETS[name], sizes=(1, 1, 5)))
        assert min(scores.base, scores.new) > floor
