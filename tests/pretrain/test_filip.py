import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from test_clip import built

from emblema.engine.train import preprocess_of
from emblema.frameworks import checkpoint
from emblema.objectives.late_interaction import late_contrastive, late_interaction
from emblema.pretrain.filip import FILIP
from emblema.testing import tiny_batch


def tokens(n=5, m=4, p=3, length=6, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    u, w = (F.normalize(torch.randn(*s, dim, generator=g), dim=-1) for s in ((n, p), (m, length)))
    real = torch.arange(length) < torch.tensor([6, 2, 3, 1, 5])[:m, None]
    return u, w, real


def slow(u, w, real):
    s_image, s_text = torch.zeros(len(u), len(w)), torch.zeros(len(u), len(w))
    for i in range(len(u)):
        for j in range(len(w)):
            words = [w[j, k] for k in range(w.shape[1]) if real[j, k]]
            s_image[i, j] = sum(max(a @ b for b in words) for a in u[i]) / len(u[i])
            s_text[i, j] = sum(max(a @ b for a in u[i]) for b in words) / len(words)
    return s_image, s_text


@pytest.mark.parametrize("budget", [1, 150, 2**24])
def test_similarity_is_that_of_loops(budget):
    u, w, real = tokens()
    for ours, theirs in zip(late_interaction(u, w, real, budget=budget), slow(u, w, real)):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_chunks_change_no_gradient():
    found = []
    for budget in (1, 2**24):
        u, w, real = tokens(4, 4)
        w = (w * real[..., None]).requires_grad_()
        late_contrastive(u.requires_grad_(), w, 10.0, budget=budget).backward()
        found.append((u.grad, w.grad))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert (found[0][1][~real] == 0).all()  # padding learns nothing


def test_padding_is_never_read():
    u, w, real = tokens()
    noisy = torch.where(real[..., None], w, 100.0)
    for a, b in zip(late_interaction(u, w, real), late_interaction(u, noisy, real)):
        assert torch.equal(a, b)


def test_one_patch_and_one_word_are_clip():
    u, w, _ = tokens(4, 4, 1, 1)
    ours = late_contrastive(u, w, 7.0)
    torch.testing.assert_close(ours, ClipLoss()(u[:, 0], w[:, 0], torch.tensor(7.0)), atol=1e-6, rtol=0)


def test_a_text_without_words_is_refused():
    u, w, real = tokens()
    real[1] = False
    with pytest.raises(ValueError, match="text 1 has no token"):
        late_interaction(u, w, real)
    with pytest.raises(ValueError, match="expected \\[N, P, D\\]"):
        late_interaction(u[..., :4], w, real)


def test_the_loss_reads_all_tokens_of_both_towers():
    method = FILIP(arch="tiny")
    module, batch = built(method), tiny_batch(6)
    vlm = module["vlm"]
    u = vlm.encode_patches(batch.images).flatten(1, 2)
    w, real = vlm.encode_words(batch.texts)
    s_image, s_text = slow(u, w, real)
    own = torch.arange(6)
    expected = (F.cross_entropy(vlm.scale * s_image, own) + F.cross_entropy(vlm.scale * s_text.T, own)) / 2
    torch.testing.assert_close(method.losses(module, batch)["token_wise"], expected, atol=1e-5, rtol=0)


def test_the_saved_model_is_an_ordinary_two_tower_model(tmp_path):
    method = FILIP(arch="tiny")
    vlm, batch = built(method)["vlm"], tiny_batch(3)
    vlm.text.tokenizer = None
    loaded = checkpoint.load(checkpoint.save(tmp_path / "m", vlm, method.config(), preprocess_of(vlm), ["{}"])).vlm
    assert torch.equal(loaded.encode_image(batch.images), vlm.encode_image(batch.images))
    patches = vlm.image.dense(batch.images).flatten(1, 2)
    torch.testing.assert_close(vlm.encode_image(batch.images), F.normalize(patches.mean(1), dim=-1))
