"""Batches go through the towers in parts where memory is short: the same features and gradients from less memory."""

import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from clip_models import SENTENCES
from small_methods import BASE, batch, draw, small_vit

from adaptation import stacking
from adaptation.stacking import ConstantsEqual, RunBatcher, stacked_losses
from adaptation.templates import DEFAULT
from clip import chunking, precision, towers
from clip.chunking import ChunkedEncoder, counted_activations, select_rows
from clip.precision import CPU, Precision, free_memory
from trainers.apex import APEXMethod
from trainers.cocoop import CoCoOpMethod
from trainers.mmrl import MMRLMethod

GIB = 2**30
CLASSES = [*BASE, "oak", "elm"]


@pytest.fixture(scope="module")
def backbone():
    return small_vit()


def step(backbone, kind=APEXMethod, **arguments):
    """Loss, gradients and activations in bytes of one training step."""
    torch.manual_seed(0)
    method = kind(backbone, CLASSES, **arguments)
    method.train()
    with counted_activations(without=backbone.parameters()) as kept:
        loss, _ = method.loss(*batch(method))
        size = kept()
    return loss, torch.autograd.grad(loss, [p for p in method.parameters() if p.requires_grad]), size


INSERTING = partial(MMRLMethod, template=DEFAULT, n=2, width=8, layers=(2, 3), share=0.5)


