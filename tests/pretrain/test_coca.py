import pytest
import torch
from open_clip.loss import CoCaLoss
from test_clip import built

import emblema
from emblema.core.errors import NoSuchDoor
from emblema.core.method import Optim
from emblema.encoders.tokenizers import TextIds
from emblema.engine.train import run_pretraining
from emblema.objectives.generative import captioning
from emblema.parts.decoder import next_words
from emblema.parts.masked_words import token_mean
from emblema.pretrain.coca import CoCa
from emblema.testing import tiny_batch
from emblema.testing.squares import NAMES, squares


@pytest.fixture
def module():
    return built(CoCa(arch="tiny", queries=6))


def test_the_loss_is_that_of_open_clip(module):
    batch = tiny_batch(6)
    batch.texts[2] = "short"
    vlm = module["vlm"]
    ids = vlm.text.tokenize(batch.texts)
    z_image, z_text, logits = vlm.encode_pair(batch.images, ids)
    contrast, caption = CoCaLoss(caption_loss_weight=2, clip_loss_weight=1, pad_id=0)(
        z_image, z_text, logits[:, :-1], ids.ids[:, 1:], vlm.scale
    )
    found = CoCa(arch="tiny", queries=6).losses(module, batch)
    torch.testing.assert_close(found["image_text"], contrast, atol=1e-6, rtol=0)
    torch.testing.assert_close(found["caption"], caption, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["caption"], 2 * captioning(logits, ids.ids, 0), atol=1e-5, rtol=0)


def test_one_pass_gives_what_the_towers_give(module):
    batch, vlm = tiny_batch(4), module["vlm"]
    z_image, z_text, _ = vlm.encode_pair(batch.images, vlm.text.tokenize(batch.texts))
    torch.testing.assert_close(z_image, vlm.encode_image(batch.images), atol=1e-5, rtol=0)
    torch.testing.assert_close(z_text, vlm.encode_text(batch.texts), atol=1e-5, rtol=0)


def test_a_word_knows_the_words_before_it_and_the_image_only(module):
    batch, vlm = tiny_batch(3), module["vlm"]
    ids = vlm.text.tokenize(batch.texts)
    logits = vlm.encode_pair(batch.images, ids)[2]
    other = TextIds(ids.ids.clone(), ids.length)
    other.ids[:, 6] = 40
    changed = vlm.encode_pair(batch.images, other)[2]
    torch.testing.assert_close(changed[:, :6], logits[:, :6])
    assert not changed[:, 6].allclose(logits[:, 6])
    assert not vlm.encode_pair(batch.images.flip(0), ids)[2].allclose(logits)


def test_the_text_vector_does_not_read_padding(module):
    vlm = module["vlm"]
    ids = TextIds(torch.tensor([[257, 5, 258, 0, 0], [257, 7, 8, 9, 258]]), torch.tensor([3, 5]))
    other = TextIds(ids.ids.clone(), ids.length)
    other.ids[0, 3:] = 77
    assert torch.equal(vlm.encode_text(ids), vlm.encode_text(other))
    alone = TextIds(ids.ids[:1, :3], ids.length[:1])
    torch.testing.assert_close(vlm.encode_text(alone), vlm.encode_text(ids)[:1], atol=1e-6, rtol=0)


def test_no_words_make_no_loss():
    logits = torch.randn(2, 1, 9, requires_grad=True)
    found = token_mean(next_words(logits, torch.ones(2, 1, dtype=torch.long), torch.ones(2)))
    found.backward()
    assert found == 0 and not logits.grad.any()


def test_beam_search_finds_what_trying_all_captions_finds(module):
    vlm, images, start, end = module["vlm"], tiny_batch(1).images, 257, 258
    with torch.no_grad():
        vlm.decoder.head.weight.mul_(6)
    memory = vlm._look(images)

    def log_p(*ids, never):
        logits = vlm._next(torch.tensor([ids]), memory)[0, :259].clone()
        logits[[0, start, *never]] = -torch.inf
        return logits.log_softmax(-1)

    first = log_p(start, never=[end])
    pairs = {w: log_p(start, w, never=[]) for w in range(259) if first[w] > -torch.inf}
    best = max(pairs, key=lambda w: first[w] + pairs[w].max())
    tokenizer = vlm.text.tokenizer
    assert vlm.caption(images, beams=256, most=2) == [tokenizer.decode([best, int(pairs[best].argmax())])]
    likely = int(first.argmax())
    assert vlm.caption(images, most=2) == [tokenizer.decode([likely, int(pairs[likely].argmax())])]


def test_it_learns_to_say_what_it_sees_and_keeps_it_in_its_checkpoint(tmp_path):
    data = squares(each=8)
    method = CoCa(arch="tiny", queries=4, optim=Optim(lr=2e-3, batch_size=16, precision="fp32"))
    run_pretraining(method, data.split("train"), tmp_path, steps=60, progress=False, quiet=True)
    model = emblema.load(tmp_path / "model", precision="fp32", cache=False)
    held_out = data.split("test")
    shown = [held_out[i] for i in range(0, 32, 5)]
    said = model.caption([r.image for r in shown], beams=2)
    right = sum(NAMES[r.label].split()[0] in text for r, text in zip(shown, said))
    assert right >= 6 and len(shown) == 7, said
    assert model.embed_images([shown[0].image]).shape == (1, 32)


def test_models_without_a_decoder_say_so():
    from emblema.testing import tiny_model

    with pytest.raises(NoSuchDoor, match="pretrain coca"):
        tiny_model().caption([])


def test_an_architecture_without_tokens_is_refused():
    with pytest.raises(NoSuchDoor, match="ViT"):
        CoCa(arch="rn50").build()
