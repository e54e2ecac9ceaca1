import pytest
import torch
from open_clip.loss import ClipLoss
from test_clip import built
from transformers import ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder

from emblema.core.errors import BadCheckpoint, BadData, NoSuchDoor
from emblema.data import catalog
from emblema.data.captioned import names_in
from emblema.data.datasets import Records
from emblema.engine.train import preprocess_of
from emblema.frameworks import checkpoint
from emblema.objectives.generative import masked_image_pixels
from emblema.parts.mae import MaskedAutoencoder
from emblema.pretrain.clip import CLIP
from emblema.pretrain.kelip import KELIP, crop
from emblema.testing import tiny_batch


def test_the_loss_is_the_mean_of_open_clips_over_picture_and_crops():
    method = KELIP(arch="tiny")
    module, batch = built(method), tiny_batch(8)
    vlm = module["vlm"]
    views = [batch.images, *(crop(batch.images, 16, batch.noise(f"crop {k}", 2)) for k in range(2))]
    expected = sum(ClipLoss()(vlm.encode_image(v), vlm.encode_text(batch.texts), vlm.scale) for v in views) / 3
    torch.testing.assert_close(method.losses(module, batch)["image_text"], expected, atol=1e-6, rtol=0)


def test_without_crops_it_is_clip_bit_for_bit():
    kelip, clip = KELIP(arch="tiny", crops=0), CLIP(arch="tiny")
    batch = tiny_batch(8)
    assert torch.equal(*(m.losses(built(m), batch)["image_text"] for m in (kelip, clip)))


def test_a_crop_is_a_part_of_its_picture():
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).to(torch.uint8)
    corners = crop(images, 4, torch.tensor([[0.0, 0.0], [0.999, 0.999]]))
    assert torch.equal(corners[0], images[0, :, :4, :4]) and torch.equal(corners[1], images[1, :, 4:, 4:])


def test_each_picture_speaks_one_language():
    emblems = catalog.load("emblems").where(split="train", concept=tuple(names_in("ko"))).subset(range(400))
    words = {name: emblems.column(name) for name in ("key", "text", "concept")}  # pictures are not read
    records = Records(emblems.card, words)
    data, concepts = KELIP().prepare(records), records.column("concept")
    korean, english = names_in("ko"), names_in("en")
    said = [(data[i].text, concepts[i]) for i in range(400)]
    in_korean = [text == korean[c][0] for text, c in said]
    assert all(k or text == english[c][0] for k, (text, c) in zip(in_korean, said))
    assert 0.4 < sum(in_korean) / 400 < 0.6
    assert any("가" <= letter <= "힣" for text, _ in said for letter in text)
    with pytest.raises(BadData, match="no names in the language 'xx'"):
        KELIP(languages=("en", "xx")).prepare(records)


def test_the_first_stage_paints_what_was_hidden():
    method = KELIP(arch="tiny", stage="mae")
    module, batch = built(method), tiny_batch(4)
    decoder, image = module["decoder"], module["vlm"].image
    painted, hidden = decoder(image, batch.images, batch.noise("mae", 16), 0.75)
    assert painted.shape == (4, 16, 192) and (hidden.sum(1) == 12).all()
    expected = masked_image_pixels(painted, image.normalise(batch.images), hidden, 8)
    loss = method.losses(module, batch)["mae"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    learnt = [n for n, p in module.named_parameters() if p.requires_grad]
    assert learnt and all(dict(module.named_parameters())[n].grad is not None for n in learnt)
    assert not any(".text." in n or "logit" in n for n in learnt)


def test_the_decoder_is_that_of_transformers():
    method = KELIP(arch="tiny", stage="mae")
    vlm = built(method)["vlm"]
    torch.manual_seed(0)
    ours = MaskedAutoencoder(vlm.image, width=32, depth=2, heads=4).eval()
    config = ViTMAEConfig(
        hidden_size=64, image_size=32, patch_size=8, decoder_hidden_size=32, decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4, decoder_intermediate_size=128, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = ViTMAEDecoder(config, num_patches=16).eval()
    with torch.no_grad():
        copy_decoder(ours, theirs)
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(2))
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(3)).argsort(1)
    hidden = torch.ones(3, 16).scatter(1, order[:, :4], 0).bool()
    expected = theirs(x, order.argsort(1)).logits
    torch.testing.assert_close(ours.decode(x, order[:, :4], hidden), expected, atol=1e-5, rtol=0)


def copy_decoder(ours, theirs):
    for a, b in (
        (theirs.decoder_embed, ours.embed),
        (theirs.decoder_norm, ours.norm),
        (theirs.decoder_pred, ours.pixels),
    ):
        a.load_state_dict(b.state_dict())
    theirs.mask_token.copy_(ours.mask.view(1, 1, -1))
    theirs.decoder_pos_embed.copy_(ours.positions[None])
    places = {
        "attention.o_proj": "attention.out",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.2",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
    }
    for a, b in zip(theirs.decoder_layers, ours.blocks):
        new, old = dict(a.named_parameters()), dict(b.named_parameters())
        for kind in ("weight", "bias"):
            for letter, part in zip("qkv", old[f"attention.qkv.{kind}"].chunk(3)):
                new[f"attention.{letter}_proj.{kind}"].copy_(part)
            for theirs_name, name in places.items():
                new[f"{theirs_name}.{kind}"].copy_(old[f"{name}.{kind}"])


def test_the_second_stage_begins_with_the_first(tmp_path):
    first = KELIP(arch="tiny", stage="mae")
    vlm = built(first)["vlm"]
    vlm.text.tokenizer = None
    with torch.no_grad():
        vlm.image.positions.add_(1)
    checkpoint.save(tmp_path / "m", vlm, first.config(), preprocess_of(vlm), ["{}"])
    second = KELIP(arch="tiny", start=str(tmp_path / "m")).build()["vlm"]
    assert torch.equal(second.image.positions, vlm.image.positions)
    assert all(p.requires_grad for p in second.parameters())
    with pytest.raises(BadCheckpoint, match="another image tower"):
        KELIP(arch="small", start=str(tmp_path / "m")).build()


def test_a_tower_without_patches_cannot_paint():
    with pytest.raises(NoSuchDoor, match="ViT image tower"):
        KELIP(arch="demo", stage="mae").build()
