"""Weights in the files of open_clip: `open_clip_config.json` and `open_clip_model.safetensors`, or a tag."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from emblema.core.errors import BadCheckpoint
from emblema.core.preprocess import Preprocess
from emblema.encoders.bert import BertConfig
from emblema.encoders.resnet import ResNetConfig
from emblema.encoders.text import TextConfig
from emblema.encoders.tokenizers import ClipTokenizer, TokenPolicy, TrainedTokenizer, read_core
from emblema.encoders.vit import CLIP_MEAN, CLIP_STD, ViTConfig
from emblema.frameworks.bert_weights import bert_family, bert_shape, bert_tensors
from emblema.frameworks.checkpoint import Loaded, attach_tokenizer, build, read_json
from emblema.frameworks.foreign import (
    TEMPLATES,
    Source,
    end_tokens,
    known_keys,
    numbers,
    pad_id_of,
    read_weights,
    require,
    square,
    take_scale,
)
from emblema.frameworks.timm_weights import timm_shape, timm_tensors
from emblema.frameworks.two_tower import TwoTower
from emblema.frameworks.vlm import frozen

OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
Vocabulary = Callable[[int], tuple[Any, int]]  # default of the padding id -> tokenizer of `tokenizers`, padding id


def load_open_clip(folder: str | Path, *, strict: bool = True) -> Loaded:
    """A folder with `open_clip_config.json` and `open_clip_model.safetensors`."""
    folder = Path(folder)
    described = read_json(folder / OPEN_CLIP_CONFIG)
    model = described.get("model_cfg")
    if not isinstance(model, dict):
        raise BadCheckpoint(f"{folder / OPEN_CLIP_CONFIG} has no model_cfg")
    tensors = read_weights(folder, OPEN_CLIP_WEIGHTS, "model.safetensors")

    def vocabulary(pad: int) -> tuple[Any, int]:
        core = read_core(folder / "tokenizer.json")
        return core, pad_id_of(folder, core, pad)

    tokenizer = _open_clip_tokenizer(model, vocabulary)
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
    where = f"open_clip:{tag}"

    def vocabulary(pad: int) -> tuple[Any, int]:
        fetched = open_clip.get_tokenizer(arch).tokenizer  # type: ignore[union-attr]
        if not getattr(fetched, "is_fast", False):
            raise BadCheckpoint(f"{where}: its tokenizer has no form of the library `tokenizers`")
        core = copy.deepcopy(fetched.backend_tokenizer)
        return core, pad if fetched.pad_token_id is None else fetched.pad_token_id

    tokenizer = _open_clip_tokenizer(model, vocabulary)
    return _open_clip({**model, "quick_gelu": quick}, preprocess, network.state_dict(), tokenizer, where, strict)


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
_VISION_FIXED = {**_PLAIN, "attentional_pool": False}
_VISION_READ = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "no_ln_pre", "pool_type"}
_VISION_READ |= {"act_kwargs", "norm_kwargs", "final_ln_after_pool", "pos_embed_type"}
_TIMM_READ = {"timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias", "image_size"}
_VISION_IDLE = {"patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "timm_pool", "timm_proj"}
_VISION_IDLE |= {"timm_model_pretrained", "timm_proj_bias", "timm_drop", "timm_drop_path", "timm_model_name"}
_TEXT_FIXED = {**_PLAIN, "embed_cls": False}
_BERT_READ = {"hf_model_name", "hf_proj_type", "hf_pooler_type", "hf_tokenizer_name", "tokenizer_kwargs"}
_BERT_READ |= {"tokenizer_mode", "context_length", "pad_id"}
_BERT_IDLE = {"width", "heads", "layers", "vocab_size", "hf_model_pretrained", "output_tokens"}  # the network's own
_TEXT_READ = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pad_id", "eos_id", "pool_type"}
_TEXT_READ |= {"no_causal_mask", "proj_type", "proj_bias", "act_kwargs", "norm_kwargs", "hf_tokenizer_name"}
_TEXT_READ |= {"tokenizer_kwargs", "tokenizer_mode", "final_ln_after_pool"}
_TEXT_IDLE = {"output_tokens", "hf_model_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"}
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
    known_keys("model_cfg", model, {}, _MODEL_READ | _MODEL_IDLE)
    vision, text = dict(model["vision_cfg"]), dict(model["text_cfg"])
    of_timm, of_hf = vision.get("timm_model_name") is not None, text.get("hf_model_name") is not None
    known_keys("vision_cfg", vision, _VISION_FIXED, _VISION_IDLE | (_TIMM_READ if of_timm else _VISION_READ))
    known_keys("text_cfg", text, _TEXT_FIXED, _BERT_READ | _BERT_IDLE if of_hf else _TEXT_READ | _TEXT_IDLE)
    tensors = {n.removeprefix("module."): t for n, t in tensors.items()}
    quick = bool(model.get("quick_gelu", False))
    size = square(preprocess.get("size") or vision.get("image_size", 224), "preprocess_cfg.size")
    require("preprocess_cfg.size", size, square(vision.get("image_size", 224), "vision_cfg.image_size"))
    mean = tuple(numbers(preprocess.get("mean", CLIP_MEAN)))
    std = tuple(numbers(preprocess.get("std", CLIP_STD)))
    config = TwoTower(
        image=timm_shape(vision, model["embed_dim"], size, mean, std)
        if of_timm
        else _open_clip_image(vision, quick, size, mean, std),
        text=bert_shape(text, tensors, model["embed_dim"]) if of_hf else _open_clip_text(text, quick, tokenizer),
        dim=model["embed_dim"],
        logit_bias=model.get("init_logit_bias"),
        scale="clip" if model.get("init_logit_bias") is None else "siglip",
    )
    vlm = build(config)
    source = Source(tensors)
    if of_timm:
        timm_tensors(source, config.image)  # type: ignore[arg-type]
    elif isinstance(config.image, ResNetConfig):
        resnet_tensors(source, config.image)
    else:
        assert isinstance(config.image, ViTConfig)
        vit_tensors(source, config.image)
    if isinstance(config.text, BertConfig):
        bert_tensors(source, config.text, bert_family(text))
    else:
        assert isinstance(config.text, TextConfig)
        text_tensors(source, config.text)
    take_scale(source, vlm, where)
    report = source.fill(vlm, where, strict, ("attn_mask", *_SIZES))
    attach_tokenizer(vlm, tokenizer)
    return Loaded(frozen(vlm), config, _open_clip_preprocess(preprocess, size), list(TEMPLATES), report)


# numbers that OpenAI's archives keep among the weights, and rows of ids of older text networks
_SIZES = ("input_resolution", "context_length", "vocab_size", "embeddings.position_ids", "embeddings.token_type_ids")


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
        require("vision_cfg.final_ln_after_pool", vision.get("final_ln_after_pool", False), False)
    return ViTConfig(
        image_size=size,
        patch_size=square(vision.get("patch_size", 16), "vision_cfg.patch_size"),
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
        require("text_cfg.eos_id", text.get("eos_id", 2), end)
    if kind not in ("argmax", "eos", "last"):
        raise BadCheckpoint(f"text_cfg.pool_type {kind!r} is not read; known: argmax, eos, last")
    if kind == "last" or not causal:  # padding is read: it must be the one of training
        require("text_cfg.pad_id", text.get("pad_id", 0), tokenizer.pad_id)
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
    require("preprocess_cfg.mode", data.get("mode", "RGB"), "RGB")
    fill_color = data.get("fill_color", 0)
    background = (
        (fill_color, fill_color, fill_color) if mode == "pad" and isinstance(fill_color, int) else (255, 255, 255)
    )
    return Preprocess(size=size, mode=mode, interpolation=interpolation, background=background)


def _open_clip_tokenizer(model: dict[str, Any], vocabulary: Vocabulary) -> TrainedTokenizer:
    text = model.get("text_cfg") or {}
    name, kwargs = text.get("hf_tokenizer_name"), dict(text.get("tokenizer_kwargs") or {})
    if text.get("tokenizer_mode"):
        raise BadCheckpoint(f"text_cfg.tokenizer_mode {text['tokenizer_mode']!r} is not read")
    if not name:
        if kwargs:
            raise BadCheckpoint(f"text_cfg.tokenizer_kwargs {kwargs} is not read")
        require("text_cfg.vocab_size", text.get("vocab_size", 49408), 49408)
        return ClipTokenizer()
    clean = {"whitespace": "spaces", "canonicalize": "canonical_words", "lower": "spaces"}
    cleaning = kwargs.pop("clean", "whitespace")
    if cleaning not in clean or set(kwargs) - {"strip_sep_token"} or kwargs.get("strip_sep_token"):
        raise BadCheckpoint(f"text_cfg.tokenizer_kwargs clean={cleaning!r}, {kwargs} is not read")
    core, pad = vocabulary(text.get("pad_id", bert_family(text).pad_id if text.get("hf_model_name") else 0))
    start, end = end_tokens(core)
    policy = TokenPolicy(start_id=start, end_id=end, pad_id=pad, clean=clean[cleaning], lower=cleaning == "lower")
    return TrainedTokenizer(core, policy)


def vit_tensors(source: Source, shape: ViTConfig) -> None:
    v = "visual."
    source.take("image.stem.weight", v + "conv1.weight")
    source.take("image.class_token", v + "class_embedding")
    source.take("image.positions", v + "positional_embedding")
    if shape.norm_before:
        source.pair("image.norm_before", v + "ln_pre")
    _open_clip_blocks(source, "image.blocks", v + "transformer.resblocks", shape.depth)
    source.pair("image.norm", v + "ln_post")
    source.take("image.projection", v + "proj")


def text_tensors(source: Source, shape: TextConfig) -> None:
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


def resnet_tensors(source: Source, shape: ResNetConfig) -> None:
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
