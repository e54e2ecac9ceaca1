import pytest
import torch
import torch.nn.functional as F

from emblema.core.batch import Level
from emblema.core.errors import BadData
from emblema.tasks import places
from emblema.tasks.retrieval import Retrieval
from emblema.tasks.token_wise import TokenWise, score_ranks, token_scores
from emblema.tasks.zero_shot import ZeroShot
from emblema.testing import tiny_model
from emblema.testing.squares import squares


@pytest.fixture(scope="module")
def model():
    return tiny_model(cache=False)


def test_ranks_from_scores_are_those_of_vectors():
    g = torch.Generator().manual_seed(0)
    z_image, z_text = (F.normalize(torch.randn(n, 6, generator=g), dim=-1) for n in (7, 9))
    pairs = torch.tensor([[0, 0], [0, 3], [1, 3], [2, 5], [4, 8], [6, 1]])
    scores = z_image @ z_text.T
    for ours, theirs in zip(score_ranks(scores, scores.T, pairs, places.TIE), places.ranks(z_image, z_text, pairs)):
        assert torch.equal(ours, theirs)


def test_scores_of_templates_are_averaged(model):
    data = squares(each=2).split("test")
    found = TokenWise(model, ["{}", "a {}"]).scores(data)
    patches = model.features(data, Level.PATCHES).flatten(1, 2)
    w, real = model.vlm.encode_words([data.class_names[1], f"a {data.class_names[1]}"])
    by_hand = [(patches[3] @ w[t, real[t]].T).max(1).values.mean() for t in range(2)]
    assert found.shape == (8, 4)
    torch.testing.assert_close(found[3, 1], model.vlm.scale * sum(by_hand) / 2, atol=1e-5, rtol=0)


def test_many_texts_are_compared_in_chunks(model, monkeypatch):
    data, texts = squares(each=1).split("test"), ["red", "a green square", "blue", "one yellow"]
    whole = token_scores(model, data, texts)
    monkeypatch.setattr("emblema.tasks.token_wise.CHUNK", 3)
    for a, b in zip(whole, token_scores(model, data, texts)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_tasks_measure_by_tokens_under_a_protocol_of_their_own(model):
    data = squares(each=2).split("test")
    for task in (ZeroShot, Retrieval):
        plain, late = (task(resamples=10, token_wise=t).evaluate(model, data) for t in (False, True))
        assert late["metrics"].keys() == plain["metrics"].keys() and late["sizes"] == plain["sizes"]
        assert late["protocol"]["hash"] != plain["protocol"]["hash"] and "token-wise" in late["protocol"]["name"]
    with pytest.raises(BadData, match="--pool all"):
        Retrieval(token_wise=True, pool="1k").run(model, data)
