"""Names of Dassl that research on domains uses: data sets, samplers, transforms, networks, mixing of features.

The trainers are written in the style of public repositories: DAPrompt, on-device-dg, mixstyle-release, ssdg-benchmark,
CLIP_Calibration, SkipTuning.
"""

import copy
import random
from collections import defaultdict

import numpy as np
import pytest
import torch
from dassl_toys import draw_samples, toy_config
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dassl.data import DataManager
from dassl.data.data_manager import INTERPOLATION_MODES as MODES_OF_MANAGER
from dassl.data.data_manager import build_transform
from dassl.data.datasets import (
    DATASET_REGISTRY,
    PACS,
    VLCS,
    DatasetBase,
    Datum,
    DigitsDG,
    DomainNet,
    Office31,
    OfficeHome,
    OfficeHomeDG,
    VisDA17,
    build_dataset,
    miniDomainNet,
)
from dassl.data.samplers import RandomClassSampler, RandomDomainSampler, SeqDomainSampler, build_sampler
from dassl.data.transforms import INTERPOLATION_MODES
from dassl.engine import TRAINER_REGISTRY, SimpleNet, TrainerX, TrainerXU, build_trainer
from dassl.evaluation import EVALUATOR_REGISTRY, Classification
from dassl.metrics import compute_accuracy
from dassl.modeling import BACKBONE_REGISTRY, HEAD_REGISTRY, Backbone, build_backbone, build_head
from dassl.modeling.ops import (
    EFDMix,
    MixStyle,
    crossdomain_mixstyle,
    deactivate_mixstyle,
    mixup,
    random_mixstyle,
    run_with_efdmix,
    run_with_mixstyle,
    run_without_mixstyle,
)
from dassl.modeling.ops.utils import create_onehot
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import read_json, set_random_seed

CLASSES = ("Axe", "Bed", "Cup")
PER_CLASS = 4


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 14, 3), np.uint8)).save(path)


def folders(root, count=PER_CLASS):
    """Class folders of pictures; returns their paths relative to `root`, with labels."""
    rows = []
    for label, name in enumerate(CLASSES):
        for number in range(count):
            picture(root / name / f"{number}.jpg", [label, number])
            rows.append((f"{name}/{number}.jpg", label))
    return rows


