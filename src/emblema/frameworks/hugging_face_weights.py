"""Weights in the files of Hugging Face: folders of CLIP, SigLIP and SigLIP 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emblema.core.errors import BadCheckpoint
from emblema.core.preprocess import Preprocess
from emblema.encoders.sentence_pieces import read_sentence_pieces
from emblema.encoders.text import TextConfig
from emblema.encoders.tokenizers import TokenPolicy, TrainedTokenizer, clip_core, read_core
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.checkpoint import Loaded, attach_tokenizer, build, read_json
from emblema.frameworks.foreign import (
    TEMPLATES,
    Source,
    end_tokens,
    numbers,
    pad_id_of,
    read_weights,
    require,
    square,
    take_scale,
)
from emblema.frameworks.two_tower import TwoTower
from emblema.frameworks.vlm import frozen

HF_CONFIG, HF_WEIGHTS = "config.json", "model.safetensors"


def load_hugging_face(folder: str | Path, *, strict: bool = True) -> Loaded:
    """A folder of Hugging Face's CLIP, SigLIP or SigLIP 2."""
    folder = Path(folder)
    described = read_json(folder / HF_CONFIG)
    kind = described.get("model_type")
    if kind not in HF_DEFAULTS:
        raise BadCheckpoint(f"{HF_CONFIG}: model_type {kind!r} is not read; known: {', '.join(HF_DEFAULTS)}")
    text = _hf_part(described, "text_config", kind)
    vision = _hf_part(described, "vision_config", kind)
    if kind == "siglip2":  # any aspect ratio up to a number of patches: read at its square grid
        side = round(vision["num_patches"] ** 0.5)
        require("vision_config.num_patches", vision["num_patches"], side * side)
        vision["image_size"] = side * vision["patch_size"]
    preprocess, mean, std = _hf_preprocess(folder, square(vision["image_size"], "vision_config.image_size"))
    config = (_clip_shape if kind == "clip" else _siglip_shape)(described, text, vision)
    assert isinstance(config.image, ViTConfig)
    config = replace(config, image=replace(config.image, mean=mean, std=std))
    source = Source(read_weights(folder, HF_WEIGHTS))
    vlm = build(config)
    (_clip_tensors if kind == "clip" else _siglip_tensors)(source, config, kind)
    take_scale(source, vlm, str(folder))
    report = source.fill(vlm, str(folder), strict, ("position_ids",))
    attach_tokenizer(vlm, _hf_tokenizer(folder, kind, text))
    return Loaded(frozen(vlm), config, preprocess, list(TEMPLATES), report)


HF_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
# what the library assumes where config.json is silent: it writes only what differs
_CLIP_BLOCK = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_CLIP_TEXT = {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
_CLIP_TEXT |= {"num_attention_heads": 8, "max_position_embeddings": 77, "eos_token_id": 49407, "pad_token_id": 1}
_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_VISION |= {"num_channels": 3, "image_size": 224}
_SIGLIP_BLOCK = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_SIGLIP_TEXT = {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_SIGLIP_TEXT |= {"num_attention_heads": 12, "max_position_embeddings": 64, "pad_token_id": 1, "projection_size": None}
_SIGLIP_VISION = {**_VISION, "patch_size": 16, "vision_use_head": True}
HF_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "text_config": {**_CLIP_TEXT, **_CLIP_BLOCK},
        "vision_config": {**_VISION, "patch_size": 32, **_CLIP_BLOCK},
    },
    "siglip": {
        "text_config": {**_SIGLIP_TEXT, **_SIGLIP_BLOCK},
        "vision_config": {**_SIGLIP_VISION, **_SIGLIP_BLOCK},
    },
    "siglip2": {
        "text_config": {**_SIGLIP_TEXT, **_SIGLIP_BLOCK},
        "vision_config": {**_SIGLIP_VISION, **_SIGLIP_BLOCK, "num_patches": 256},
    },
}


