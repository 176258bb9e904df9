"""Nearest words of learned contexts: what is read from which checkpoint, and the distances."""

import pytest
import torch
from clip_models import VIT, random_state, write_plain

from clip.clip import tokenizer
from clip.loading import load_backbone, openai_backbone
from interpret_prompts.__main__ import main
from interpret_prompts.nearest import nearest_words, text_vectors, vocabulary
from trainers.apex import APEXMethod
from trainers.cocoop import CoCoOpMethod
from trainers.coop import CoOpMethod
from trainers.ivlp import IVLPMethod
from trainers.maple import MaPLeMethod
from trainers.vpt import VPTMethod

CLASSES = ["tabby_cat", "sushi"]
DEEP = ["context", "prompt before text block 1", "prompt before text block 2"]
PER_CLASS = ["context of class tabby_cat", "context of class sushi"]
WORDS = ["a</w>", "photo</w>", "of</w>", "a</w>"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    write_plain(random_state(VIT), path)
    return str(path)


@pytest.fixture(scope="module")
def backbone(weights):
    return load_backbone(weights)


def save(path, method, **extras):
    torch.save({"state_dict": method.state_dict(), "epoch": 1, **extras}, path)
    return str(path)


def test_a_context_that_starts_from_words_reads_as_these_words(backbone):
    vectors = text_vectors(CoOpMethod(backbone, CLASSES, init="a photo of a").state_dict(), 3)
    words, table = vocabulary(backbone)
    rows = nearest_words(vectors["context"], words, table, 2)
    assert [row[0] for row in rows] == [(word, 0.0) for word in WORDS]
    assert all(row[1][1] > 0 for row in rows)


def test_distances_are_euclidean_and_ascending(backbone):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 64, generator=generator)
    words, table = vocabulary(backbone)
    for vector, row in zip(vectors, nearest_words(vectors, words, table, 4), strict=True):
        expected = (table.double() - vector.double()).square().sum(dim=1).sqrt()
        order = expected.argsort()[:4]
        assert [word for word, _ in row] == [words[i] for i in order]
        assert [distance for _, distance in row] == pytest.approx(expected[order].tolist(), abs=5e-5)


def test_words_that_were_never_trained_are_left_out():
    state = random_state(VIT)
    photo = tokenizer().encode("photo")[0]
    state["token_embedding.weight"][photo] = 0
    words, table = vocabulary(openai_backbone("small", state))
    assert "photo</w>" not in words
    assert len(words) == len(table) == 49407
    assert table[words.index("of</w>")].equal(state["token_embedding.weight"][tokenizer().encode("of")[0]])


@pytest.mark.parametrize(
    ("build", "titles"),
    [
        (lambda b: CoCoOpMethod(b, CLASSES, 3), ["context"]),
        (lambda b: CoOpMethod(b, CLASSES, 3, class_specific=True), PER_CLASS),
        (lambda b: IVLPMethod(b, CLASSES), DEEP),
        (lambda b: MaPLeMethod(b, CLASSES, depth=9), DEEP),
        (lambda b: APEXMethod(b, CLASSES), ["context"]),
    ],
)
def test_what_is_read_of_each_method(backbone, build, titles):
    method = build(backbone)
    for state in (method.state_dict(), {f"module.{key}": value for key, value in method.state_dict().items()}):
        vectors = text_vectors(state, 3, CLASSES)
        assert list(vectors) == titles
        assert all(value.shape[1:] == (64,) for value in vectors.values())


def test_bare_names_and_unknown_classes(backbone):
    state = {"ctx": torch.zeros(2, 3, 64), "token_prefix": torch.zeros(2, 1, 64)}
    assert list(text_vectors(state, 3)) == ["context of class number 0", "context of class number 1"]
    assert list(text_vectors({"ctx": torch.zeros(3, 64)}, 3)) == ["context"]


def test_frozen_prompts_of_an_official_checkpoint_are_passed_over():
    key = "clip_model_temp.transformer.resblocks.1.VPT_shallow"
    assert list(text_vectors({"prompt_learner.ctx": torch.zeros(2, 64), key: torch.zeros(2, 64)}, 3)) == ["context"]


def test_command_line(backbone, weights, tmp_path, capsys):
    method = IVLPMethod(backbone, CLASSES, n_text=4, n_vision=0, depth_vision=0)
    file = save(tmp_path / "model.pth.tar-1", method, backbone=weights, classnames=CLASSES)
    (tmp_path / "checkpoint").write_text("model.pth.tar-1\n")
    for given in (file, str(tmp_path)):
        assert main([given, "--topk", "1", "--backbone", weights]) == 0
        lines = capsys.readouterr().out.splitlines()
        out = [line for line in lines if "does not say with which activation" not in line]
        assert out[0].startswith(f"{file}: 1 nearest of 49408 words")
        assert out[1:6] == ["context (4 x 64)", *(f"  {i}: {word} (0.0000)" for i, word in enumerate(WORDS, 1))]
        assert out[6] == "prompt before text block 1 (4 x 64)"
        assert len(out) == 16


@pytest.mark.parametrize(
    ("build", "flags", "sentence"),
    [
        (lambda b: VPTMethod(b, CLASSES), ["--backbone", "{weights}"], "no learned text context"),
        (lambda b: CoOpMethod(b, CLASSES, 3), ["--backbone", "{weights}", "--topk", "0"], "--topk is 0"),
        (lambda b: CoOpMethod(b, CLASSES, 3), [], "do not choose what is read: if this is yours, give --backbone /"),
        (lambda b: CoOpMethod(b, CLASSES, 3), ["--backbone", "ViT-B/61"], "ViT-B/16"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(backbone, weights, tmp_path, capsys, build, flags, sentence):
    file = save(tmp_path / "model.pth.tar-1", build(backbone), backbone=weights)
    assert main([file, *(flag.format(weights=weights) for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("interpret_prompts: ")
    assert sentence in error


def test_other_weights_than_the_checkpoint_s(backbone, weights, tmp_path, capsys):
    own = load_backbone(weights).digest
    for digest, status in ((own, 0), ("0" * 64, 2)):
        file = save(
            tmp_path / "x.pth.tar-1", CoOpMethod(backbone, CLASSES, 3), backbone=weights, backbone_digest=digest
        )
        assert main([file, "--backbone", weights]) == status
    assert "was trained on other weights" in capsys.readouterr().err


def test_a_checkpoint_does_not_choose_what_is_read(weights, tmp_path, capsys):
    node = {"MODEL": {"BACKBONE": {"NAME": "tiny-ViT", "PATH": weights}}}
    for name, config in ((weights, {}), ("hf-hub:a/b", {}), ("local-dir:/tmp", {}), ("tiny-ViT", node)):
        path = tmp_path / "model.pth.tar-1"
        torch.save({"state_dict": {"ctx": torch.zeros(2, 128)}, "epoch": 1, "backbone": name, "config": config}, path)
        assert main([str(path)]) == 2
        assert "files of others do not choose what is read" in capsys.readouterr().err
    assert main([str(path), "--backbone-path", ""]) == 0


def test_another_backbone_and_no_checkpoint(weights, tmp_path, capsys):
    path = tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {"ctx": torch.zeros(2, 512)}, "epoch": 1}, path)
    assert main([str(path), "--backbone", weights]) == 2
    assert "512 wide" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "no file named checkpoint" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
