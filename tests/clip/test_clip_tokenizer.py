"""Token ids: equal to open_clip's tokenizer, which is OpenAI's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import SimpleTokenizer as Reference

import clip
from clip.clip import ContextLengthError, tokenizer
from clip.simple_tokenizer import END, START, SimpleTokenizer, default_bpe

REFERENCE = Reference()
HARD = [
    "",
    " ",
    "a photo of a cat.",
    "A Photo Of A CAT.",
    "it's he'll they've I'd we're I'm don't",
    "naïve café Ångström straße İstanbul",
    "日本語のテキスト と 한국어",
    "emoji 🐱🏽‍🚀 and ❤️",
    "&amp;lt;b&amp;gt; &quot;quoted&quot; &nbsp;",
    "âœ” mojibake: schÃ¶n",
    "tabs\tand\nnewlines   and    spaces",
    "1234567890 3.14159 2024-01-01",
    "!!! ??? ... --- ___ +-*/=<>[]{}()|\\^~`@#$%&",
    "supercalifragilisticexpialidocious",
    "e\u0301 combining, ﬁ ligature, ½ fraction, x² superscript",
    "snake_case and CamelCase and kebab-case",
    "‘curly’ “quotes” – dash — dash…",
    "zero\u200bwidth and non\u00a0breaking",
]


@pytest.mark.parametrize("text", HARD)
def test_equals_open_clip(text):
    assert torch.equal(clip.tokenize(text), REFERENCE([text]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_equals_open_clip_on_any_text(text):
    if "<|" in text:  # the two name the special tokens differently
        return
    assert torch.equal(clip.tokenize(text, truncate=True), REFERENCE([text]))


def test_a_batch_is_its_texts():
    tokens = clip.tokenize(HARD)
    assert tokens.shape == (len(HARD), 77)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, torch.cat([clip.tokenize(text) for text in HARD]))


def test_special_tokens_in_text_are_openai_s():
    start, end = tokenizer().encoder[START], tokenizer().encoder[END]
    assert (start, end) == (49406, 49407)
    assert tokenizer().encode(f"{START}a{END}") == [start, *tokenizer().encode("a"), end]


def test_too_long():
    text = "word " * 76
    with pytest.raises(ContextLengthError, match=r"78 tokens long, but the context holds 77"):
        clip.tokenize(text)
    with pytest.raises(RuntimeError):  # what OpenAI's package raises
        clip.tokenize(text)
    assert torch.equal(clip.tokenize(text, truncate=True), REFERENCE([text]))
    assert clip.tokenize("word " * 75).shape == (1, 77)
    assert clip.tokenize("a b c", context_length=5).tolist() == [[49406, 320, 321, 322, 49407]]


def test_decode_is_the_inverse():
    bpe = SimpleTokenizer(default_bpe())
    for text in ("a photo of a cat .", "naïve café", "日本語 🐱"):
        assert bpe.decode(bpe.encode(text)).strip().replace(" ", "") == text.replace(" ", "")


def test_vocabulary_size():
    assert len(tokenizer().encoder) == len(tokenizer().decoder) == 49408
