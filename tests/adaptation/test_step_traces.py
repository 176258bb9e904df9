"""The loss of a training step is traced by PyTorch's compiler as one graph: nothing in it waits for values."""

import pytest
import torch
from small_methods import BASE, batch, small_vit

from trainers.apex import APEXMethod
from trainers.coop import CoOpMethod
from trainers.maple import MaPLeMethod


@pytest.mark.parametrize("kind", [CoOpMethod, APEXMethod, MaPLeMethod])
def test_a_step_is_one_graph(kind, request):
    if kind is not CoOpMethod and not request.config.getoption("--long"):
        pytest.skip("one method is traced; the others with --long")
    method = kind(small_vit(), BASE).train()
    images, labels = batch(method)
    method.loss(images, labels)[0].backward()  # what is looked up once is known
    torch._dynamo.reset()
    found = torch._dynamo.explain(lambda images, labels: method.loss(images, labels)[0])(images, labels)
    assert (found.graph_count, found.graph_break_count) == (1, 0), [str(reason) for reason in found.break_reasons]