def listed(path, rows, prefix="", first=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{prefix}{name} {label + first}\n" for name, label in rows))


def configured(monkeypatch, folder, name, source, target, trainer="ToyTrainer", **keys):
    """A configuration for a data set with domains; what it registers is forgotten when the test ends."""
    monkeypatch.setattr(DATASET_REGISTRY, "_objects", dict(DATASET_REGISTRY))
    keys = {"DATASET__SOURCE_DOMAINS": source, "DATASET__TARGET_DOMAINS": target, "INPUT__SIZE": (32, 32), **keys}
    keys = {"MODEL__BACKBONE__PRETRAINED": False, "OPTIM__MAX_EPOCH": 1, "OPTIM__WARMUP_EPOCH": -1, **keys}
    return toy_config(monkeypatch, folder, trainer, DATASET__NAME=name, **keys)


def run(monkeypatch, cfg, kind):
    monkeypatch.setitem(TRAINER_REGISTRY._objects, kind.__name__, kind)
    cfg.TRAINER.NAME = kind.__name__
    set_random_seed(1)
    trainer = build_trainer(cfg)
    trainer.train()
    assert "not_recorded" not in read_json(f"{cfg.OUTPUT_DIR}/metrics.json")
    return trainer


# Data sets


def counts(dataset):
    return [len(getattr(dataset, name) or ()) for name in ("train_x", "train_u", "val", "test")]


@pytest.mark.parametrize("kind", [Office31, OfficeHome])
def test_folders_of_domains(tmp_path, monkeypatch, kind):
    for domain in kind.domains:
        folders(tmp_path / kind.dataset_dir / domain)
    source, target = kind.domains[1:], kind.domains[:1]
    dataset = build_dataset(configured(monkeypatch, tmp_path, kind.__name__, source, target))
    assert type(dataset) is kind
    total = len(CLASSES) * PER_CLASS
    assert counts(dataset) == [total * len(source), total, 0, total]
    assert {item.domain for item in dataset.train_x} == set(range(len(source)))
    assert dataset.classnames == [name.lower() if kind is OfficeHome else name for name in CLASSES]
    assert all(f"/{source[item.domain]}/{CLASSES[item.label]}/" in item.impath for item in dataset.train_x)
    assert all(f"/{target[0]}/" in item.impath for item in [*dataset.test, *dataset.train_u])


@pytest.mark.parametrize("kind", [OfficeHomeDG, DigitsDG, VLCS])
def test_folders_of_parts(tmp_path, monkeypatch, kind):
    sizes = {"train": 4, "val": 2, "crossval": 2, "test": 1}
    for domain in kind.domains:
        for part, size in sizes.items():
            folders(tmp_path / kind.dataset_dir / (domain.upper() if kind is VLCS else domain) / part, size)
    dataset = build_dataset(configured(monkeypatch, tmp_path, kind.__name__, kind.domains[:2], kind.domains[2:3]))
    assert counts(dataset) == [24, 0, 12, 3 if kind is VLCS else 18]


def test_lists_of_pacs(tmp_path, monkeypatch):
    for domain in PACS.domains:
        rows = folders(tmp_path / "pacs" / "images" / domain)
        for part, some in (("train", rows[::2]), ("crossval", rows[1::2])):
            listed(tmp_path / "pacs" / "splits" / f"{domain}_{part}_kfold.txt", some, f"{domain}/", first=1)
    with open(tmp_path / "pacs" / "splits" / "sketch_train_kfold.txt", "a") as file:
        file.write("sketch/dog/n02103406_4068-1.png 1\n")  # damaged in the published archive
    cfg = configured(monkeypatch, tmp_path, "PACS", ("sketch", "photo"), ("cartoon",))
    dataset = build_dataset(cfg)
    assert counts(dataset) == [12, 0, 12, 12]
    assert dataset.classnames == list(CLASSES)
    assert "/sketch/" in dataset.train_x[0].impath
    cfg.DATASET.SOURCE_DOMAINS = ("sketches",)
    with pytest.raises(ValueError, match=r'domain of PACS "sketches": do you mean \[.sketch'):
        build_dataset(cfg)
    cfg.DATASET.SOURCE_DOMAINS = ()
    with pytest.raises(ValueError, match="SOURCE_DOMAINS is empty"):
        build_dataset(cfg)
    cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.ROOT = ("photo",), str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"PACS: there is no list of images .*photo_train_kfold\.txt"):
        build_dataset(cfg)


def test_lists_of_visda_and_domainnet(tmp_path, monkeypatch):
    for part in ("train", "validation"):
        listed(tmp_path / "visda17" / part / "image_list.txt", folders(tmp_path / "visda17" / part))
    dataset = build_dataset(configured(monkeypatch, tmp_path, "VisDA17", ("synthetic",), ("real",)))
    assert (type(dataset), counts(dataset)) == (VisDA17, [12, 12, 0, 12])
    assert "/train/" in dataset.train_x[0].impath
    for kind in (DomainNet, miniDomainNet):
        for domain in kind.domains:
            rows = folders(tmp_path / "domainnet" / domain)
            for part, some in (("train", rows[::2]), ("test", rows[1::2])):
                listed(tmp_path / "domainnet" / kind.split_dir / f"{domain}_{part}.txt", some, f"{domain}/")
        cfg = configured(monkeypatch, tmp_path, kind.__name__, ("real", "sketch"), ("clipart",))
        assert counts(build_dataset(cfg)) == [12, 6, 12, 6]


