"""Weights of other libraries, read in their own file formats: JSON and safetensors, none of their code.

A setting that is not understood is an error that names it: a model that loads is the model that was saved.
Where a file leaves a setting out, the default is the one that its library documents for the format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emblema.core.errors import BadCheckpoint
from emblema.core.preprocess import Preprocess
from emblema.encoders.resnet import ResNetConfig
from emblema.encoders.text import TextConfig
from emblema.encoders.tokenizers import ClipTokenizer, TokenPolicy, TrainedTokenizer, clip_core, read_core
from emblema.encoders.vit import CLIP_MEAN, CLIP_STD, ViTConfig
from emblema.frameworks.checkpoint import Loaded, attach_tokenizer, build, fill, read_json, read_tensors
from emblema.frameworks.two_tower import TwoTower
from emblema.frameworks.vlm import VLM, frozen

OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
HF_CONFIG, HF_WEIGHTS = "config.json", "model.safetensors"
TEMPLATES = ["a photo of a {}."]  # neither format stores any


class Source:
    """Foreign tensors that are taken one by one; what was not there and what is left over is known."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = dict(tensors)
        self.ours: dict[str, Tensor] = {}
        self.missing: dict[str, str] = {}  # our name -> the foreign one

    def take(self, ours: str, *names: str, by: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Our tensor from one foreign tensor, or from several joined along the first axis."""
        found = [self.tensors.get(n) for n in names]
        absent = [n for n, t in zip(names, found) if t is None]
        if absent:
            self.missing[ours] = " + ".join(absent)
            return
        for n in names:
            self.tensors.pop(n)
        joined = torch.cat([t for t in found if t is not None]) if len(found) > 1 else found[0]
        assert joined is not None
        self.ours[ours] = by(joined.float() if joined.is_floating_point() else joined)

    def pair(self, ours: str, name: str) -> None:
        """A weight and its bias."""
        self.take(f"{ours}.weight", f"{name}.weight")
        self.take(f"{ours}.bias", f"{name}.bias")

    def fill(self, vlm: VLM, where: str, strict: bool, ignore: tuple[str, ...]):
        left = [n for n in self.tensors if not n.endswith(ignore)]
        return fill(vlm, self.ours, where, strict=strict, missing=self.missing, unexpected=left)


def load_open_clip(folder: str | Path, *, strict: bool = True) -> Loaded:
    """A folder with `open_clip_config.json` and `open_clip_model.safetensors`."""
    folder = Path(folder)
    described = read_json(folder / OPEN_CLIP_CONFIG)
    model = described.get("model_cfg")
    if not isinstance(model, dict):
        raise BadCheckpoint(f"{folder / OPEN_CLIP_CONFIG} has no model_cfg")
    tensors = _weights(folder, OPEN_CLIP_WEIGHTS, HF_WEIGHTS)
    tokenizer = _open_clip_tokenizer(model, folder)
    return _open_clip(model, described.get("preprocess_cfg") or {}, tensors, tokenizer, str(folder), strict)


def load_open_clip_tag(tag: str, *, strict: bool = True) -> Loaded:
    """`ARCHITECTURE/TAG` of open_clip's own list, fetched (or found in its cache) by open_clip."""
    try:
        import open_clip
    except ImportError as error:
        raise BadCheckpoint(
            f"open_clip:{tag} is fetched by open_clip, which is not installed: pip install 'emblema[zoo]'"
        ) from error
    arch, _, weights = tag.partition("/")
    if not weights:
        known = open_clip.list_pretrained_tags_by_model(arch)
        raise BadCheckpoint(
            f"open_clip:{tag} names no weights; write open_clip:{arch}/TAG, TAG one of {', '.join(known) or 'none'}"
        )
    model = open_clip.get_model_config(arch)
    if model is None:
        raise BadCheckpoint(f"open_clip has no architecture {arch!r}")
    network = open_clip.create_model(arch, pretrained=weights, precision="fp32")
    # the tag, not the architecture, decides the activation: look at what was built
    quick = any(type(m).__name__ == "QuickGELU" for m in network.modules())
    preprocess = dict(getattr(network.visual, "preprocess_cfg", {}))
    tokenizer = _open_clip_tokenizer(model, None)
    where = f"open_clip:{tag}"
    return _open_clip({**model, "quick_gelu": quick}, preprocess, network.state_dict(), tokenizer, where, strict)


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
        _require("vision_config.num_patches", vision["num_patches"], side * side)
        vision["image_size"] = side * vision["patch_size"]
    preprocess, mean, std = _hf_preprocess(folder, _square(vision["image_size"], "vision_config.image_size"))
    config = (_clip_shape if kind == "clip" else _siglip_shape)(described, text, vision)
    assert isinstance(config.image, ViTConfig)
    config = replace(config, image=replace(config.image, mean=mean, std=std))
    source = Source(_weights(folder, HF_WEIGHTS))
    vlm = build(config)
    (_clip_tensors if kind == "clip" else _siglip_tensors)(source, config, kind)
    _take_scale(source, vlm, str(folder))
    report = source.fill(vlm, str(folder), strict, ("position_ids",))
    attach_tokenizer(vlm, _hf_tokenizer(folder, kind, text))
    return Loaded(frozen(vlm), config, preprocess, list(TEMPLATES), report)


# -- open_clip -----------------------------------------------------------------------------------------------

# settings with one supported value; keys that only matter while training, or only beside these, are ignored
_PLAIN: dict[str, Any] = {
    "ls_init_value": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
_VISION_FIXED = {**_PLAIN, "timm_model_name": None, "attentional_pool": False}
_VISION_READ = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "no_ln_pre", "pool_type"}
_VISION_READ |= {"act_kwargs", "norm_kwargs", "final_ln_after_pool", "pos_embed_type"}
_VISION_IDLE = {"patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "timm_pool", "timm_proj"}
_VISION_IDLE |= {"timm_model_pretrained", "timm_proj_bias", "timm_drop", "timm_drop_path"}
_TEXT_FIXED = {**_PLAIN, "hf_model_name": None, "embed_cls": False}
_TEXT_READ = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pad_id", "eos_id", "pool_type"}
_TEXT_READ |= {"no_causal_mask", "proj_type", "proj_bias", "act_kwargs", "norm_kwargs", "hf_tokenizer_name"}
_TEXT_READ |= {"tokenizer_kwargs", "tokenizer_mode", "final_ln_after_pool"}
_TEXT_IDLE = {"output_tokens", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"}
_MODEL_READ = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_bias"}
_MODEL_IDLE = {"init_logit_scale", "nonscalar_logit_scale", "output_dict", "cast_dtype"}


def _open_clip(
    model: dict[str, Any],
    preprocess: dict[str, Any],
    tensors: Mapping[str, Tensor],
    tokenizer: TrainedTokenizer,
    where: str,
    strict: bool,
) -> Loaded:
    if "multimodal_cfg" in model:
        raise BadCheckpoint(f"{where}: model_cfg.multimodal_cfg describes CoCa, which is not read")
    _known_keys("model_cfg", model, {}, _MODEL_READ | _MODEL_IDLE)
    vision, text = dict(model["vision_cfg"]), dict(model["text_cfg"])
    _known_keys("vision_cfg", vision, _VISION_FIXED, _VISION_READ | _VISION_IDLE)
    _known_keys("text_cfg", text, _TEXT_FIXED, _TEXT_READ | _TEXT_IDLE)
    quick = bool(model.get("quick_gelu", False))
    size = _square(preprocess.get("size") or vision.get("image_size", 224), "preprocess_cfg.size")
    _require("preprocess_cfg.size", size, _square(vision.get("image_size", 224), "vision_cfg.image_size"))
    mean = tuple(_numbers(preprocess.get("mean", CLIP_MEAN)))
    std = tuple(_numbers(preprocess.get("std", CLIP_STD)))
    config = TwoTower(
        image=_open_clip_image(vision, quick, size, mean, std),
        text=_open_clip_text(text, quick, tokenizer),
        dim=model["embed_dim"],
        logit_bias=model.get("init_logit_bias"),
        scale="clip" if model.get("init_logit_bias") is None else "siglip",
    )
    vlm = build(config)
    source = Source({n.removeprefix("module."): t for n, t in tensors.items()})
    if isinstance(config.image, ResNetConfig):
        _modified_resnet_tensors(source, config.image)
    else:
        assert isinstance(config.image, ViTConfig)
        _open_clip_vit_tensors(source, config.image)
    assert isinstance(config.text, TextConfig)
    _open_clip_text_tensors(source, config.text)
    _take_scale(source, vlm, where)
    report = source.fill(vlm, where, strict, ("attn_mask", *_SIZES))
    attach_tokenizer(vlm, tokenizer)
    return Loaded(frozen(vlm), config, _open_clip_preprocess(preprocess, size), list(TEMPLATES), report)


_SIZES = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI's archives keep among the weights


def _open_clip_image(
    vision: dict[str, Any], quick: bool, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> ViTConfig | ResNetConfig:
    layers, width = vision.get("layers", 12), vision.get("width", 768)
    if isinstance(layers, list | tuple):
        heads = width * 32 // vision.get("head_width", 64)
        return ResNetConfig(layers=tuple(layers), width=width, heads=heads, image_size=size, mean=mean, std=std)
    pool = {"tok": "cls", "avg": "mean"}.get(vision.get("pool_type", "tok"))
    if pool is None:
        raise BadCheckpoint(f"vision_cfg.pool_type {vision['pool_type']!r} is not read; known: tok, avg")
    if pool == "mean":
        _require("vision_cfg.final_ln_after_pool", vision.get("final_ln_after_pool", False), False)
    return ViTConfig(
        image_size=size,
        patch_size=_square(vision.get("patch_size", 16), "vision_cfg.patch_size"),
        width=width,
        depth=layers,
        heads=width // vision.get("head_width", 64),
        mlp_ratio=vision.get("mlp_ratio", 4.0),
        activation=_open_clip_activation(vision, quick, "vision_cfg"),
        eps=_open_clip_eps(vision, "vision_cfg"),
        norm_before=not vision.get("no_ln_pre", False),
        pool=pool,
        mean=mean,
        std=std,
    )


def _open_clip_text(text: dict[str, Any], quick: bool, tokenizer: TrainedTokenizer) -> TextConfig:
    causal, kind = not text.get("no_causal_mask", False), text.get("pool_type", "argmax")
    vocab, end = text.get("vocab_size", 49408), tokenizer.policy.end_id
    if kind == "argmax" and end != vocab - 1:
        raise BadCheckpoint(f"text_cfg.pool_type argmax needs the end token {end} to be the last of {vocab} ids")
    if kind == "eos":
        _require("text_cfg.eos_id", text.get("eos_id", 2), end)
    if kind not in ("argmax", "eos", "last"):
        raise BadCheckpoint(f"text_cfg.pool_type {kind!r} is not read; known: argmax, eos, last")
    if kind == "last" or not causal:  # padding is read: it must be the one of training
        _require("text_cfg.pad_id", text.get("pad_id", 0), tokenizer.pad_id)
    if text.get("proj_type", "linear") not in ("linear", "none"):
        raise BadCheckpoint(f"text_cfg.proj_type {text['proj_type']!r} is not read; known: linear, none")
    return TextConfig(
        vocab_size=vocab,
        context_length=text.get("context_length", 77),
        width=text.get("width", 512),
        depth=text.get("layers", 12),
        heads=text.get("heads", 8),
        mlp_ratio=text.get("mlp_ratio", 4.0),
        activation=_open_clip_activation(text, quick, "text_cfg"),
        eps=_open_clip_eps(text, "text_cfg"),
        causal=causal,
        pool="last" if kind == "last" else "eot",
        pad_to_context=kind == "last" or not causal,
        project=text.get("proj_type", "linear") == "linear",
        projection_bias=text.get("proj_bias", False),
    )


def _open_clip_activation(part: dict[str, Any], quick: bool, where: str) -> str:
    kwargs = part.get("act_kwargs") or {}
    if not kwargs:
        return "quick_gelu" if quick else "gelu"
    if quick or kwargs != {"approximate": "tanh"}:
        raise BadCheckpoint(f"{where}.act_kwargs {kwargs} with quick_gelu={quick} is not read")
    return "gelu_tanh"


def _open_clip_eps(part: dict[str, Any], where: str) -> float:
    kwargs = part.get("norm_kwargs") or {}
    if set(kwargs) - {"eps"}:
        raise BadCheckpoint(f"{where}.norm_kwargs {kwargs} is not read; known: eps")
    return kwargs.get("eps", 1e-5)


def _open_clip_preprocess(data: dict[str, Any], size: int) -> Preprocess:
    mode = {"shortest": "crop", "squash": "squash", "longest": "pad"}.get(data.get("resize_mode") or "shortest")
    if mode is None:
        raise BadCheckpoint(f"preprocess_cfg.resize_mode {data['resize_mode']!r} is not read")
    interpolation = data.get("interpolation") or "bicubic"
    if interpolation not in ("bicubic", "bilinear"):
        raise BadCheckpoint(f"preprocess_cfg.interpolation {interpolation!r} is not read")
    _require("preprocess_cfg.mode", data.get("mode", "RGB"), "RGB")
    fill_color = data.get("fill_color", 0)
    background = (
        (fill_color, fill_color, fill_color) if mode == "pad" and isinstance(fill_color, int) else (255, 255, 255)
    )
    return Preprocess(size=size, mode=mode, interpolation=interpolation, background=background)


def _open_clip_tokenizer(model: dict[str, Any], folder: Path | None) -> TrainedTokenizer:
    text = model.get("text_cfg") or {}
    name, kwargs = text.get("hf_tokenizer_name"), dict(text.get("tokenizer_kwargs") or {})
    if text.get("tokenizer_mode"):
        raise BadCheckpoint(f"text_cfg.tokenizer_mode {text['tokenizer_mode']!r} is not read")
    if not name:
        if kwargs:
            raise BadCheckpoint(f"text_cfg.tokenizer_kwargs {kwargs} is not read")
        _require("text_cfg.vocab_size", text.get("vocab_size", 49408), 49408)
        return ClipTokenizer()
    if folder is None:
        raise BadCheckpoint(
            f"text_cfg.hf_tokenizer_name {name!r}: save the model into a folder with its tokenizer.json"
        )
    clean = {"whitespace": "spaces", "canonicalize": "canonical_words", "lower": "spaces"}
    cleaning = kwargs.pop("clean", "whitespace")
    if cleaning not in clean or set(kwargs) - {"strip_sep_token"} or kwargs.get("strip_sep_token"):
        raise BadCheckpoint(f"text_cfg.tokenizer_kwargs clean={cleaning!r}, {kwargs} is not read")
    core = read_core(folder / "tokenizer.json")
    start, end = _ends(core)
    pad = _pad_id(folder, core, text.get("pad_id", 0))
    policy = TokenPolicy(start_id=start, end_id=end, pad_id=pad, clean=clean[cleaning], lower=cleaning == "lower")
    return TrainedTokenizer(core, policy)


def _open_clip_vit_tensors(source: Source, shape: ViTConfig) -> None:
    v = "visual."
    source.take("image.stem.weight", v + "conv1.weight")
    source.take("image.class_token", v + "class_embedding")
    source.take("image.positions", v + "positional_embedding")
    if shape.norm_before:
        source.pair("image.norm_before", v + "ln_pre")
    _open_clip_blocks(source, "image.blocks", v + "transformer.resblocks", shape.depth)
    source.pair("image.norm", v + "ln_post")
    source.take("image.projection", v + "proj")


def _open_clip_text_tensors(source: Source, shape: TextConfig) -> None:
    t = "text." if any(n.startswith("text.") for n in source.tensors) else ""
    source.take("text.words.weight", t + "token_embedding.weight")
    source.take("text.positions", t + "positional_embedding")
    _open_clip_blocks(source, "text.blocks", t + "transformer.resblocks", shape.depth)
    source.pair("text.norm", t + "ln_final")
    if shape.projection_bias:
        source.pair("text.projection", t + "text_projection")
    elif shape.project:
        source.take("text.projection.weight", t + "text_projection", by=lambda x: x.T)


def _open_clip_blocks(source: Source, ours: str, theirs: str, depth: int) -> None:
    for i in range(depth):
        a, b = f"{ours}.{i}.", f"{theirs}.{i}."
        source.pair(a + "norm1", b + "ln_1")
        source.take(a + "attention.qkv.weight", b + "attn.in_proj_weight")
        source.take(a + "attention.qkv.bias", b + "attn.in_proj_bias")
        source.pair(a + "attention.out", b + "attn.out_proj")
        source.pair(a + "norm2", b + "ln_2")
        source.pair(a + "mlp.0", b + "mlp.c_fc")
        source.pair(a + "mlp.2", b + "mlp.c_proj")


def _modified_resnet_tensors(source: Source, shape: ResNetConfig) -> None:
    def conv(ours: str, conv_name: str, norm_name: str) -> None:
        source.take(f"image.{ours}.0.weight", f"visual.{conv_name}.weight")
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            source.take(f"image.{ours}.1.{part}", f"visual.{norm_name}.{part}")

    for i in range(3):
        conv(f"stem.{i}", f"conv{i + 1}", f"bn{i + 1}")
    for s, count in enumerate(shape.layers):
        for j in range(count):
            a, b = f"stages.{s}.{j}", f"layer{s + 1}.{j}"
            for i, name in enumerate(("reduce", "filter", "expand"), start=1):
                conv(f"{a}.{name}", f"{b}.conv{i}", f"{b}.bn{i}")
            if j == 0:
                conv(f"{a}.shortcut", f"{b}.downsample.0", f"{b}.downsample.1")
    source.take("image.attention_pool.positions", "visual.attnpool.positional_embedding")
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "c_proj")):
        source.pair(f"image.attention_pool.{ours}", f"visual.attnpool.{theirs}")


# -- Hugging Face --------------------------------------------------------------------------------------------

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
        _require(f"{name}.num_channels", part["num_channels"], 3)
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
            image_size=_square(vision["image_size"], "vision_config.image_size"),
            patch_size=_square(vision["patch_size"], "vision_config.patch_size"),
            **_hf_block(vision),
        ),
        text=TextConfig(
            vocab_size=text["vocab_size"], context_length=text["max_position_embeddings"], **_hf_block(text)
        ),
        dim=described.get("projection_dim", 512),
    )


