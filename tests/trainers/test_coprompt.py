"""CoPrompt against its equations written out: features, loss on two views, steps; sentences, names, sizes, refusals."""

import hashlib
import json

import pytest
import torch
import written_out
from clip_models import RESNET, random_state
from parity import make_trainer, trainer_config
from small_methods import BASE, NEW, count_learned, draw, evaluate, small_vit, vit_b16

from clip.loading import openai_backbone
from trainers.coprompt import CoPromptMethod, read_sentences

N = 2
PART = "prompt_learner"
SENTENCES = {
    "golden retriever": ["a dog with golden fur.", "a friendly dog.", "a large dog that swims."],
    "tabby cat": ["a cat with stripes."],
    "sushi": ["rice and raw fish.", "a roll of rice."],
}


@pytest.fixture(scope="module")
def backbone():
    return small_vit()


def features(backbone, values, images, classnames):
    """Adapted features, from values by their names in checkpoints; not normalised ones are not needed."""

    def adapted(x, side, share):
        hidden = (x @ values[f"{side}_adapter.0.weight"].T).clamp(min=0)
        return share * (hidden @ values[f"{side}_adapter.2.weight"].T).clamp(min=0) + (1 - share) * x

    def mapped(x, name):
        return x @ values[f"{PART}.{name}.weight"].T + values[f"{PART}.{name}.bias"]

    def before_text(i, x):
        if i == 0:
            return x
        return torch.cat([x[:, :1], deep[i - 1].expand(len(x), -1, -1), x[:, 1 + N :]], dim=1)

    def before_image(i, x):
        if i == 0:
            return x
        own = mapped(deep[i - 1], f"compound_prompt_projections.{i - 1}")
        return torch.cat([x[:, :-N], own.expand(len(x), -1, -1)], dim=1)

    deep, context = [values[f"{PART}.compound_prompts_text.{k}"] for k in range(2)], values[f"{PART}.ctx"]
    x, end = written_out.embeddings(backbone, [f"a photo of a {name.replace('_', ' ')}." for name in classnames])
    x = torch.cat([x[:, :1], context.expand(len(x), -1, -1), x[:, 1 + N :]], dim=1)
    t = written_out.text_tokens(backbone, x, before_text)[torch.arange(len(end)), end] @ backbone.model.text_projection
    z = written_out.image_tokens(backbone, images, mapped(context, "proj"), before_image)[:, 0]
    z, t = adapted(z @ backbone.model.visual.proj, "image", 0.1), adapted(t, "text", 0.2)
    return [v / v.norm(dim=1, keepdim=True) for v in (z, t)]


def test_forward(backbone):
    torch.manual_seed(0)
    method, images = CoPromptMethod(backbone, BASE, dict, depth=3).eval(), draw(backbone)
    z, t = features(backbone, written_out.learned(method), images, BASE)
    torch.testing.assert_close(method(images), backbone.logit_scale * z @ t.T, rtol=1e-4, atol=1e-4)


def chosen_sentences(method) -> list[str]:
    """Which sentence of each class the current step takes."""
    names = [name.replace("_", " ") for name in method.classnames]
    return [
        SENTENCES[name][draw % len(SENTENCES[name])] for name, draw in zip(names, method.chosen.tolist(), strict=True)
    ]


