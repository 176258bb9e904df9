"""What a training step costs is counted, and stays within a twentieth of what it needs at least."""

import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks import counts
from benchmarks.limits import LIMITS, of_sentences

NEAR_THE_LIMIT = ("APEX", "CoOp", "CoCoOp", "MaPLe", "IVLP", "PromptSRC", "CLIP_LoRA", "KgCoOp")
CEILING = 1.05


@pytest.fixture(scope="module")
def backbone():
    """The widths and tokens of ViT-B/16, with four blocks: the table of docs/BENCHMARKS.md has all twelve."""
    with counts.without_values(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(counts.SIZES, "four blocks", (512, 224, 4, 768, 16, 77, 49408, 512, 8, 4))
        return counts.backbone_without_values("four blocks")


@pytest.mark.parametrize("classes", [100, 1000])
@pytest.mark.parametrize("name", NEAR_THE_LIMIT)
def test_a_step_needs_little_more_than_the_least(backbone, name, classes):
    with counts.without_values():
        done = counts.operations(counts.prepared(name, backbone, classes)[1])
    whole, shared = counts.limits(name, backbone, classes)
    assert 1 <= done / shared <= CEILING
    assert (whole > shared) == LIMITS[name].alike


def test_the_limit_of_sentences_is_counted_by_hand(backbone):
    """Two sentences of 4 and 3 tokens, of which two are shared: 2 + 2 + 1 tokens, and 1 + 2 + 3 + 4 + 3 pairs."""
    width, blocks = 512, 4
    forward = (blocks - 1) * (24 * width**2 * 5 + 4 * width * 13)
    last = 4 * width**2 * 5 + 20 * width**2 * 2 + 4 * width * 7
    assert of_sentences(backbone, [4, 3], shared=2) == forward + last
    again = (blocks - 1) * (24 * width**2 * 5 + 8 * width * 13) + last + 4 * width * 7
    assert of_sentences(backbone, [4, 3], shared=2, backward=0) == forward + last + again


def test_integers_keep_their_values_and_fractions_do_not():
    with counts.without_values():
        tokens = torch.arange(6).view(2, 3)
        assert int(tokens.argmax(dim=1)[0]) == 2
        assert isinstance(torch.rand(3), FakeTensor)
        assert isinstance(torch.rand(3)[tokens[0]], FakeTensor)
        assert not isinstance(tokens == 3, FakeTensor)


def test_the_peak_of_memory():
    with counts.PeakMemory() as memory:
        x = torch.ones(100)
        y = x + x
        del x
        y.view(10, 10)
        gc.collect()
        y * y
    assert memory.peak == 4 * 200


def test_a_row_of_the_table(capsys):
    assert counts.main(["--trainers", "CoOp", "--classes", "3", "--size", "tiny"]) == 0
    head, _, row = capsys.readouterr().out.splitlines()[-3:]
    said = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert (said["| trainer"], said["classes"]) == ("| CoOp", "3")
    assert int(said["kernels"]) > 100
    assert 0.9 < float(said["/ limit, beginning once"]) < 1.2
