from types import SimpleNamespace

import pytest
import torch
from test_clip import built
from torch import nn
from transformers import FlavaConfig, FlavaForPreTraining

import emblema
from emblema.core.errors import EmblemaError, NoSuchDoor
from emblema.core.method import Optim
from emblema.engine.train import run_pretraining
from emblema.objectives.generative import IGNORE
from emblema.parts.codebook import PatchCodes
from emblema.pretrain.flava import FLAVA
from emblema.testing import tiny_batch
from emblema.testing.squares import squares

TERMS = {"mim", "mlm", "mmm_image", "mmm_text", "matching", "image_text"}


def method(**fields):
    return FLAVA(**{"arch": "tiny", "codes": 16, "pictures": 8} | fields)


class Legs(nn.Module):
    """Stands where transformers has its encoders: hands out our hidden states, so its heads and losses judge them."""

    def __init__(self, vlm, plain, hidden):
        super().__init__()
        self.image_projection = lambda x: x @ vlm.image.projection
        self.text_projection = vlm.text.projection
        self.logit_scale = vlm.logit_scale.value
        self.plain, self.hidden = plain, hidden

    def forward(self, bool_masked_pos=None, **_):
        return SimpleNamespace(**(self.plain if bool_masked_pos is None else self.hidden))


def test_the_six_terms_are_those_of_transformers():
    system, batch = method(), tiny_batch(6)
    module = built(system)
    vlm, (other, matched) = module["vlm"], system.partners(tiny_batch(6))
    assert 0 < matched.sum() < 6
    image, codes = system._hidden_image(module, batch)
    text, words = system._hidden_text(module, batch)
    h_image, h_text = vlm.image.norm(image.x), vlm.text.norm(text.x)
    joint = vlm.fuse(
        image.with_x(h_image),
        type(text)(h_text[other], text.pool_at[other], length=text.length[other]),
    ).x
    pooled = vlm.image.pool(vlm.image.transform(vlm.image.embed(batch.images)))[:, None]
    read = vlm.text.pool(vlm.text.transform(vlm.text.embed(batch.texts)))[:, None]
    nothing = dict.fromkeys(("image_output", "text_output", "multimodal_output", "multimodal_embeddings"))
    plain = nothing | {"image_embeddings": pooled, "text_embeddings": read}
    hidden = nothing | {"image_embeddings": h_image, "text_embeddings": h_text}

    size = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    theirs = FlavaForPreTraining(
        FlavaConfig(
            image_config=size | {"vocab_size": 16},
            text_config=size | {"vocab_size": 4096},
            multimodal_config=size,
            hidden_size=64,
            init_codebook=False,
        ),
        nn.Identity(),
    ).eval()
    copy(module["patches"], theirs.mim_head)
    copy(module["words"].head, theirs.mlm_head)
    copy(module["fused_patches"], theirs.mmm_image_head)
    copy(module["fused_words"], theirs.mmm_text_head)
    theirs.itm_head.pooler.dense.load_state_dict(module["matching"][0].state_dict())
    theirs.itm_head.seq_relationship.load_state_dict(module["matching"][2].state_dict())

    def judged(**more):
        theirs.flava = Legs(vlm, plain, hidden | more)
        return theirs(
            input_ids=torch.ones(6, 3, dtype=torch.long),
            input_ids_masked=torch.ones(6, 3, dtype=torch.long),
            pixel_values=torch.ones(6, 3, 32, 32),
            codebook_pixel_values=torch.ones(1),
            bool_masked_pos=codes != IGNORE,
            mim_labels=codes.clone(),
            mlm_labels=words.clone(),
            itm_labels=matched.long(),
            return_loss=True,
        ).loss_info

    alone, both = judged(), judged(multimodal_embeddings=joint)
    expected = {
        "mim": alone.mim,
        "mlm": alone.mlm,
        "mmm_image": both.mmm_image,
        "mmm_text": both.mmm_text,
        "matching": both.itm,
        "image_text": both.global_contrastive,
    }
    found = system.losses(module, batch)
    assert found.keys() == expected.keys() == TERMS
    for name in TERMS:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0, msg=name)


def copy(ours, theirs):
    theirs.transform.dense.load_state_dict(ours[0].state_dict())
    theirs.transform.LayerNorm.load_state_dict(ours[2].state_dict())
    theirs.decoder.load_state_dict(ours[3].state_dict())


def test_batches_that_lack_something_have_zero_terms_or_fewer():
    module = built(method())
    batch = tiny_batch(4)
    batch.images = None
    assert set(method().losses(module, batch)) == {"mlm"}
    batch = tiny_batch(4)
    batch.texts = None
    assert set(method().losses(module, batch)) == {"mim"}
    none = method(mask_image=0.0, mask_text=0.0).losses(module, tiny_batch(4))
    assert all(none[k] == 0 for k in ("mim", "mlm", "mmm_image", "mmm_text")) and none["matching"] > 0
    wrong = method(mismatch=1.0).losses(module, tiny_batch(4))
    assert all(wrong[k] == 0 for k in ("mmm_image", "mmm_text", "image_text"))
    for single in (tiny_batch(1), tiny_batch(2)):
        assert all(v.isfinite() for v in method().losses(module, single).values())


def test_a_caption_that_says_the_same_is_no_wrong_one():
    batch = tiny_batch(4)
    batch.texts = ["a cat"] * 4
    other, matched = method(mismatch=1.0).partners(batch)
    assert matched.all() and other.tolist() == [0, 1, 2, 3]


def test_codes_are_the_nearest_of_centres_that_explain_the_pictures():
    pictures = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    pictures[:, 0, :, 16:] = 200
    pictures[2:, 2, 16:] = 120
    codes = PatchCodes(8, (4, 4))
    codes.fit(pictures, torch.Generator().manual_seed(0))
    found = codes(pictures)
    assert found.shape == (4, 16) and len(found[0].unique()) == 2 and len(found[3].unique()) == 4
    x = codes.patches(pictures)
    torch.testing.assert_close(codes.centres[found], x, atol=1e-6, rtol=0)


def test_words_made_at_the_start_are_kept_and_the_model_is_loaded(tmp_path):
    data, system = squares(each=4).split("train"), method(optim=Optim(batch_size=8, precision="fp32"))
    run_pretraining(system, data, tmp_path, steps=2, save_every=1, progress=False, quiet=True)
    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / "checkpoints" / s / "model.safetensors") for s in ("step-000001", "step-000002"))
    assert torch.equal(one["codes.centres"], two["codes.centres"])
    assert not torch.equal(one["codes.centres"], built(method())["codes"].centres)
    model = emblema.load(tmp_path / "model", precision="fp32", cache=False)
    joint = model.vlm.encode_pair(tiny_batch(2).images, ["a cat", "a dog"])
    assert joint.x.isfinite().all() and model.embed_texts(["a cat"]).shape == (1, 32)


def test_cutting_the_batch_and_towers_without_patches_are_refused():
    from emblema.engine.grad_cache import check

    with pytest.raises(EmblemaError, match=r"optim\.chunk needs"):
        check(method())
    with pytest.raises(NoSuchDoor, match="ViT"):
        FLAVA(arch="rn50").config()
