"""CLAP and ZS-LP: their equations, computed a second time in NumPy; batches out of all views; rows by class name."""

import conformance
import numpy as np
import pytest
import torch
from equations import close, cross_entropy, frozen_images, frozen_text, gradient, scale, softmax, unit
from small_methods import BASE, count_learned, draw, small_vit, vit_b16

from adaptation.templates import IMAGENET_SELECT
from trainers.clap import PrototypeMethod

PET = "a photo of a {}, a type of pet."
TEMPLATES = [*IMAGENET_SELECT, PET]


@pytest.fixture(scope="module")
def backbone():
    return small_vit()


def raw_text(backbone) -> np.ndarray:
    """Means of raw features."""
    return sum(frozen_text(backbone, template, BASE) for template in TEMPLATES) / 8


def test_starts_as_zero_shot(backbone):
    method = PrototypeMethod(backbone, BASE, TEMPLATES).eval()
    images, t = draw(backbone), raw_text(backbone)
    close(method.prototypes, t)
    close(method(images), scale(backbone) * unit(frozen_images(backbone, images)) @ unit(t).T)
    assert {*method.state_dict()} == {"prototypes"}
    assert count_learned(PrototypeMethod(vit_b16(), BASE, [PET])) == 3 * 512


@pytest.mark.parametrize("constrained", [False, True])
def test_loss_gradient_and_step(backbone, constrained):
    method = PrototypeMethod(backbone, BASE, TEMPLATES)
    z, labels = frozen_images(backbone, draw(backbone, 6, seed=2)), np.array([0, 0, 1, 1, 2, 2])
    features, t = torch.tensor(z, dtype=torch.float32), raw_text(backbone)
    multipliers = np.zeros(3)
    if constrained:
        method.constrain(features, torch.from_numpy(labels))
        p = softmax(scale(backbone) * unit(z) @ unit(t).T)
        multipliers = np.array([(p[2 * c, c] + p[2 * c + 1, c]) / 2 for c in range(3)])
        assert multipliers.std() > 0
    close(method.multipliers, multipliers)
    torch.manual_seed(1)
    w = t + 0.3 * np.random.default_rng(0).standard_normal(t.shape)
    method.prototypes.data.copy_(torch.tensor(w))

    def expected(x):
        distances = ((x - t) ** 2).sum(axis=1)
        return cross_entropy(scale(backbone) * unit(z) @ unit(x).T, labels) + np.mean(multipliers * distances)

    optim = torch.optim.SGD(method.parameters(), lr=0.1)
    loss = method.loss(features, torch.from_numpy(labels))[0]
    loss.backward()
    optim.step()
    g = gradient(expected, w)
    close(loss, expected(w))
    close(method.prototypes.grad, g, rtol=1e-3, atol=1e-4)
    close(method.prototypes, w - 0.1 * g, rtol=1e-4, atol=1e-4)


def test_rows_by_class_name(backbone):
    """As ImageNet-A and ImageNet-R are tested."""
    state = {"prototypes": torch.arange(3.0)[:, None].expand(3, backbone.embed_dim)}
    few = PrototypeMethod(backbone, ["sushi", "golden_retriever"], TEMPLATES)
    few.load_state_dict(few.select_classes(state, BASE))
    assert few.prototypes[:, 0].tolist() == [2.0, 0.0]


def test_a_run_takes_batches_from_all_views(drawn_root, tmp_path):
    opts = {"DATALOADER.TRAIN_X.BATCH_SIZE": "4", "TRAINER.ADAPTER.AUGMENT_EPOCHS": "3", "DATASET.NUM_SHOTS": "4"}
    opts["INPUT.TRANSFORMS"] = "('random_resized_crop', 'random_flip', 'normalize')"
    trainer = conformance.make("CLAP", drawn_root, tmp_path, **{"DATASET.NAME": "DrawnEasy", **opts})
    trainer.before_train()
    features, labels = trainer.support
    images = len(trainer.dm.dataset.train_x)
    assert len(features) == len(labels) == 3 * images
    assert labels.tolist() == [item.label for item in trainer.dm.dataset.train_x] * 3
    views = features.unflatten(0, (3, images))
    assert not torch.equal(views[0], views[1])  # each pass is augmented anew
    p = trainer.model.logits(features, trainer.model.features).softmax(dim=1).gather(1, labels[:, None])[:, 0]
    close(trainer.model.multipliers, [float(p[labels == c].mean()) for c in range(trainer.num_classes)])

    def rows_of(epoch):
        trainer.epoch = epoch
        count, batches = trainer.epoch_batches()
        batches = list(batches)
        assert count == len(batches) == images // 4
        found = [torch.cdist(batch["img"], features).argmin(dim=1) for batch in batches]
        assert all(torch.equal(labels[own], batch["label"]) for own, batch in zip(found, batches, strict=True))
        return torch.cat(found).tolist()

    first, second = rows_of(0), rows_of(1)
    assert len(set(first)) == len(first)
    assert first != second
    assert rows_of(0) == first
    assert max(first + second) >= images  # not only the first view


def test_no_views_are_refused(eurosat_root, tmp_path):
    trainer = conformance.make("ZSLP", eurosat_root, tmp_path, **{"TRAINER.ADAPTER.AUGMENT_EPOCHS": "0"})
    with pytest.raises(ValueError, match=r"TRAINER.ADAPTER.AUGMENT_EPOCHS is 0"):
        trainer.train()
