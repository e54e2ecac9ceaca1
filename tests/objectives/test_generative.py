"""Eqs. 6-9 against loops and against the models that train with them."""

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import CoCaLoss
from transformers import (
    BeitConfig,
    BeitForMaskedImageModeling,
    BertConfig,
    BertForMaskedLM,
    FlavaConfig,
    FlavaForPreTraining,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from emblema.objectives.alignment import image_text_matching
from emblema.objectives.contrastive import image_text_contrastive
from emblema.objectives.generative import (
    captioning,
    masked_cross_modal,
    masked_image_pixels,
    masked_image_tokens,
    masked_language,
    patchify,
)
from emblema.parts.masking import random_patches

SMALL = dict(  # noqa: C408
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, hidden_dropout_prob=0.0
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_patch_is_ordered_row_column_channel():
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    flat = [images[1, c, 2 + r, 4 + w] for r in range(2) for w in range(2) for c in range(3)]
    assert patches[1, 5].tolist() == [int(v) for v in flat]
    with pytest.raises(ValueError, match="patch size 5"):
        patchify(images, 5)


@pytest.mark.parametrize("normalise", [True, False])
def test_oracle_mae(normalise):
    torch.manual_seed(0)
    config = ViTMAEConfig(
        **SMALL,
        image_size=16,
        patch_size=4,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        norm_pix_loss=normalise,
    )
    images, noise = torch.randn(3, 3, 16, 16), torch.rand(3, 16)
    out = ViTMAEForPreTraining(config).eval()(images, noise=noise)
    kept, masked = random_patches(noise, 0.75)
    assert torch.equal(masked, out.mask.bool()) and kept.shape == (3, 4)
    torch.testing.assert_close(masked_image_pixels(out.logits, images, masked, 4, normalise=normalise), out.loss)


def test_predicting_the_mean_scores_one():
    images = torch.randn(2, 3, 32, 32, generator=seeded())
    masked = torch.ones(2, 4, dtype=torch.bool)
    loss = masked_image_pixels(torch.zeros(2, 4, 768), images, masked, 16)
    assert float(loss) == pytest.approx(1, abs=0.01)


def test_oracle_beit():
    torch.manual_seed(0)
    config = BeitConfig(**SMALL, image_size=16, patch_size=4, vocab_size=11, use_mask_token=True)
    masked = torch.rand(2, 16) < 0.4
    codes = torch.randint(11, (2, 16))
    out = BeitForMaskedImageModeling(config).eval()(torch.randn(2, 3, 16, 16), masked, labels=codes[masked])
    torch.testing.assert_close(masked_image_tokens(out.logits, codes, masked), out.loss)


def test_oracle_bert():
    torch.manual_seed(0)
    config = BertConfig(**SMALL, vocab_size=23, max_position_embeddings=8)
    ids = torch.randint(23, (2, 8))
    targets = ids.masked_fill(torch.rand(2, 8) < 0.6, -100)
    out = BertForMaskedLM(config).eval()(ids, labels=targets)
    torch.testing.assert_close(masked_language(out.logits, targets), out.loss)


class Codebook(torch.nn.Module):
    """Stands in for FLAVA's visual tokenizer."""

    def get_codebook_indices(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean(1).flatten(1).mul(7).long() % 11


def test_oracle_flava():
    """Every term that FLAVA computes on a batch of pairs of which the second does not match."""
    torch.manual_seed(0)
    image = {**SMALL, "image_size": 16, "patch_size": 4, "vocab_size": 11}
    text = {**SMALL, "vocab_size": 23, "max_position_embeddings": 8}
    config = FlavaConfig(
        image_config=image, text_config=text, multimodal_config=SMALL, hidden_size=16, projection_dim=16
    )
    model = FlavaForPreTraining(config, image_codebook=Codebook()).eval()
    ids, pixels, codebook_pixels = (
        torch.randint(1, 23, (3, 8)),
        torch.randn(3, 3, 16, 16),
        torch.rand(3, 3, 4, 4),
    )
    masked, selected = torch.rand(3, 16) < 0.4, torch.rand(3, 8) < 0.4
    targets, matched = ids.masked_fill(~selected, -100), torch.tensor([1, 0, 1])
    out = model(
        input_ids=ids,
        input_ids_masked=ids.masked_fill(selected, 0),
        pixel_values=pixels,
        codebook_pixel_values=codebook_pixels,
        bool_masked_pos=masked.clone(),
        mlm_labels=targets.clone(),
        itm_labels=matched,
        attention_mask=torch.ones_like(ids),
        return_loss=True,
    )
    codes = Codebook().get_codebook_indices(codebook_pixels)
    fused = out.multimodal_masked_output.last_hidden_state  # [B, 1 + 17 + 8, 16]
    image_term, text_term = masked_cross_modal(
        model.mmm_image_head(fused[:, 2:18]),
        codes,
        masked,
        model.mmm_text_head(fused[:, -8:]),
        targets,
        matched,
    )
    torch.testing.assert_close(image_term, out.loss_info.mmm_image)
    torch.testing.assert_close(text_term, out.loss_info.mmm_text)
    torch.testing.assert_close(image_text_matching(out.itm_logits, matched), out.loss_info.itm)

    z_image = F.normalize(model.flava.image_projection(out.image_embeddings[:, 0]), dim=-1)
    z_text = F.normalize(model.flava.text_projection(out.text_embeddings[:, 0]), dim=-1)
    rows = matched.bool()  # only matched rows count, each against all columns
    kept = image_text_contrastive(z_image, z_text, model.flava.logit_scale.exp(), sample_weight=rows.float())
    torch.testing.assert_close(kept * 3 / 2, out.loss_info.global_contrastive)


def test_oracle_coca():
    torch.manual_seed(0)
    logits, ids = torch.randn(3, 7, 13), torch.randint(1, 13, (3, 7))
    ids[0, 4:], ids[2, 2:] = 0, 0
    z_image, z_text = F.normalize(torch.randn(2, 3, 8), dim=-1)
    oracle = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=0)
    contrast, caption = oracle(z_image, z_text, logits[:, :-1], ids[:, 1:], 10.0)  # the oracle wants them shifted
    torch.testing.assert_close(2 * captioning(logits, ids, pad=0), caption)
    torch.testing.assert_close(image_text_contrastive(z_image, z_text, 10.0), contrast)


def test_captioning_as_a_loop():
    logits, ids = torch.randn(2, 4, 5, generator=seeded()), torch.tensor([[1, 2, 3, 0], [1, 4, 0, 0]])
    terms = [-logits[b, k].log_softmax(0)[ids[b, k + 1]] for b in range(2) for k in range(3) if ids[b, k + 1] != 0]
    torch.testing.assert_close(captioning(logits, ids, pad=0), torch.stack(terms).mean())
    with pytest.raises(ValueError, match="unshifted"):
        captioning(logits[:, :-1], ids, pad=0)


def test_nothing_hidden_is_zero_with_a_gradient():
    logits = torch.randn(2, 4, 5, requires_grad=True)
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    ids = torch.ones(2, 4, dtype=torch.long)
    terms = [
        masked_language(logits, torch.full((2, 4), -100)),
        masked_image_tokens(logits, ids, nothing),
        *masked_cross_modal(logits, ids, ~nothing, logits, ids, torch.zeros(2)),
        captioning(logits, ids * 0, pad=0),
        masked_image_pixels(logits[..., :3], torch.randn(2, 3, 2, 2), nothing, 1),
    ]
    for term in terms:
        assert term.item() == 0
        assert torch.equal(torch.autograd.grad(term, logits, retain_graph=True)[0], torch.zeros_like(logits))