def _hf_part(described: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    part = {**HF_DEFAULTS[kind][name], **(described.get(name) or {})}
    old = described.get(f"{name}_dict")  # files of 2022 have both, and this one wins
    if old:
        part |= {**HF_DEFAULTS[kind][name], **old}
    if part["hidden_act"] not in HF_ACTIVATIONS:
        known = ", ".join(HF_ACTIVATIONS)
        raise BadCheckpoint(f"{HF_CONFIG}: {name}.hidden_act {part['hidden_act']!r} is not read; known: {known}")
    if name == "vision_config":
        require(f"{name}.num_channels", part["num_channels"], 3)
    return part


def _hf_block(part: dict[str, Any]) -> dict[str, Any]:
    return {
        "width": part["hidden_size"],
        "depth": part["num_hidden_layers"],
        "heads": part["num_attention_heads"],
        "mlp_ratio": part["intermediate_size"] / part["hidden_size"],
        "activation": HF_ACTIVATIONS[part["hidden_act"]],
        "eps": part["layer_norm_eps"],
    }


def _clip_shape(described: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> TwoTower:
    return TwoTower(
        image=ViTConfig(
            image_size=square(vision["image_size"], "vision_config.image_size"),
            patch_size=square(vision["patch_size"], "vision_config.patch_size"),
            **_hf_block(vision),
        ),
        text=TextConfig(
            vocab_size=text["vocab_size"], context_length=text["max_position_embeddings"], **_hf_block(text)
        ),
        dim=described.get("projection_dim", 512),
    )


def _siglip_shape(described: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> TwoTower:
    require("vision_config.vision_use_head", vision["vision_use_head"], True)
    dim = text["projection_size"] or text["hidden_size"]
    if dim != vision["hidden_size"]:
        raise BadCheckpoint(
            f"{HF_CONFIG}: text_config.projection_size {dim} is not vision_config.hidden_size {vision['hidden_size']}"
        )
    return TwoTower(
        image=ViTConfig(
            image_size=square(vision["image_size"], "vision_config.image_size"),
            patch_size=square(vision["patch_size"], "vision_config.patch_size"),
            norm_before=False,
            class_token=False,
            pool="map",
            patch_bias=True,
            project=False,
            **_hf_block(vision),
        ),
        text=TextConfig(
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            causal=False,
            pool="last",
            pad_to_context=True,
            projection_bias=True,
            **_hf_block(text),
        ),
        dim=dim,
        scale="siglip",
        logit_bias=0.0,
    )


def _clip_tensors(source: Source, config: TwoTower, kind: str) -> None:
    v, t = "vision_model.", "text_model."
    source.take("image.stem.weight", v + "embeddings.patch_embedding.weight")
    source.take("image.class_token", v + "embeddings.class_embedding", by=torch.flatten)
    source.take("image.positions", v + "embeddings.position_embedding.weight")
    source.pair("image.norm_before", v + "pre_layrnorm")
    _hf_blocks(source, "image.blocks", v + "encoder.layers", config.image)
    source.pair("image.norm", v + "post_layernorm")
    source.take("image.projection", "visual_projection.weight", by=lambda x: x.T)
    _hf_text_tensors(source, config, t)
    source.take("text.projection.weight", "text_projection.weight")


def _siglip_tensors(source: Source, config: TwoTower, kind: str) -> None:
    v, t = "vision_model.", "text_model."
    shape = config.image
    assert isinstance(shape, ViTConfig)

    def as_filter(x: Tensor) -> Tensor:
        """SigLIP 2 keeps a linear map of flattened patches, channels last."""
        return x.unflatten(1, (shape.patch_size, shape.patch_size, 3)).permute(0, 3, 1, 2) if x.dim() == 2 else x

    source.take("image.stem.weight", v + "embeddings.patch_embedding.weight", by=as_filter)
    source.take("image.stem.bias", v + "embeddings.patch_embedding.bias")
    source.take("image.positions", v + "embeddings.position_embedding.weight")
    _hf_blocks(source, "image.blocks", v + "encoder.layers", shape)
    source.pair("image.norm", v + "post_layernorm")
    head, block = v + "head.", "image.map.block."
    source.take("image.map.query", head + "probe", by=torch.flatten)
    source.take(block + "attention.qkv.weight", head + "attention.in_proj_weight")
    source.take(block + "attention.qkv.bias", head + "attention.in_proj_bias")
    source.pair(block + "attention.out", head + "attention.out_proj")
    source.pair(block + "norm2", head + "layernorm")
    source.pair(block + "mlp.0", head + "mlp.fc1")
    source.pair(block + "mlp.2", head + "mlp.fc2")
    _hf_text_tensors(source, config, t)
    source.pair("text.projection", t + "head")


def _hf_text_tensors(source: Source, config: TwoTower, t: str) -> None:
    source.take("text.words.weight", t + "embeddings.token_embedding.weight")
    source.take("text.positions", t + "embeddings.position_embedding.weight")
    _hf_blocks(source, "text.blocks", t + "encoder.layers", config.text)
    source.pair("text.norm", t + "final_layer_norm")


def _hf_blocks(source: Source, ours: str, theirs: str, shape: Any) -> None:
    for i in range(shape.depth):
        a, b = f"{ours}.{i}.", f"{theirs}.{i}."
        source.pair(a + "norm1", b + "layer_norm1")
        for part in ("weight", "bias"):
            source.take(f"{a}attention.qkv.{part}", *(f"{b}self_attn.{p}_proj.{part}" for p in "qkv"))
        source.pair(a + "attention.out", b + "self_attn.out_proj")
        source.pair(a + "norm2", b + "layer_norm2")
        source.pair(a + "mlp.0", b + "mlp.fc1")
        source.pair(a + "mlp.2", b + "mlp.fc2")


def _hf_preprocess(folder: Path, image_size: int) -> tuple[Preprocess, tuple[float, ...], tuple[float, ...]]:
    """Resizing, and the mean and std that belong to the image tower."""
    path, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
    data = read_json(path) if path.exists() or not whole.exists() else read_json(whole).get("image_processor", {})
    for step in ("do_resize", "do_rescale", "do_normalize"):
        require(step, data.get(step, True), True)
    scale = data.get("rescale_factor", 1 / 255)
    if abs(scale * 255 - 1) > 1e-3:
        raise BadCheckpoint(f"preprocessor_config.json: rescale_factor {scale} is not 1/255")
    for key in ("image_mean", "image_std"):
        if key not in data:
            raise BadCheckpoint(f"preprocessor_config.json has no {key}")
    resample = data.get("resample", 3)
    if resample not in (2, 3):
        raise BadCheckpoint(f"preprocessor_config.json: resample {resample} is not read; 2 is bilinear, 3 bicubic")
    size = data.get("size", image_size)
    size = {"shortest_edge": size} if isinstance(size, int) else size
    mode = "squash"
    if "max_num_patches" in data:  # SigLIP 2 keeps the aspect ratio; a square of its grid is what is read here
        side = image_size
    elif "shortest_edge" in size:
        mode, side = "crop", size["shortest_edge"]
        require("do_center_crop", data.get("do_center_crop", True), True)
        crop = data.get("crop_size", side)
        require("crop_size", square(crop, "crop_size"), side)
    else:
        side = square(size, "size")
        if data.get("do_center_crop"):
            raise BadCheckpoint("preprocessor_config.json: do_center_crop True after squashing is not read")
    require("size", side, image_size)
    preprocess = Preprocess(size=side, mode=mode, interpolation="bilinear" if resample == 2 else "bicubic")
    return preprocess, tuple(numbers(data["image_mean"])), tuple(numbers(data["image_std"]))


def _hf_tokenizer(folder: Path, kind: str, text: dict[str, Any]) -> TrainedTokenizer:
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    whole, pieces, pair = (folder / n for n in ("tokenizer.json", "spiece.model", "vocab.json"))
    if pair.exists() and not whole.exists():  # CLIP's older pair of files
        vocab = read_json(pair)
        lines = (folder / "merges.txt").read_text(encoding="utf-8").strip().split("\n")[1:]
        core = clip_core(vocab, [(a, b) for a, b in (line.split() for line in lines)])
        start, end = vocab.get("<|startoftext|>"), vocab.get("<|endoftext|>")
        clean = "clip"
    else:  # the original SigLIP has its pieces alone
        core = read_sentence_pieces(pieces) if pieces.exists() and not whole.exists() else read_core(whole)
        start, end = end_tokens(core)
        clean = "none"
    if end is None:
        raise BadCheckpoint("tokenizer.json adds no end token to a text, the text tower was trained with one")
    pad = pad_id_of(folder, core, text["pad_token_id"])
    name = str(settings.get("tokenizer_class", ""))
    if kind == "clip":
        eos = text["eos_token_id"]  # 2 in old files: they meant the largest id
        require("text_config.eos_token_id", eos if eos != 2 else text["vocab_size"] - 1, end)
        if start is None:
            raise BadCheckpoint("tokenizer.json adds no start token, CLIP was trained with one")
    elif name.startswith("Siglip") and not name.startswith("Siglip2"):
        clean = "canonical"
    lower = bool(settings.get("do_lower_case", False)) or name.startswith("Siglip2")
    return TrainedTokenizer(core, TokenPolicy(start_id=start, end_id=end, pad_id=pad, clean=clean, lower=lower))