def test_steps(backbone, tmp_path):
    """Two batches of two views each, with sentences that change."""
    file = tmp_path / "sentences.json"
    file.write_text(json.dumps(SENTENCES))
    labels = torch.tensor([0, 1, 2, 0])
    batches = [{"img": [draw(backbone, seed=s), draw(backbone, seed=s + 10)], "label": labels} for s in (5, 6)]
    keys = {"PREC": "fp32", "PROMPT_DEPTH": 3, "W": 4.0, "SENTENCES": str(file)}
    optim = {"NAME": "sgd", "LR": 0.01, "MAX_EPOCH": 1}
    trainer = make_trainer(trainer_config("CoPrompt", optim, keys, tmp_path), backbone, BASE, batches)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    values, sgd, losses, seen = written_out.learned(trainer.model), written_out.SGD(0.01), [], []
    for step, batch in enumerate(batches):
        trainer.model.choose_sentences(1, 0, step)
        seen.append(chosen_sentences(trainer.model))
        z, t = features(backbone, values, batch["img"][0], BASE)
        z0 = written_out.image_features(backbone, batch["img"][1])
        t0 = written_out.text_features(backbone, *written_out.embeddings(backbone, seen[-1]))
        distances = (1 - (t * t0).sum(dim=1).mean()) + (1 - (z * z0).sum(dim=1).mean())
        loss = written_out.cross_entropy(backbone.logit_scale * z @ t.T, labels) + 4 * distances
        gradients = written_out.gradients(loss, values)
        losses.append(loss.item())
        sgd.step(values, gradients)
    trainer.train()
    assert seen[0] != seen[1]
    texts = [SENTENCES[name.replace("_", " ")] for name in BASE]
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    assert trainer.model.report() == {"coprompt": {"sentences_digest": digest}}
    assert [row["loss"] for row in trainer.rows] == pytest.approx(losses, rel=1e-5)
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, values[name].detach(), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_sentences_are_chosen_by_a_stream_of_their_own(backbone):
    method = CoPromptMethod(backbone, BASE, lambda: SENTENCES).train()
    state, drawn = torch.get_rng_state(), set()
    for step in range(40):
        method.choose_sentences(1, 0, step)
        drawn |= set(chosen_sentences(method))
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn == {sentence for of_class in SENTENCES.values() for sentence in of_class}
    method.choose_sentences(1, 0, 3)
    first = method.chosen.clone()
    method.choose_sentences(2, 0, 3)
    assert not torch.equal(method.chosen, first)
    method.choose_sentences(1, 0, 3)
    assert torch.equal(method.chosen, first)


def test_one_view_and_no_file(backbone, tmp_path, caplog):
    """The data set's own sentence stands in, and the log says so."""
    batches = [{"img": draw(backbone), "label": torch.tensor([0, 1, 2, 0])}]
    trainer = make_trainer(
        trainer_config("CoPrompt", {"MAX_EPOCH": 1}, {"PREC": "fp32"}, tmp_path), backbone, BASE, batches
    )
    assert "SENTENCES" not in caplog.text  # evaluation needs none
    trainer.train()
    assert "SENTENCES is empty" in caplog.text
    frozen = torch.nn.functional.normalize(trainer.model.described, dim=-1)
    torch.testing.assert_close(frozen, written_out.sentence_features(backbone, "a photo of a {}.", BASE))


@pytest.mark.parametrize(("n", "depth", "count"), [(2, 9, 3_817_216), (4, 12, 5_014_528)])
def test_numbers_learned(n, depth, count):
    assert count_learned(CoPromptMethod(vit_b16(), BASE, dict, n, depth)) == count


def test_state_serves_other_classes_which_need_no_sentences(backbone):
    torch.manual_seed(1)
    trained, other = (CoPromptMethod(backbone, names, lambda: SENTENCES, depth=3) for names in (BASE, NEW))
    other.load_state_dict(trained.state_dict())
    z, t = features(backbone, written_out.learned(trained), draw(backbone, seed=1), NEW)
    torch.testing.assert_close(evaluate(other), (backbone.logit_scale * z @ t.T).detach(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"no sentences of 2 classes \(bull mastiff, apple pie\)"):
        other.train()


def test_files_of_sentences(tmp_path):
    (tmp_path / "DescribableTextures.json").write_text('{"polka_dotted": ["a surface with dots."]}')
    assert read_sentences(str(tmp_path), "DescribableTextures") == {"polka dotted": ["a surface with dots."]}
    with pytest.raises(FileNotFoundError, match=r"no file .*EuroSAT\.json"):
        read_sentences(str(tmp_path), "EuroSAT")
    for text, said in (("{", "no JSON file"), ("[1]", "list of sentences"), ('{"a": "b"}', "list of sentences")):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            read_sentences(str(tmp_path / "other.json"), "EuroSAT")


def test_refusals(backbone, tmp_path):
    with pytest.raises(ValueError, match="M_TEXT is 2"):
        CoPromptMethod(backbone, BASE, dict, text_share=2)
    with pytest.raises(ValueError, match=r"is a ResNet.* ViT"):
        CoPromptMethod(openai_backbone("small ResNet", random_state(RESNET)), BASE, dict)
    for name, views in (("CoPrompt", 3), ("MaPLe", 2)):
        cfg = trainer_config(name, {}, {"PREC": "fp32"}, tmp_path)
        cfg.DATALOADER.K_TRANSFORMS = views
        with pytest.raises(ValueError, match=rf"K_TRANSFORMS \({views}\)"):
            make_trainer(cfg, backbone, BASE, [])
