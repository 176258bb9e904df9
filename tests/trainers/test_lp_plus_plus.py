"""LP++: its equations and whole runs, computed a second time in NumPy; what validation images choose."""

import json
from pathlib import Path

import conformance
import numpy as np
import pytest
import torch
from equations import array, close, cross_entropy, frozen_images, frozen_text, gradient, softmax, unit
from small_methods import BASE, count_learned, draw, small_vit, vit_b16

from dassl.data.datasets import DATASET_REGISTRY
from trainers.lp_plus_plus import BlockwiseSGD, LPPlusPlusMethod

PET = "a photo of a {}, a type of pet."
LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])


@pytest.fixture(scope="module")
def backbone():
    return small_vit()


def started(backbone) -> tuple[LPPlusPlusMethod, np.ndarray]:
    """A method with its initial values, and the normalised features that they come from."""
    torch.manual_seed(0)
    method = LPPlusPlusMethod(backbone, BASE, [PET], alpha_scale=20.0).eval()
    f = unit(frozen_images(backbone, draw(backbone, 9, seed=3)))
    method.start(torch.tensor(f, dtype=torch.float32), torch.from_numpy(LABELS))
    return method, f


def test_start_and_logits(backbone):
    method, f = started(backbone)
    t = unit(frozen_text(backbone, PET, BASE))
    w = np.stack([f[c] + f[c + 1] + f[c + 2] for c in (0, 3, 6)])
    a = 20 * np.mean([np.mean([f[i] @ t[c] for i in range(3 * c, 3 * c + 3)]) for c in range(3)])
    b = array(method.classifier.bias)
    assert np.abs(b).min() > 0  # PyTorch's random start
    close(method.classifier.weight, w)
    close(method.alpha, [a, a, a])
    method.alpha.data += torch.tensor([0.0, 0.5, -0.3])
    z = unit(frozen_images(backbone, draw(backbone, seed=5)))
    close(method(draw(backbone, seed=5)), z @ w.T + b + (z @ t.T) * array(method.alpha))


def test_step_sizes(backbone):
    method, f = started(backbone)
    t = unit(frozen_text(backbone, PET, BASE))
    largest = np.linalg.svd(f)[1][0] ** 2
    worst = max(sum((f[i] @ t[c]) ** 2 for i in range(9)) for c in range(3))
    close(method.step_sizes(torch.tensor(f, dtype=torch.float32)), [4 * 9 / largest, 9 / (4 * worst)])


def test_loss_and_gradients(backbone):
    method, f = started(backbone)
    t, w, b, a = (
        unit(frozen_text(backbone, PET, BASE)),
        *(array(p) for p in (*method.classifier.parameters(), method.alpha)),
    )
    loss = method.loss(torch.tensor(f, dtype=torch.float32), torch.from_numpy(LABELS))[0]
    loss.backward()
    close(loss, cross_entropy(f @ w.T + b + (f @ t.T) * a, LABELS))
    close(method.classifier.weight.grad, gradient(lambda x: cross_entropy(f @ x.T + b + (f @ t.T) * a, LABELS), w))
    close(method.classifier.bias.grad, gradient(lambda x: cross_entropy(f @ w.T + x + (f @ t.T) * a, LABELS), b))
    close(method.alpha.grad, gradient(lambda x: cross_entropy(f @ w.T + b + (f @ t.T) * x, LABELS), a))


def test_learned_numbers_and_names(backbone):
    method = started(backbone)[0]
    assert {*method.state_dict()} == {"classifier.weight", "classifier.bias", "alpha", "chosen_epoch"}
    assert count_learned(LPPlusPlusMethod(vit_b16(), BASE, [PET])) == 3 * 514


def test_the_sum_of_gradients_is_never_reset():
    """A group with a period moves along all gradients since the start; the others are ordinary momentum."""
    x, y = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optim = BlockwiseSGD([{"params": [x], "lr": 0.1, "momentum": 0.5}, {"params": [y], "lr": 1.0, "period": 2}])
    seen = []
    for step in range(4):
        optim.zero_grad()
        ((step + 1) * (x + y)).sum().backward()
        optim.step()
        seen.append(y.item())
    assert seen == [0, -3, -3, -13]  # - (1 + 2), then - (1 + 2 + 3 + 4) more
    assert x.item() == pytest.approx(-0.1 * (1 + 2.5 + 4.25 + 6.125))


def simulate(f, t, labels, w, b, a, sizes, val, epochs):
    """The whole run, with the state after each epoch and its accuracy on validation images."""
    velocity, total, onehot, states = [0.0, 0.0], 0.0, np.eye(len(a))[labels], []
    for epoch in range(1, epochs + 1):
        error = (softmax(f @ w.T + b + (f @ t.T) * a) - onehot) / len(f)
        gradients = [error.T @ f, error.sum(axis=0)]
        total = total + (error * (f @ t.T)).sum(axis=0)
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        w, b = (x - sizes[0] * v for x, v in zip((w, b), velocity, strict=True))
        a = a - sizes[1] * total if epoch % 10 == 0 else a
        z, y = val
        states.append((np.mean((z @ w.T + b + (z @ t.T) * a).argmax(axis=1) == y), epoch, w, b, a))
    return states