@pytest.mark.parametrize("kind", [APEXMethod, CoCoOpMethod, INSERTING], ids=["APEX", "CoCoOp", "MMRL"])
def test_parts_give_the_same_step_from_less_memory(backbone, kind, caplog):
    short, ample = backbone.with_memory_limit(50_000), backbone.with_memory_limit(GIB)
    loss, gradients, size = step(ample, kind)
    with caplog.at_level(logging.INFO, "clip"):
        loss_in_parts, gradients_in_parts, size_in_parts = step(short, kind)
    assert size_in_parts < size / 2
    torch.testing.assert_close(loss_in_parts, loss, rtol=1e-6, atol=1e-6)
    for one, other in zip(gradients_in_parts, gradients, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    said = [message for message in caplog.messages if "at a time" in message]
    assert any("sentences would keep" in message for message in said)


def test_parts_with_prompts_of_each_sample_and_without(backbone):
    torch.manual_seed(0)
    shared, own = torch.randn(2, 64, requires_grad=True), torch.randn(len(SENTENCES), 2, 64, requires_grad=True)
    tokens = backbone.tokenize(SENTENCES)
    results = []
    for b in (backbone.with_memory_limit(1), backbone.with_memory_limit(GIB)):
        features = b.encode_text(tokens, [None, own, shared])
        results.append((features, *torch.autograd.grad(features.square().sum(), [own, shared])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    samples, prompts = select_rows(slice(1, 3), [tokens], [None, own, shared])
    assert [len(samples[0]), prompts[0], prompts[1].shape, prompts[2].shape] == [2, None, (2, 2, 64), (2, 64)]


def test_the_estimate_is_what_a_step_keeps(backbone, monkeypatch, caplog):
    monkeypatch.setattr(chunking, "WORTH_SAYING", 0)
    images, prompts = draw(backbone, 8), [torch.randn(2, 64, requires_grad=True)]
    limited = backbone.with_memory_limit(GIB)
    with caplog.at_level(logging.INFO, "clip"):
        limited.encode_image(images[:2], prompts)
        limited.encode_image(images, prompts)
    assert [message.split(" keep ")[0] for message in caplog.messages] == ["Memory: 2 images", "Memory: 8 images"]
    one, two, eight = (chunking.activations(backbone.encode_image, [images[:n]], prompts) for n in (1, 2, 8))
    assert eight == pytest.approx(one + 7 * (two - one), rel=0.01)


def test_nothing_is_split_where_nothing_is_kept(backbone):
    poor = backbone.with_memory_limit(1)
    poor.encode_image(draw(backbone))  # no gradient
    with torch.no_grad():
        poor.encode_text(poor.tokenize(SENTENCES))
    with chunking.unchunked(poor):
        poor.encode_image(draw(backbone), [torch.randn(2, 64, requires_grad=True)])
    assert not poor.is_chunked


def test_where_all_fits_the_tower_is_run_as_it_is_from_the_second_step_on(backbone):
    prompts, ample, poor = (
        [torch.randn(2, 64, requires_grad=True)],
        backbone.with_memory_limit(GIB),
        backbone.with_memory_limit(1),
    )
    for limited in (ample, poor):
        for _ in range(2):
            assert isinstance(limited.run_image, ChunkedEncoder)
            limited.encode_image(draw(backbone), prompts)
    assert ample.run_image is towers.encode_image
    assert isinstance(ample.run_text, ChunkedEncoder)
    assert isinstance(poor.run_image, ChunkedEncoder)
    assert poor.is_chunked


def test_free_memory_of_the_host(tmp_path, monkeypatch):
    assert free_memory(CPU) > 0
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    monkeypatch.setattr(precision, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(precision, "CGROUP", tmp_path)
    assert free_memory(CPU) == 5000 * 1024
    for name, text in (("max", "4000000\n"), ("current", "3000000\n"), ("stat", "anon 1\nfile 500000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_memory(CPU) == 1_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(CPU) == 5000 * 1024
    (tmp_path / "meminfo").unlink()
    assert free_memory(CPU) is None


def pack(backbone, count: int, room: int) -> list[int]:
    """How many runs each joint computation had, over two steps of so many runs."""
    limited, packing, sizes = backbone.with_memory_limit(room), RunBatcher(), []

    def counted(piece, same):
        sizes.append(len(piece))
        return stacked_losses(piece, same)

    shared = {"precision": Precision("fp32", CPU), "backbone": limited, "backward": torch.Tensor.backward}
    trainers = [
        SimpleNamespace(
            model=APEXMethod(limited, CLASSES).train(), cfg=SimpleNamespace(SEED=seed), stacking={}, **shared
        )
        for seed in range(count)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacking, "stacked_losses", counted)
        for _ in range(2):
            answers = packing.outputs("step", [(trainer, *batch(trainer.model)) for trainer in trainers])
            assert len(answers) == count
            assert all(torch.isfinite(loss) for loss, _ in answers)
    return sizes


def test_as_many_runs_together_as_there_is_room_for(backbone):
    torch.manual_seed(0)
    *_, one = step(backbone.with_memory_limit(GIB))
    assert pack(backbone, 5, GIB) == [5, 5]  # a step of one run that is measured first leaves nothing behind
    assert pack(backbone, 5, int(5.5 * one)) == [2, 2, 1, 2, 2, 1]
    assert pack(backbone, 3, 50_000) == [1, 1, 1, 1, 1, 1]  # a run alone has to go in parts


def test_a_step_that_fails_is_its_own_run_only(backbone):
    shared = {"precision": Precision("fp32", CPU), "backbone": backbone, "backward": torch.Tensor.backward}
    methods = [APEXMethod(backbone, BASE).train() for _ in range(3)]
    trainers = [
        SimpleNamespace(model=method, cfg=SimpleNamespace(SEED=seed), stacking={}, **shared)
        for seed, method in enumerate(methods)
    ]
    methods[0].loss = lambda images, labels: 1 / 0
    requests = [(trainer, *batch(trainer.model)) for trainer in trainers]
    failed, *answers = RunBatcher().outputs("step", requests)
    assert isinstance(failed, ZeroDivisionError)
    assert all(torch.isfinite(loss) for loss, _ in answers)


def test_constants_are_compared_once(monkeypatch):
    same, calls = ConstantsEqual(), []
    monkeypatch.setattr(torch, "equal", lambda a, b: calls.append(1) or bool((a == b).all()))
    a, b = torch.ones(3), torch.ones(3)
    assert same(a, b)
    assert same(a, b)
    assert len(calls) == 1
    b[0] = 2
    assert not same(a, b)
    assert not same(a, torch.ones(4))
    assert not same(a, torch.ones(3, requires_grad=True))
    assert len(calls) == 2
