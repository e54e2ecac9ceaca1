import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from open_clip.loss import ClipLoss
from test_clip import built

from emblema.pretrain.clip import CLIP
from emblema.pretrain.slip import SLIP
from emblema.testing import tiny_batch


def with_views(n):
    batch = tiny_batch(n)
    batch.views = [batch.images.flip(-1), batch.images.roll(3, -1)]
    return batch


def test_the_terms_are_those_of_open_clip_and_lightly():
    method = SLIP(arch="tiny")
    module, batch = built(method), with_views(8)
    vlm, tower = module["vlm"], module["vlm"].image
    h = [module["head"](tower.pool(tower.transform(tower.embed(v)))) for v in batch.views]
    expected = {
        "image_text": ClipLoss()(vlm.encode_image(batch.images), vlm.encode_text(batch.texts), vlm.scale),
        "image_image": NTXentLoss(0.1)(F.normalize(h[0], dim=-1), F.normalize(h[1], dim=-1)),
    }
    found = method.losses(module, batch)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


def test_weight_0_is_clip_bit_for_bit():
    module, batch = built(SLIP(arch="tiny")), with_views(8)
    slip = SLIP(arch="tiny", weight=0.0).losses(module, batch)
    clip = CLIP(arch="tiny").losses(module, batch)
    assert torch.equal(slip["image_text"], clip["image_text"]) and slip["image_image"] == 0