def make(drawn_root, out, **more):
    opts = {"DATASET.NAME": "DrawnEasy", "OPTIM.MAX_EPOCH": "25", "DATASET.NUM_SHOTS": "4", **more}
    return conformance.make("LPPlusPlus", drawn_root, out, **opts)


@pytest.mark.parametrize("select", ["True", "False"])
def test_a_run_is_gradient_descent_on_two_blocks(drawn_root, tmp_path, select):
    trainer = make(drawn_root, tmp_path, **{"TRAINER.LPPLUSPLUS.SELECT": select})
    b = array(trainer.model.classifier.bias)  # before training
    metrics = conformance.check_run(trainer)
    model = trainer.model
    f, labels = unit(array(trainer.support["img"])), trainer.support["label"].numpy()
    t, classes = array(model.features), range(len(model.classnames))
    w = np.stack([f[labels == c].sum(axis=0) for c in classes])
    a = np.full(len(w), 250 * np.mean([(f[labels == c] @ t[c]).mean() for c in classes]))
    z, y = trainer.validation_features()
    assert not trainer.validation or select == "True"
    states = simulate(f, t, labels, w, b, a, model.step_sizes(trainer.support["img"]), (unit(array(z)), y.numpy()), 25)
    best = max(states, key=lambda state: state[:2])  # the last among equals
    expected = best if select == "True" else states[-1]
    close(model.classifier.weight, expected[2], rtol=1e-3, atol=1e-4)
    close(model.classifier.bias, expected[3], rtol=1e-3, atol=1e-4)
    close(model.alpha, expected[4], rtol=1e-3, atol=1e-3)
    report = metrics["lp_plus_plus"]
    assert report.get("epoch") == (best[1] if select == "True" else None)
    assert report["chosen"] == ("on the validation images" if select == "True" else "the last epoch")
    assert len(metrics["history"]) == 25
    if select == "True":  # what was chosen is what the checkpoint holds
        state = torch.load(tmp_path / "lp_plus_plus/model.pth.tar-25", weights_only=True)["state_dict"]
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


def test_as_many_validation_images_as_asked_for(drawn_root, tmp_path):
    """The paper chooses on as many as there are shots; VAL_SHOTS says so, and the draw of training images stays."""
    usual, more = (make(drawn_root, tmp_path / n, **{"DATASET.VAL_SHOTS": n}) for n in ("1", "2"))
    count = [len(trainer.dm.dataset.val) / trainer.num_classes for trainer in (usual, more)]
    assert count == [1, 2]
    drawn = [[item.impath for item in trainer.dm.dataset.train_x] for trainer in (usual, more)]
    assert drawn[0] == drawn[1]


def test_other_numbers_of_validation_images_have_draws_of_their_own(drawn_root, tmp_path):
    """A draw that was kept with few validation images is not taken for one with many."""
    for val_shots, expected in (("1", 1), ("2", 2), ("1", 1)):
        trainer = make(drawn_root, tmp_path / val_shots, **{"DATASET.VAL_SHOTS": val_shots, "DATASET.NUM_SHOTS": "3"})
        assert len(trainer.dm.dataset.val) == expected * trainer.num_classes
    with pytest.raises(ValueError, match=r"DATASET.VAL_SHOTS is -1"):
        make(drawn_root, tmp_path, **{"DATASET.VAL_SHOTS": "-1"})


def test_goes_on_from_given_weights(drawn_root, tmp_path):
    first = make(drawn_root, tmp_path / "first", **{"OPTIM.MAX_EPOCH": "2", "TRAINER.LPPLUSPLUS.SELECT": "False"})
    first.train()
    path = str(tmp_path / "first/lp_plus_plus/model.pth.tar-2")
    again = make(drawn_root, tmp_path / "again", **{"MODEL.INIT_WEIGHTS": path})
    again.before_train()
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    assert again.optim.param_groups[0]["lr"] == first.optim.param_groups[0]["lr"]


def test_nothing_is_chosen_on_test_images(drawn_root, tmp_path, monkeypatch):
    monkeypatch.setattr(DATASET_REGISTRY.get("DrawnEasy"), "val_is_test", True)
    trainer = make(drawn_root, tmp_path, **{"OPTIM.MAX_EPOCH": "2"})
    trainer.train()
    metrics = json.loads((Path(trainer.output_dir) / "metrics.json").read_text())
    assert metrics["lp_plus_plus"]["chosen"] == "the last epoch"