def test_a_registered_data_set_takes_the_name(tmp_path, monkeypatch):
    class PACS(DatasetBase):
        def __init__(self, cfg):
            super().__init__(train_x=draw_samples(tmp_path), test=draw_samples(tmp_path))

    cfg = configured(monkeypatch, tmp_path, "PACS", (), ())
    DATASET_REGISTRY.register(PACS)
    assert type(build_dataset(cfg)) is PACS


# Samplers


@pytest.fixture
def of_domains(tmp_path):
    """20 samples of domain 1, 11 of domain 0 and 14 of domain 2, in four classes."""
    picture(tmp_path / "one.png", 0)
    domains = [1] * 20 + [0] * 11 + [2] * 14
    return [Datum(str(tmp_path / "one.png"), label=i % 4, domain=domain) for i, domain in enumerate(domains)]


def drawn_batches(groups, per_group, choose):
    """Indices batch by batch, as the samplers are described: chosen groups give so many each, until one has too few."""
    left, order = {name: list(indices) for name, indices in groups.items()}, []
    while True:
        for name in choose():
            taken = random.sample(left[name], per_group)
            order += taken
            for index in taken:
                left[name].remove(index)
        if min(map(len, left.values())) < per_group:
            return order


def test_orders_by_domain(of_domains):
    groups = defaultdict(list)
    for index, item in enumerate(of_domains):
        groups[item.domain].append(index)
    cases = [
        (lambda: RandomDomainSampler(of_domains, 6, 2), 3, lambda: random.sample(list(groups), 2)),
        (lambda: RandomDomainSampler(of_domains, 6, 0), 2, lambda: random.sample(list(groups), 3)),
        (lambda: SeqDomainSampler(of_domains, 6), 2, lambda: sorted(groups)),
    ]
    for make, each, choose in cases:
        random.seed(4)
        sampler = make()
        length, orders = len(sampler), [list(sampler) for _ in range(2)]
        random.seed(4)
        first = drawn_batches(groups, each, choose)  # when it is made
        assert length == len(first)
        assert orders == [drawn_batches(groups, each, choose) for _ in range(2)]
    assert [of_domains[index].domain for index in orders[0][:6]] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="batches of 7 cannot be divided among 2 of 3 domains"):
        RandomDomainSampler(of_domains, 7, 2)
    with pytest.raises(ValueError, match="domain 0 has 11 images, fewer than its 12 of a batch of 36"):
        SeqDomainSampler(of_domains, 36)


def test_orders_by_class(of_domains):
    some = [*[item for item in of_domains if item.label < 3][:14], of_domains[3]]  # of label 3 just one
    random.seed(4)
    np.random.seed(4)  # noqa: NPY002
    order = list(RandomClassSampler(some, 6, 3))
    assert len(order) % 6 == 0
    for start in range(0, len(order), 3):
        assert len({some[index].label for index in order[start : start + 3]}) == 1
    assert max(order.count(index) for index in range(14)) == 1
    assert order.count(14) in (0, 3)
    with pytest.raises(ValueError, match="batches of 6 with 9 samples of each class have 0 of 4 classes"):
        RandomClassSampler(some, 6, 9)


@pytest.mark.parametrize("name", ["RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler"])
def test_keyed_orders_of_groups(of_domains, tmp_path, monkeypatch, name):
    """Functions of (seed, epoch); nothing is drawn from the global generators."""
    cfg = toy_config(monkeypatch, tmp_path, DATALOADER__RANDOM_STREAMS="keyed")
    before = random.getstate()
    samplers = [build_sampler(name, cfg, of_domains, 6, 3, 2) for _ in range(2)]
    first, second = ([list(sampler) for _ in range(2)] for sampler in samplers)
    assert random.getstate() == before
    assert first == second
    assert first[0] != first[1]
    assert type(build_sampler(name, None, of_domains, 6, 3, 2)).__name__ == name


