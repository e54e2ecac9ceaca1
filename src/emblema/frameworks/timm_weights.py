"""Image towers of timm inside open_clip's files: SigLIP's ViT with every door, all others as backbones.

A timm ViT that has the form of `ViTConfig` is read into ours, where prompts, masks and the value path have their
doors. ConvNeXt, FastViT, EVA and the rest stay timm's modules, with timm's own pooling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from emblema.core.errors import BadCheckpoint
from emblema.encoders.backbone import BackboneConfig
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.foreign import Source


def timm_shape(
    vision: dict[str, Any], dim: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> ViTConfig | BackboneConfig:
    """`vision_cfg` with a `timm_model_name` -> the shape of a tower.

    Raises BadCheckpoint where this timm has no such model, or where it pools in a way that is not read.
    """
    import timm

    name, pool, head = vision["timm_model_name"], vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
    if not timm.is_model(name):
        raise BadCheckpoint(f"vision_cfg.timm_model_name {name!r} is not a model of timm {timm.__version__}")
    if pool in ("abs_attn", "rot_attn"):
        raise BadCheckpoint(f"vision_cfg.timm_pool {pool!r} is not read; known: timm's own poolings")
    if head not in ("linear", "mlp", "none", "", None):
        raise BadCheckpoint(f"vision_cfg.timm_proj {head!r} is not read; known: linear, mlp, none")
    if head == "none":
        with torch.device("meta"):
            trunk = timm.create_model(name, num_classes=0, global_pool=pool or None)
        if (plain := _as_vit(trunk, dim, size, mean, std)) is not None:
            return plain
    return BackboneConfig(
        name=f"timm:{name}",
        image_size=size,
        pool=f"own:{pool}" if pool else "own",
        head=head or "own",
        head_bias=vision.get("timm_proj_bias", False),
        hidden=2 * dim if head == "mlp" else None,
        mean=mean,
        std=std,
    )


def _as_vit(trunk: Any, dim: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> ViTConfig | None:
    """SigLIP's ViT in our own shape; None for any other network."""
    if type(trunk).__name__ != "VisionTransformer" or type(trunk.attn_pool).__name__ != "AttentionPoolLatent":
        return None
    block: Any = trunk.blocks[0]
    pool: Any = trunk.attn_pool
    plain = (nn.Identity,)  # what ViTConfig has not must not be there
    extras = (trunk.norm_pre, trunk.fc_norm, block.ls1, block.attn.q_norm, pool.q_norm)
    if trunk.cls_token is not None or trunk.num_prefix_tokens or not all(isinstance(e, plain) for e in extras):
        return None
    kinds = [m.act.approximate for m in (block.mlp, pool.mlp) if isinstance(m.act, nn.GELU)]
    if len(kinds) != 2 or kinds[0] != kinds[1] or pool.latent_len != 1 or pool.pos_embed is not None:
        return None
    width, patch = trunk.embed_dim, trunk.patch_embed.patch_size[0]
    if width != dim or trunk.patch_embed.img_size != (size, size):
        return None
    return ViTConfig(
        image_size=size,
        patch_size=patch,
        width=width,
        depth=len(trunk.blocks),
        heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features / width,
        activation="gelu" if kinds[0] == "none" else "gelu_tanh",
        eps=block.norm1.eps,
        norm_before=False,
        class_token=False,
        pool="map",
        patch_bias=True,
        project=False,
        mean=mean,
        std=std,
    )


def timm_tensors(source: Source, shape: ViTConfig | BackboneConfig) -> None:
    """Take the tensors of the image tower."""
    v = "visual.trunk."
    if isinstance(shape, BackboneConfig):
        for name in [n for n in source.tensors if n.startswith(v)]:
            source.take("image." + name.removeprefix("visual."), name)
        linears = {"linear": {"": "proj"}, "mlp": {".0": "mlp.fc1", ".2": "mlp.fc2"}}.get(shape.head, {})
        for ours, theirs in linears.items():
            source.take(f"image.head{ours}.weight", f"visual.head.{theirs}.weight")
            if shape.head_bias or ours == ".0":
                source.take(f"image.head{ours}.bias", f"visual.head.{theirs}.bias")
        return
    source.pair("image.stem", v + "patch_embed.proj")
    source.take("image.positions", v + "pos_embed", by=lambda x: x[0])
    for i in range(shape.depth):
        a, b = f"image.blocks.{i}.", f"{v}blocks.{i}."
        source.pair(a + "norm1", b + "norm1")
        source.pair(a + "attention.qkv", b + "attn.qkv")
        source.pair(a + "attention.out", b + "attn.proj")
        source.pair(a + "norm2", b + "norm2")
        source.pair(a + "mlp.0", b + "mlp.fc1")
        source.pair(a + "mlp.2", b + "mlp.fc2")
    source.pair("image.norm", v + "norm")
    head, block = v + "attn_pool.", "image.map.block."
    source.take("image.map.query", head + "latent", by=torch.flatten)
    for part in ("weight", "bias"):
        source.take(f"{block}attention.qkv.{part}", f"{head}q.{part}", f"{head}kv.{part}")
    source.pair(block + "attention.out", head + "proj")
    source.pair(block + "norm2", head + "norm")
    source.pair(block + "mlp.0", head + "mlp.fc1")
    source.pair(block + "mlp.2", head + "mlp.fc2")
