import torch
import torch.nn.functional as F
from lightly.loss import NegativeCosineSimilarity
from open_clip.loss import ClipLoss
from test_clip import built

from emblema.parts.words import EDA_NUMBERS, eda
from emblema.pretrain.declip import DeCLIP
from emblema.testing import tiny_batch


def method_and_module(**fields):
    method = DeCLIP(arch="tiny", bank=12, **fields)
    return method, built(method)


def features(method, module, batch):
    z = {name: encode(batch) for name, encode in method.encoders(module).items()}
    return z, [F.normalize(z[k], dim=-1) for k in ("view_1", "view_2")], [z["text_and_words"][:, :-2], z["other_text"]]


def test_the_terms_are_those_of_the_oracles():
    method, module = method_and_module()
    bank = F.normalize(torch.randn(12, 32, generator=torch.Generator().manual_seed(3)), dim=-1)
    module["bank"].push(bank)
    batch = tiny_batch(8)
    z, views, texts = features(method, module, batch)
    scale = module["vlm"].scale
    pairs = [ClipLoss()(v, t, scale) for v in views for t in texts]
    one_way = [
        F.cross_entropy(scale * v @ bank[(t @ bank.T).argmax(1)].T, torch.arange(8)) for v in views for t in texts
    ]
    p, q = module["projector"], module["predictor"]
    a, b = p(z["view_1"]), p(z["view_2"])
    cosine = NegativeCosineSimilarity()
    expected = {
        "image_text": 0.4 * sum(pairs) / 4,
        "neighbour": 0.2 * sum(one_way) / 4,
        "image_image": 0.2 * (cosine(q(a), b.detach()) + cosine(q(b), a.detach())) / 2,
    }
    found = method.losses(module, batch)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def test_words_are_the_token_mean_of_what_was_hidden():
    method, module = method_and_module(mask=0.5, weight_words=1.0)
    batch, text = tiny_batch(8), module["vlm"].text
    tokens, targets = module["words"].hide(
        text, text.tokenize(batch.texts), batch.noise("mask", 3, text.context_length), 0.5
    )
    h = text.norm(text.transform(tokens).x)
    expected = F.cross_entropy(module["words"].head(h).flatten(0, 1), targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(method.losses(module, batch)["words"], expected, atol=1e-5, rtol=0)


def test_no_hidden_word_is_a_term_of_zero():
    method, module = method_and_module(mask=0.0)
    words = method.losses(module, tiny_batch(8))["words"]
    assert words.item() == 0 and words.requires_grad


def test_neighbours_wait_until_the_bank_holds_texts_only():
    method, module = method_and_module()
    module.train()
    assert method.losses(module, tiny_batch(5))["neighbour"] == 0  # pushes 10 of 12
    assert not module["bank"].warm
    method.losses(module, tiny_batch(5))
    assert module["bank"].warm
    assert method.losses(module, tiny_batch(5))["neighbour"] > 0


def test_the_other_text_swaps_or_deletes():
    still = [0.5] * (EDA_NUMBERS - 3)
    assert eda("red", [0.1, 0.1, 0.1, *still]) == "red"
    assert eda("a red car", [0.1, 0.0, 0.0, *still]) == "red a car"
    assert eda("a red car", [0.9, 0.0, 0.0, 0.05, *still[1:]]) == "red car"
    assert eda("a red car", [0.9, 0.99, 0.0, *[0.0] * len(still)]) == "car"  # one word is kept
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        said = eda("one two three four", torch.rand(EDA_NUMBERS, generator=g).tolist()).split()
        assert set(said) <= {"one", "two", "three", "four"} and 1 <= len(said) <= 4