# Transforms


def test_transforms_by_name(tmp_path, monkeypatch):
    cfg = toy_config(monkeypatch, tmp_path)
    image = Image.radial_gradient("L").convert("RGB").resize((40, 30))
    assert MODES_OF_MANAGER is INTERPOLATION_MODES
    plain, cropped = (build_transform(cfg, choices=[*more, "normalize"]) for more in ([], ["center_crop"]))
    assert torch.equal(plain(image), cropped(image))
    strong = build_transform(cfg, choices=["random_flip", "randaugment_fixmatch", "normalize"])
    random.seed(2)
    torch.manual_seed(2)
    first = [strong(image) for _ in range(8)]
    random.seed(2)
    torch.manual_seed(2)
    assert all(torch.equal(one, strong(image)) for one in first)
    assert len({one.sum().item() for one in first}) > 4


def test_draws_of_translation_cutout_and_noise():
    """As described, from Python's, NumPy's and both generators."""
    from torchvision.transforms import functional as TF

    from dassl.data.transforms.transforms import Cutout, GaussianNoise, RandomTranslation

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8))
    mode = INTERPOLATION_MODES["bilinear"]
    translate = RandomTranslation((16, 24), mode)
    for seed in range(6):
        random.seed(seed)
        moved = translate(image)
        random.seed(seed)
        if random.uniform(0, 1) > 0.5:
            expected = TF.resize(image, (16, 24), mode)
        else:
            left, top = round(random.uniform(0, 27 - 24)), round(random.uniform(0, 18 - 16))
            expected = TF.resize(image, (18, 27), mode).crop((left, top, left + 24, top + 16))
        assert moved.tobytes() == expected.tobytes()
    ones = torch.ones(3, 9, 11)
    np.random.seed(1)  # noqa: NPY002
    holes = Cutout(2, 5)(ones)
    np.random.seed(1)  # noqa: NPY002
    expected = ones.clone()
    for _ in range(2):
        y, x = np.random.randint(9), np.random.randint(11)  # noqa: NPY002
        rows, columns = np.clip([y - 2, y + 2], 0, 9), np.clip([x - 2, x + 2], 0, 11)
        expected[:, rows[0] : rows[1], columns[0] : columns[1]] = 0
    assert torch.equal(holes, expected)
    for seed in range(4):
        random.seed(seed)
        torch.manual_seed(seed)
        noisy = GaussianNoise(0.1, 0.5)(ones)
        random.seed(seed)
        torch.manual_seed(seed)
        expected = ones if random.uniform(0, 1) > 0.5 else ones + (torch.randn(3, 9, 11) * 0.5 + 0.1)
        assert torch.equal(noisy, expected)


# Mixing


def partners_of(mix, count):
    if mix == "random":
        return torch.randperm(count)
    later, earlier = torch.arange(count).flip(0).chunk(2)
    return torch.cat([later[torch.randperm(len(later))], earlier[torch.randperm(len(earlier))]])


@pytest.mark.parametrize("mix", ["random", "crossdomain"])
@pytest.mark.parametrize("kind", [MixStyle, EFDMix])
def test_mixed_features(kind, mix):
    x = torch.randn(6, 3, 4, 5, requires_grad=True)
    layer = kind(p=1.0, mix=mix)
    torch.manual_seed(3)
    mixed = layer(x)
    torch.manual_seed(3)
    weight = torch.distributions.Beta(0.1, 0.1).sample((6, 1, 1, 1))
    partner = partners_of(mix, 6)
    if kind is MixStyle:
        mean, std = x.mean((2, 3), keepdim=True), (x.var((2, 3), keepdim=True) + 1e-6).sqrt()
        wanted_mean, wanted_std = (s * weight + s[partner] * (1 - weight) for s in (mean, std))
        expected = (x - mean) / std * wanted_std + wanted_mean
    else:
        expected = torch.empty_like(x)
        for b in range(6):
            for c in range(3):
                other = x[partner[b], c].flatten().sort().values
                ranks = x[b, c].flatten().argsort().argsort()
                expected[b, c] = (weight[b] * x[b, c].flatten() + (1 - weight[b]) * other[ranks]).view(4, 5)
    torch.testing.assert_close(mixed, expected)
    mixed.sum().backward()
    assert x.grad.abs().sum() > 0
    layer.eval()
    assert layer(x) is x


