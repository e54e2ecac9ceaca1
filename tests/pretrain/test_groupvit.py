import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from test_clip import built
from transformers import GroupViTVisionConfig
from transformers.models.groupvit.modeling_groupvit import GroupViTVisionModel

import emblema
from emblema.core.errors import EmblemaError, NoSuchDoor
from emblema.core.method import Optim
from emblema.engine.train import run_pretraining
from emblema.pretrain.groupvit import GroupViT, multi_label, prompt
from emblema.testing import tiny_batch
from emblema.testing.squares import squares


def method(**fields):
    return GroupViT(**{"arch": "tiny", "groups": (6, 3), "hidden": 32} | fields)


def test_the_tower_is_that_of_transformers():
    ours = built(method())["vlm"].image
    theirs = GroupViTVisionModel(
        GroupViTVisionConfig(
            hidden_size=64,
            intermediate_size=256,
            depths=[1, 1, 1],
            num_group_tokens=[6, 3, 0],
            num_output_groups=[6, 3, 0],
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            assign_mlp_ratio=[0.5, 4],
        )
    ).eval()
    net = theirs.vision_model if hasattr(theirs, "vision_model") else theirs
    with torch.no_grad():
        net.embeddings.patch_embeddings.projection.weight.copy_(ours.stem.weight)
        net.embeddings.patch_embeddings.projection.bias.zero_()
        net.embeddings.position_embeddings.copy_(ours.positions[None])
    same(ours.norm_patches, net.embeddings.layernorm)
    same(ours.norm, net.layernorm)
    for i, stage in enumerate(net.encoder.stages):
        block, layer = ours.blocks[i], stage.layers[0]
        same(block.norm1, layer.layer_norm1)
        same(block.norm2, layer.layer_norm2)
        mlp(block.mlp, layer.mlp)
        attention(block.attention.qkv, block.attention.out, layer.self_attn)
        if i == 2:
            continue
        with torch.no_grad():
            stage.group_token.copy_(ours.group_tokens[i][None])
        if i == 1:
            same(ours.from_before[1][0], stage.group_projector[0])
            mlp(ours.from_before[1][1].mlp, stage.group_projector[1])
        g, t = ours.grouping[i], stage.downsample
        for a, b in (
            (g.norm_groups, t.norm_tokens),
            (g.norm_segments, t.norm_x),
            (g.norm_mixed, t.norm_post_tokens),
            (g.norm_cross, t.pre_assign_attn.norm2),
            (g.norm_asked, t.pre_assign_attn.norm_post),
            (g.norm_new, t.norm_new_x),
            (g.q, t.assign.q_proj),
            (g.k, t.assign.k_proj),
            (g.v, t.assign.v_proj),
            (g.out, t.assign.proj),
        ):
            same(a, b)
        mlp(g.mixer.mlp, t.mlp_inter)
        mlp(g.mlp_cross, t.pre_assign_attn.mlp)
        mlp(g.mlp, t.mlp_channels)
        cross = t.pre_assign_attn.attn
        with torch.no_grad():
            cross.q_proj.load_state_dict(g.cross.q.state_dict())
            for part, w, b in zip((cross.k_proj, cross.v_proj), g.cross.kv.weight.chunk(2), g.cross.kv.bias.chunk(2)):
                part.weight.copy_(w)
                part.bias.copy_(b)
        same(g.cross.out, cross.out_proj)
    pixels = torch.randn(3, 3, 32, 32)
    found = ours.transform(ours.embed(pixels))
    expected = theirs(pixels, output_attentions=True)
    torch.testing.assert_close(ours.pool(found), expected.pooler_output, atol=2e-5, rtol=0)
    one, two = expected.attentions  # each [B, groups, segments]
    torch.testing.assert_close(found.shares, (two @ one).transpose(1, 2), atol=1e-5, rtol=0)


def same(ours, theirs):
    theirs.load_state_dict(ours.state_dict())


def mlp(ours, theirs):
    same(ours[0], theirs.fc1)
    same(ours[2], theirs.fc2)


def attention(qkv, out, theirs):
    with torch.no_grad():
        parts = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
        for part, w, b in zip(parts, qkv.weight.chunk(3), qkv.bias.chunk(3)):
            part.weight.copy_(w)
            part.bias.copy_(b)
    same(out, theirs.out_proj)


def test_the_terms():
    system, batch = method(), tiny_batch(6)
    module = built(system)
    z = {name: encode(batch) for name, encode in system.encoders(module).items()}
    found = system.losses(module, batch)
    expected = ClipLoss()(z["image"], z["text"], module["vlm"].scale)
    torch.testing.assert_close(found["image_text"], expected, atol=1e-6, rtol=0)
    prompts, s = [z[f"prompt_{k}"] for k in range(3)], module["prompt_scale"]()
    logits = s * z["image"] @ torch.cat(prompts).T
    soft = torch.eye(6).repeat(1, 3) / 3
    back = sum(F.cross_entropy(s * p @ z["image"].T, torch.arange(6)) for p in prompts) / 3
    torch.testing.assert_close(found["prompts"], (F.cross_entropy(logits, soft) + back) / 2, atol=1e-5, rtol=0)
    alone = system.losses(module, tiny_batch(1))
    assert all(v.isfinite() for v in alone.values())
    torch.testing.assert_close(multi_label(z["image"], prompts[:1], s), ClipLoss()(z["image"], prompts[0], s))


def test_nouns_are_drawn_from_the_caption():
    said = {prompt("a red car above the house", k, [0.1, 0.0]) for k in range(3)}
    assert said == {"a photo of a car.", "a photo of a house."}
    assert prompt("on the left", 0, [0.5, 0.5]) == "on the left"


def test_each_place_has_the_feature_of_its_group():
    vlm = built(method())["vlm"]
    maps = vlm.encode_patches(tiny_batch(3).images)
    assert maps.shape == (3, 4, 4, 32)
    tokens = vlm.image.transform(vlm.image.embed(tiny_batch(3).images))
    torch.testing.assert_close(tokens.shares.sum(2), torch.ones(3, 16))
    assert all(len(m.flatten(0, 1).round(decimals=5).unique(dim=0)) <= 3 for m in maps)
    assert vlm.encode_patches(torch.randint(0, 255, (1, 3, 48, 64), dtype=torch.uint8)).shape == (1, 6, 8, 32)


def test_it_is_saved_and_loaded_and_its_batch_is_not_cut(tmp_path):
    data, system = squares(each=4), method(optim=Optim(batch_size=8, precision="fp32"))
    run_pretraining(system, data.split("train"), tmp_path / "run", steps=2, progress=False, quiet=True)
    model = emblema.load(tmp_path / "run" / "model", precision="fp32", cache=False)
    assert model.classify([data[0].image], ["red", "blue"]).shape == (1, 2)
    cut = method(optim=Optim(batch_size=8, precision="fp32", chunk=4))
    with pytest.raises(EmblemaError, match="normalises over the batch"):
        run_pretraining(cut, data.split("train"), steps=1, progress=False, quiet=True)
    with pytest.raises(NoSuchDoor, match="ViT"):
        GroupViT(arch="rn50").config()
