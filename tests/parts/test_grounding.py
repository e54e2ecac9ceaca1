import math

import pytest
import torch

from emblema.core.errors import BadData
from emblema.encoders.tokenizers import ClipTokenizer, train_bpe
from emblema.parts.fusion import BidirectionalAttention
from emblema.parts.grounding import GroundingHead, phrase_scores, phrase_tokens, prompt
from emblema.testing import ByteTokenizer

NAMES = ["car", "red car", "traffic light", "St. Bernard", "café", "carport"]
TOKENIZERS = {
    "clip": ClipTokenizer,
    "trained": lambda: train_bpe(["a red car", "the car's light", "traffic light. red light"] * 3, 300),
    "bytes": ByteTokenizer,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokens_of_a_phrase_spell_it(name):
    tokenizer, said = TOKENIZERS[name](), prompt(NAMES)
    ids = tokenizer([said], 256).ids[0]
    tokens = phrase_tokens(tokenizer, said)
    assert said.count(". ") == 5 and tokens.shape == (6, len(ids))
    assert (tokens.sum(0) <= 1).all() and not tokens[:, [0, -1]].any()  # no token of two phrases, none of start, end
    for phrase, row in zip(said.split(". "), tokens):
        assert tokenizer.decode(ids[row].tolist()).lower() == phrase.lower()
    between = tokenizer.decode(ids[~tokens.any(0)].tolist())
    assert set(between) <= {".", " "}


def test_a_phrase_without_tokens_is_named():
    with pytest.raises(BadData, match=r"the phrase '' .* another name"):
        phrase_tokens(ByteTokenizer(), "cat. . dog")


def test_the_score_of_a_phrase_is_the_mean_over_its_tokens():
    tokens = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    p = torch.rand(2, 3, 7)  # padded
    expected = torch.stack([(p[..., 1] + p[..., 2]) / 2, p[..., 4]], -1)
    torch.testing.assert_close(phrase_scores(p, tokens), expected)


def head(fusion=True, depth=2):
    torch.manual_seed(0)
    return GroundingHead(16, depth, 2, 2, fusion)


def inputs():
    g = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 16, n, n, generator=g) for n in (4, 2)]
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    return maps, torch.randn(2, 5, 16, generator=g), real


def test_the_bias_is_a_prior_of_one_in_a_hundred():
    maps, words, real = inputs()
    module = head()
    assert module.bias.item() == pytest.approx(-4.595, abs=1e-3)
    with torch.no_grad():
        module.words.weight.zero_()
        module.words.bias.zero_()
    found = module(maps, words, real, torch.tensor(1.0))
    torch.testing.assert_close(found.logits.sigmoid(), torch.full((2, 20, 5), 0.01))
    usual = head()(maps, words, real, torch.tensor(1.0)).logits.sigmoid()
    assert 0.005 < usual.mean() < 0.02


def test_logits_are_those_of_a_slow_loop():
    module = head()
    torch.nn.init.normal_(module.word_bias)
    regions, words, g = torch.randn(1, 3, 16), torch.randn(1, 4, 16), 0.3
    found = module.compare(regions, words, torch.tensor(math.exp(-g)))
    for i in range(3):
        for j in range(4):
            w = words[0, j] / words[0, j].norm()
            product = regions[0, i] @ (module.words.weight @ (w / 2) + module.words.bias)
            expected = product / math.exp(g) + w @ module.word_bias + module.bias
            torch.testing.assert_close(found[0, i, j], expected)


@pytest.mark.parametrize("fusion", [True, False])
def test_padding_says_nothing_to_the_places(fusion):
    maps, words, real = inputs()
    module = head(fusion).eval()
    whole = module(maps, words, real, torch.tensor(1.0))
    other = module(maps, torch.where(real[..., None], words, 7.0), real, torch.tensor(1.0))
    alone = module([m[1:] for m in maps], words[1:, :3], real[1:, :3], torch.tensor(1.0))
    torch.testing.assert_close(whole.logits[real[:, None].expand_as(whole.logits)],
                               other.logits[real[:, None].expand_as(whole.logits)])  # fmt: skip
    torch.testing.assert_close(whole.logits[1:, :, :3], alone.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.offsets[1:], alone.offsets, atol=1e-5, rtol=1e-4)


def test_only_with_fusion_the_boxes_depend_on_the_words():
    maps, words, real = inputs()
    for fusion in (True, False):
        module = head(fusion).eval()
        a, b = (module(maps, w, real, torch.tensor(1.0)).centre for w in (words, -words))
        assert torch.equal(a, b) != fusion


def test_both_ways_of_reading_are_those_of_a_slow_loop():
    torch.manual_seed(0)
    module = BidirectionalAttention(8, 2, 0.5)
    x, w = torch.randn(1, 3, 8), torch.randn(1, 4, 8)
    real = torch.tensor([[True, True, True, False]])
    places, words = module(x, w, real)
    (q, vx), (k, vw) = (f(n(a))[0].chunk(2, -1) for f, n, a in (
        (module.places, module.norm_places, x), (module.words, module.norm_words, w)))  # fmt: skip
    read, heard = torch.zeros(3, 8), torch.zeros(4, 8)
    for h in (slice(0, 4), slice(4, 8)):
        s = q[:, h] @ k[:, h].T / 2
        for i in range(3):
            p = s[i, :3].softmax(0)
            read[i, h] = sum(p[j] * vw[j, h] for j in range(3))
        for j in range(4):
            p = s[:, j].softmax(0)
            heard[j, h] = sum(p[i] * vx[i, h] for i in range(3))
    torch.testing.assert_close(places[0], x[0] + 0.5 * module.to_places(read))
    torch.testing.assert_close(words[0], w[0] + 0.5 * module.to_words(heard))