def test_when_features_are_mixed():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), MixStyle(p=1.0)), torch.randn(4, 3, 5, 5)
    plain = model[0](x)

    def mixes():
        return not torch.allclose(model(x), plain)

    assert mixes()
    model.apply(deactivate_mixstyle)
    assert not mixes()
    with run_with_mixstyle(model, mix="crossdomain"):
        assert mixes()
        with run_without_mixstyle(model):
            assert not mixes()
        assert mixes()
    assert (mixes(), model[1].mix) == (False, "crossdomain")
    model.apply(random_mixstyle)
    assert model[1].mix == "random"
    with run_with_efdmix(model):
        assert not mixes()  # another kind
    with pytest.raises(ValueError, match="way to mix"), run_with_mixstyle(model, mix="domains"):
        pass
    random.seed(0)
    kept = sum(bool(MixStyle(p=0.5)(x) is x) for _ in range(200))
    assert 70 < kept < 130


def test_mixup_and_onehot():
    labels = create_onehot(torch.tensor([0, 2]), 3)
    assert labels.tolist() == [[1, 0, 0], [0, 0, 1]]
    x, other = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    torch.manual_seed(0)
    images, targets = mixup(x, other, labels, labels.flip(0), 0.4, preserve_order=True)
    weight = 1 - images[:, 0, 0, 0]
    assert (weight >= 0.5).all()
    torch.testing.assert_close(targets[:, 0], torch.stack([weight[0], 1 - weight[1]]))


# Networks


def test_backbones():
    torch.manual_seed(2)
    backbone = build_backbone("resnet18_ms_l12", verbose=False, pretrained=False)
    after = torch.get_rng_state()
    torch.manual_seed(2)
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    for module in convolutions:
        copy.deepcopy(module).reset_parameters()
    for module in convolutions:
        nn.init.kaiming_normal_(torch.empty_like(module.weight), mode="fan_out", nonlinearity="relu")
    assert torch.equal(torch.get_rng_state(), after)  # the initialisation of Dassl's ResNet, and nothing else
    x = torch.randn(4, 3, 32, 32)
    assert (backbone.out_features, backbone(x).shape) == (512, (4, 512))
    backbone.eval()
    assert backbone.mixing_layers == ("layer1", "layer2")
    other = build_backbone("mobilenet_v3_small", pretrained=False).eval()
    assert other(x).shape == (4, other.out_features) == (4, 1024)
    with pytest.raises(ValueError, match=r'unknown backbone .* "resnet81": do you mean'):
        build_backbone("resnet81", pretrained=False)


def test_pretrained_weights(monkeypatch):
    """Torchvision's, without the last layer; a sentence where they cannot be had."""
    from torchvision import models

    source = models.resnet18()
    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", lambda self, **keys: source.state_dict())
    backbone, x = build_backbone("resnet18").eval(), torch.randn(2, 3, 32, 32)
    source.fc = nn.Identity()
    assert torch.equal(backbone(x), source.eval()(x))

    def refuse(self, **keys):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", refuse)
    with pytest.raises(FileNotFoundError, match=r"PRETRAINED: no weights for resnet18 .*resnet18-\w+\.pth"):
        build_backbone("resnet18")


