import pytest
import torch
from open_clip.loss import ClipLoss

from emblema.core.errors import NotFitted
from emblema.pretrain.clip import CLIP
from emblema.testing import ByteTokenizer, tiny_batch


def built(method):
    torch.manual_seed(0)
    module = method.build()
    module["vlm"].text.tokenizer = ByteTokenizer()
    return module.eval()


def test_the_loss_is_that_of_open_clip():
    method = CLIP(arch="tiny")
    module, batch = built(method), tiny_batch(8)
    vlm = module["vlm"]
    z_image, z_text = vlm.encode_image(batch.images), vlm.encode_text(batch.texts)
    expected = ClipLoss()(z_image, z_text, vlm.scale)
    found = method.losses(module, batch)
    assert list(found) == ["image_text"]
    torch.testing.assert_close(found["image_text"], expected, atol=1e-6, rtol=0)
    ours, theirs = gradients(module, found["image_text"]), gradients(module, expected)
    assert ours.keys() == theirs.keys() and any("logit_scale" in name for name in ours)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=5e-6, rtol=1e-4)


def gradients(module, loss):
    module.zero_grad()
    loss.backward(retain_graph=True)
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def test_the_scale_stays_at_or_below_100():
    method = CLIP(arch="tiny")
    module = built(method)
    with torch.no_grad():
        for p in module["vlm"].logit_scale.parameters():
            p.fill_(9.0)
    method.after_step(module)
    assert module["vlm"].scale.item() == pytest.approx(100, rel=1e-6)


def test_asking_for_the_model_before_fit_teaches():
    with pytest.raises(NotFitted, match="call fit"):
        _ = CLIP().vlm_
