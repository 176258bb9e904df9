"""The counter of kernels, bytes and synchronisations counts what it says."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.kernels import OperationCounter

WAITS = {
    "_local_scalar_dense": [
        lambda x: x.sum().item(),
        lambda x: int(x.sum()),
        lambda x: bool(x.sum()),
        lambda x: f"{x.sum():.2f}",
        lambda x: 1 if (x > 0).any() else 0,
    ],
    "cpu": [lambda x: x.cpu()],
    "tolist": [lambda x: x.tolist()],
    "numpy": [lambda x: x.numpy()],
    "__array__": [lambda x: np.asarray(x)],
    "equal": [lambda x: torch.equal(x, x.clone())],
    "nonzero": [lambda x: torch.where(x > 0)],
    "index": [lambda x: x[x > 0]],
    "index_put_": [lambda x: x.clone().index_put_((x > 0,), x.new_zeros(1))],
    "_unique2": [lambda x: x.unique()],
    "tensor on a device": [lambda x: torch.tensor(1.0, device=x.device)],
}


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, calls in WAITS.items() for call in calls])
def test_what_makes_the_host_wait_is_counted_with_its_line(name, call):
    x = torch.tensor([[-1.0, 2.0], [3.0, -4.0]])
    with OperationCounter() as counted:
        call(x)
    assert [said.partition(" at ")[0] for said in counted.synchronisations] == [name]
    assert "tests/benchmarks/test_benchmarks_kernels.py:" in counted.synchronisations[0]


def test_what_does_not_make_it_wait_is_not():
    x = torch.randn(3, 4, requires_grad=True)
    with OperationCounter() as counted:
        y = torch.where(x > 0, x, 0)[torch.arange(2)][:, 1:].masked_fill(x[:2, 1:] > 1, 0)
        y.sum().backward()
        len(y), y.shape, y.to(torch.float32)
    assert counted.synchronisations == []


def test_copies_between_devices_wait_unless_they_are_asked_not_to():
    x, there = torch.randn(3), torch.device("meta")
    with OperationCounter() as counted:
        x.to(there, non_blocking=True)
        torch.empty(3, device=there).copy_(x, non_blocking=True)
        x.to(torch.float64)
        assert counted.synchronisations == []
        x.to(there)
    assert len(counted.synchronisations) == 1


def test_tensors_of_the_host_are_left_out():
    x, step = torch.randn(3), torch.tensor(1.0)
    with OperationCounter(lambda: [step]) as counted:
        step.item()
        torch.stack([step, step])[1].add(1).tolist()
        (x * step).sum().item()
    assert len(counted.synchronisations) == 1
    assert counted.kernels == {"mul": 1, "sum": 1}


def test_kernels_and_bytes():
    layer, x = nn.Linear(4, 8), torch.randn(2, 4)
    with OperationCounter() as counted:
        y = layer(x)  # (2 x 4 + 4 x 8 + 8 + 2 x 8) floats
        z = y.view(4, 4).T + 1  # 16 in, 16 out
        torch._foreach_mul_([z, y], 2.0)  # 32 in, 32 out
        torch.empty(5)
    assert counted.kernels == {"addmm": 1, "add": 1, "_foreach_mul_": 1}
    assert counted.product_bytes == 4 * (8 + 32 + 8 + 16)
    assert counted.bytes == 4 * (32 + 64)