def test_heads():
    head = build_head("mlp", in_features=6, hidden_layers=(5, 4), activation="leaky_relu", bn=True, dropout=0.1)
    kinds = [type(layer).__name__ for layer in head.mlp]
    assert kinds == ["Linear", "BatchNorm1d", "LeakyReLU", "Dropout"] * 2
    assert (head(torch.randn(3, 6)).shape, head.out_features) == ((3, 4), 4)
    assert "mlp" in HEAD_REGISTRY
    with pytest.raises(ValueError, match="at least one layer"):
        build_head("mlp", in_features=6)
    with pytest.raises(ValueError, match=r"HEAD\.NAME"):
        build_head("mpl")


# Repositories


@pytest.fixture(scope="module")
def office(tmp_path_factory):
    root = tmp_path_factory.mktemp("office")
    for domain in OfficeHome.domains:
        folders(root / "office_home" / domain)
    return root


def from_office(monkeypatch, office, out, **keys):
    cfg = configured(monkeypatch, office, "OfficeHome", ("art", "product"), ("clipart",), **keys)
    cfg.OUTPUT_DIR = str(out)
    return cfg


class Vanilla2(TrainerX):
    """mixstyle-release: the default network, whose mixing is chosen after it was built."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.model.apply(crossdomain_mixstyle)

    def forward_backward(self, batch):
        images, labels = self.parse_batch_train(batch)
        output = self.model(images)
        loss = F.cross_entropy(output, labels)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, labels)[0].item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)


def test_mixstyle_release(office, tmp_path, monkeypatch):
    keys = {"DATALOADER__TRAIN_X__SAMPLER": "RandomDomainSampler", "DATALOADER__TRAIN_X__N_DOMAIN": 2}
    keys |= {"DATALOADER__TRAIN_U__SAME_AS_X": False}  # of the one target domain
    keys |= {"MODEL__BACKBONE__NAME": "resnet18_ms_l12", "INPUT__TRANSFORMS": ["random_flip", "random_translation"]}
    trainer = run(monkeypatch, from_office(monkeypatch, office, tmp_path, **keys), Vanilla2)
    assert isinstance(trainer.model, SimpleNet)
    assert trainer.model.backbone.mixstyle.mix == "crossdomain"
    assert (trainer.get_model_names(), trainer.model.fdim) == (["model"], 512)
    assert (tmp_path / "model" / "model.pth.tar-1").is_file()
    half = trainer.train_loader_x.batch_size // 2
    domains = next(iter(trainer.train_loader_x))["domain"]
    assert len(set(domains[:half].tolist())) == len(set(domains[half:].tolist())) == 1
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "Vanilla2", Vanilla2)
    trainer.cfg.MODEL.INIT_WEIGHTS = str(tmp_path / "model" / "model.pth.tar-1")
    again = build_trainer(trainer.cfg)
    assert torch.equal(again.model.classifier.weight, trainer.model.classifier.weight)


class Small(Backbone):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self._out_features = width

    def forward(self, x):
        return self.layers(x)


def small(pretrained=True, **kwargs):
    return Small(8)


class KD(TrainerX):
    """on-device-dg: a backbone of its own for the student, a teacher that is only read, mixed images."""

    def build_model(self):
        cfg = self.cfg
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        self.teacher = SimpleNet(cfg, cfg.TEACHER, self.num_classes).eval()
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        labels = create_onehot(labels, self.num_classes).to(self.device)
        images, labels = mixup(images, images.flip(0), labels, labels.flip(0), 0.2)
        with torch.no_grad():
            wanted, features = self.teacher(images, return_feature=True)
        assert features.shape == (len(images), self.teacher.fdim)
        output = self.model(images)
        loss = F.kl_div(output.log_softmax(1), wanted.softmax(1), reduction="batchmean")
        self.model_backward_and_update(loss - (labels * output.log_softmax(1)).sum(1).mean())
        return {"loss": loss.item()}


def test_on_device_dg(office, tmp_path, monkeypatch):
    monkeypatch.setattr(BACKBONE_REGISTRY, "_objects", {})
    BACKBONE_REGISTRY.register(small)
    keys = {"MODEL__BACKBONE__NAME": "small", "DATALOADER__TRAIN_X__SAMPLER": "SeqDomainSampler"}
    cfg = from_office(monkeypatch, office, tmp_path, **keys)
    cfg.TEACHER = cfg.MODEL.clone()
    cfg.TEACHER.HEAD.merge_from_list(["NAME", "mlp", "HIDDEN_LAYERS", (6,)])
    trainer = run(monkeypatch, cfg, KD)
    assert (trainer.model.fdim, trainer.teacher.fdim) == (8, 6)
    assert SimpleNet(cfg, cfg.MODEL, 0)(torch.zeros(2, 3, 32, 32)).shape == (2, 8)


class FixMatch(TrainerXU):
    """ssdg-benchmark: weakly and strongly augmented views of labelled and unlabelled images."""

    def check_cfg(self, cfg):
        assert len(cfg.TRAINER.FIXMATCH.STRONG_TRANSFORMS) > 0

    def build_data_loader(self):
        cfg = self.cfg
        weak = build_transform(cfg, is_train=True)
        strong = build_transform(cfg, is_train=True, choices=cfg.TRAINER.FIXMATCH.STRONG_TRANSFORMS)
        self.dm = DataManager(self.cfg, custom_tfm_train=[weak, strong])
        self.train_loader_x, self.train_loader_u = self.dm.train_loader_x, self.dm.train_loader_u
        self.val_loader, self.test_loader = self.dm.val_loader, self.dm.test_loader
        self.num_classes, self.lab2cname = self.dm.num_classes, self.dm.lab2cname
        self.num_source_domains = self.dm.num_source_domains

    def forward_backward(self, batch_x, batch_u):
        weak, strong, labels = batch_x["img"], batch_x["img2"], batch_x["label"]
        loss = F.cross_entropy(self.model(torch.cat([weak, batch_u["img2"]]))[: len(labels)], labels)
        self.model_backward_and_update(loss + 0 * self.model(strong).sum())
        return {"loss": loss.item()}


def test_ssdg_benchmark(office, tmp_path, monkeypatch):
    keys = {"MODEL__BACKBONE__NAME": "resnet18", "DATALOADER__TRAIN_X__SAMPLER": "SeqDomainSampler"}
    keys |= {"MODEL__HEAD__NAME": "mlp", "MODEL__HEAD__HIDDEN_LAYERS": (16,), "TRAIN__COUNT_ITER": "train_u"}
    keys |= {"DATALOADER__TRAIN_U__SAME_AS_X": False, "DATALOADER__TRAIN_U__BATCH_SIZE": 5}
    cfg = from_office(monkeypatch, office, tmp_path, **keys)
    names = ["random_flip", "randaugment_fixmatch", "normalize", "cutout"]
    cfg.TRAINER.FIXMATCH = type(cfg)({"STRONG_TRANSFORMS": names})
    trainer = run(monkeypatch, cfg, FixMatch)
    assert trainer.num_batches == 2
    assert trainer.model.head.out_features == trainer.model.fdim == 16


class DAPL(TrainerXU):
    """DAPrompt: a context per domain, learned on labelled images and on pseudo-labels."""

    def build_model(self):
        domains = [*self.cfg.DATASET.SOURCE_DOMAINS, *self.cfg.DATASET.TARGET_DOMAINS]
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, self.num_classes * len(domains)))
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", self.model, self.optim, self.sched)

    def forward_backward(self, batch_x, batch_u):
        images, labels, others = self.parse_batch_train(batch_x, batch_u)
        guesses = self.model_inference(others).softmax(1).max(1)
        loss = F.cross_entropy(self.model(images)[:, : self.num_classes], labels)
        loss = loss - (guesses.values.log() * (guesses.values > 0.5)).mean()
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}

    def model_inference(self, images):
        return self.model(images)[:, -self.num_classes :]


@pytest.mark.parametrize("name", ["OfficeHome", "VisDA17"])
def test_daprompt(office, tmp_path, monkeypatch, name):
    if name == "OfficeHome":
        cfg = from_office(monkeypatch, office, tmp_path)
    else:
        for part in ("train", "validation"):
            listed(tmp_path / "visda17" / part / "image_list.txt", folders(tmp_path / "visda17" / part))
        cfg = configured(monkeypatch, tmp_path, "VisDA17", ("synthetic",), ("real",))
    trainer = run(monkeypatch, cfg, DAPL)
    assert type(trainer.dm.dataset).__name__ == name
    assert trainer.history[0]["loss"] > 0


class Calibrated(Classification):
    """CLIP_Calibration: an evaluator that needs what its constructor sets last, and more outputs than the scores."""

    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg, lab2cname)
        self.bins = [0] * 4

    def reset(self):
        self.bins = [0] * len(self.bins)
        self._correct = self._total = 0
        self._y_true, self._y_pred = [], []

    def process(self, mo, gt):
        scores, features = mo
        assert len(features) == len(gt)
        confidence, pred = scores.softmax(1).max(1)
        self._correct += int(pred.eq(gt).float().sum().item())
        self._total += gt.shape[0]
        self._y_true.extend(gt.data.cpu().numpy().tolist())
        self._y_pred.extend(pred.data.cpu().numpy().tolist())
        for value in confidence.tolist():
            self.bins[min(int(value * len(self.bins)), len(self.bins) - 1)] += 1

    def evaluate(self):
        results = super().evaluate()
        results["confident"] = 100.0 * self.bins[-1] / self._total
        return results


class Outputs(Vanilla2):
    def __init__(self, cfg):
        TrainerX.__init__(self, cfg)

    def model_inference(self, images):
        return self.model(images, return_feature=True)


@pytest.mark.parametrize("per_class", [False, True])
def test_clip_calibration(office, tmp_path, monkeypatch, per_class):
    monkeypatch.setattr(EVALUATOR_REGISTRY, "_objects", dict(EVALUATOR_REGISTRY))
    EVALUATOR_REGISTRY.register(Calibrated)
    monkeypatch.setattr(BACKBONE_REGISTRY, "_objects", {"small": small})
    keys = {"TEST__EVALUATOR": "Calibrated", "TEST__PER_CLASS_RESULT": per_class, "MODEL__BACKBONE__NAME": "small"}
    trainer = run(monkeypatch, from_office(monkeypatch, office, tmp_path, **keys), Outputs)
    metrics = read_json(str(tmp_path / "metrics.json"))
    rows = metrics["per_class"]
    assert sum(row["correct"] for row in rows) == trainer.evaluator._correct
    assert metrics["accuracy"] == 100 * trainer.evaluator._correct / 12
    assert 0 <= metrics["confident"] <= 100
    assert ("perclass_accuracy" in metrics) is per_class


class SkipTuning(TrainerX):
    """SkipTuning: loaders with transforms that the trainer builds by the name in the module of the data manager."""

    def build_data_loader(self):
        from dassl.data import data_manager

        plain = data_manager.build_transform(self.cfg, is_train=False)
        super().build_data_loader()
        self.dm = data_manager.DataManager(self.cfg, custom_tfm_train=plain)
        self.train_loader_x = self.dm.train_loader_x

    build_model, model_inference = DAPL.build_model, DAPL.model_inference

    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model_inference(images), labels)
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}


def test_skiptuning(office, tmp_path, monkeypatch):
    trainer = run(monkeypatch, from_office(monkeypatch, office, tmp_path), SkipTuning)
    assert trainer.train_loader_x.dataset.transform is not trainer.dm.test_loader.dataset.transform
    assert len(trainer.train_loader_x.dataset.transform.transforms) == 4