def _siglip_shape(described: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> TwoTower:
    _require("vision_config.vision_use_head", vision["vision_use_head"], True)
    dim = text["projection_size"] or text["hidden_size"]
    if dim != vision["hidden_size"]:
        raise BadCheckpoint(
            f"{HF_CONFIG}: text_config.projection_size {dim} is not vision_config.hidden_size {vision['hidden_size']}"
        )
    return TwoTower(
        image=ViTConfig(
            image_size=_square(vision["image_size"], "vision_config.image_size"),
            patch_size=_square(vision["patch_size"], "vision_config.patch_size"),
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
        _require(step, data.get(step, True), True)
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
        _require("do_center_crop", data.get("do_center_crop", True), True)
        crop = data.get("crop_size", side)
        _require("crop_size", _square(crop, "crop_size"), side)
    else:
        side = _square(size, "size")
        if data.get("do_center_crop"):
            raise BadCheckpoint("preprocessor_config.json: do_center_crop True after squashing is not read")
    _require("size", side, image_size)
    preprocess = Preprocess(size=side, mode=mode, interpolation="bilinear" if resample == 2 else "bicubic")
    return preprocess, tuple(_numbers(data["image_mean"])), tuple(_numbers(data["image_std"]))


def _hf_tokenizer(folder: Path, kind: str, text: dict[str, Any]) -> TrainedTokenizer:
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    if (folder / "tokenizer.json").exists() or not (folder / "vocab.json").exists():
        if (folder / "spiece.model").exists() and not (folder / "tokenizer.json").exists():
            raise BadCheckpoint(
                f"{folder} has only spiece.model: save the tokenizer as tokenizer.json with transformers"
            )
        core = read_core(folder / "tokenizer.json")
        start, end = _ends(core)
        clean = "none"
    else:  # CLIP's older pair of files
        vocab = read_json(folder / "vocab.json")
        lines = (folder / "merges.txt").read_text(encoding="utf-8").strip().split("\n")[1:]
        core = clip_core(vocab, [(a, b) for a, b in (line.split() for line in lines)])
        start, end = vocab.get("<|startoftext|>"), vocab.get("<|endoftext|>")
        clean = "clip"
    if end is None:
        raise BadCheckpoint("tokenizer.json adds no end token to a text, the text tower was trained with one")
    pad = _pad_id(folder, core, text["pad_token_id"])
    name = str(settings.get("tokenizer_class", ""))
    if kind == "clip":
        eos = text["eos_token_id"]  # 2 in old files: they meant the largest id
        _require("text_config.eos_token_id", eos if eos != 2 else text["vocab_size"] - 1, end)
        if start is None:
            raise BadCheckpoint("tokenizer.json adds no start token, CLIP was trained with one")
    elif name.startswith("Siglip") and not name.startswith("Siglip2"):
        clean = "canonical"
    lower = bool(settings.get("do_lower_case", False)) or name.startswith("Siglip2")
    return TrainedTokenizer(core, TokenPolicy(start_id=start, end_id=end, pad_id=pad, clean=clean, lower=lower))


def _ends(core: Any) -> tuple[int | None, int | None]:
    """The ids that a tokenizer file puts before and after a text: asked, not assumed."""
    core.no_truncation()
    core.no_padding()
    bare, dressed = (core.encode("a", add_special_tokens=s).ids for s in (False, True))
    for i in range(len(dressed) - len(bare) + 1):
        if dressed[i : i + len(bare)] == bare:
            before, after = dressed[:i], dressed[i + len(bare) :]
            if len(before) <= 1 and len(after) <= 1:
                return (before or [None])[0], (after or [None])[0]
    raise BadCheckpoint(f"tokenizer.json dresses a text as {dressed}: at most one start and one end token are read")


def _pad_id(folder: Path, core: Any, default: int) -> int:
    """The padding token of `tokenizer_config.json`; the model's where that is silent."""
    path = folder / "tokenizer_config.json"
    token = read_json(path).get("pad_token") if path.exists() else None
    token = token.get("content") if isinstance(token, dict) else token
    if token is None:
        return default
    found = core.token_to_id(token)
    if found is None:
        raise BadCheckpoint(f"tokenizer_config.json: pad_token {token!r} is not in the vocabulary")
    return found


# -- shared --------------------------------------------------------------------------------------------------


def _weights(folder: Path, *names: str) -> dict[str, Tensor]:
    """The first of the named safetensors files, in one piece or in shards."""
    for name in names:
        if (folder / name).exists():
            return read_tensors(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            files = sorted(set(read_json(index)["weight_map"].values()))
            return {n: t for f in files for n, t in read_tensors(folder / f).items()}
    pickles = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt")]
    if pickles:
        raise BadCheckpoint(
            f"{folder} has its weights as {', '.join(pickles)}, a pickle, which can run code and is never read. "
            "Save them as safetensors with the library that wrote them"
        )
    raise BadCheckpoint(f"{folder} has no weights: {' or '.join(names)} is missing")


@torch.no_grad()
def _take_scale(source: Source, vlm: VLM, where: str) -> None:
    """`logit_scale` (a logarithm in all these formats) and `logit_bias`, where there is one."""
    if vlm.logit_bias is not None:
        source.take("logit_bias", "logit_bias", by=lambda x: x.reshape(()))
    name, state = next(iter(vlm.logit_scale.state_dict(keep_vars=True).items()))
    shape = state.shape
    source.take(f"logit_scale.{name}", "logit_scale", by=lambda x: x.reshape(shape))
    taken = source.ours.get(f"logit_scale.{name}")
    if taken is None:
        return
    state.copy_(taken)
    if not torch.allclose(vlm.scale.float(), taken.exp().reshape(vlm.scale.shape), rtol=1e-4):
        raise BadCheckpoint(
            f"{where}: logit_scale exp({float(taken):.4f}) = {float(taken.exp()):.2f} is beyond the bounds of the "
            f"model's scale ({float(vlm.scale):.2f})"
        )


def _known_keys(where: str, data: dict[str, Any], fixed: dict[str, Any], others: set[str]) -> None:
    for key, value in data.items():
        if key in fixed:
            if value != fixed[key] and not (key == "block_type" and value == "default"):
                raise BadCheckpoint(f"{where}.{key} {value!r} is not read, only {fixed[key]!r}")
        elif key not in others:
            raise BadCheckpoint(f"{where}.{key} {value!r} is unknown here, so the model could come out wrong")


def _require(name: str, value: Any, expected: Any) -> None:
    if value != expected:
        raise BadCheckpoint(f"{name} is {value!r}, expected {expected!r}: this setting is not read otherwise")


def _square(size: Any, name: str) -> int:
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    if isinstance(size, list | tuple):
        if len(size) != 2 or size[0] != size[1] or size[0] is None:
            raise BadCheckpoint(f"{name} {size!r} is not square")
        size = size[0]
    return int(size)


def _numbers(values: Any) -> list[float]:
    return [float(v) for v in values]
