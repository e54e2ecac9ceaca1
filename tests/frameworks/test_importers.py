"""Checkpoints that the oracle libraries write themselves, with perturbed weights, must give equal logits."""

import json

import open_clip
import pytest
import timm
import torch
import transformers
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from timm.models import register_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from emblema.core.errors import BadCheckpoint, UnknownName
from emblema.data import catalog
from emblema.encoders.sentence_pieces import read_sentence_pieces
from emblema.encoders.tokenizers import ClipTokenizer, TextIds
from emblema.frameworks import pretrained
from emblema.frameworks.hugging_face_weights import load_hugging_face
from emblema.frameworks.open_clip_weights import load_open_clip
from emblema.frameworks.pretrained import load_pretrained

TEXTS = ["a cat", "two dogs, and a Bird!", "", "it's 3 small cats on the table"]


def perturb(model):
    """No tensor stays zero or one, so each of them is seen in the logits."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and "logit" not in name:
                noise = torch.randn(value.shape, generator=generator) * (0.02 if value.dim() > 1 else 0.3)
                value.add_(noise.abs() if "running_var" in name else noise)
    return model.eval()


def images(size):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


# -- open_clip -----------------------------------------------------------------------------------------------

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}


@register_model
def tiny_siglip_of_tests(pretrained=False, **kwargs):
    """timm has SigLIP's form in its full size only."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3, "class_token": False}
    return timm.models.VisionTransformer(**shape, num_classes=0, global_pool=kwargs.get("global_pool", "map"))


OPEN_CLIP = {
    "vit": {"vision_cfg": VISION},
    "quick": {"vision_cfg": VISION, "quick_gelu": True},
    "no_ln_pre": {"vision_cfg": {**VISION, "no_ln_pre": True, "mlp_ratio": 3.0}},
    "mean": {"vision_cfg": {**VISION, "pool_type": "avg", "norm_kwargs": {"eps": 1e-3}}},
    "tanh": {"vision_cfg": {**VISION, "act_kwargs": {"approximate": "tanh"}}},
    "resnet": {"vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "head_width": 64}},
    "custom_last": {
        "vision_cfg": VISION,
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        "custom_text": True,
        "init_logit_bias": -3.0,
    },
    "timm_siglip": {
        "embed_dim": 192,
        "vision_cfg": {
            "timm_model_name": "tiny_siglip_of_tests",
            "image_size": 32,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "custom_text": True,
        "init_logit_bias": -3.0,
    },
    "timm_linear": {"vision_cfg": {"timm_model_name": "test_convnext", "image_size": 160, "timm_pool": ""}},
    "timm_mlp": {
        "vision_cfg": {"timm_model_name": "test_convnext2", "image_size": 160, "timm_pool": "", "timm_proj": "mlp"}
    },
    "timm_classifier": {
        "vision_cfg": {"timm_model_name": "test_efficientnet", "image_size": 160, "timm_proj": None},
        "custom_text": True,
    },
    "timm_token": {
        "vision_cfg": {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token", "timm_proj": None},
        "custom_text": True,
    },
    "bidirectional": {"vision_cfg": VISION, "text_cfg": {**TEXT, "no_causal_mask": True}},
}


def open_clip_folder(folder, name="vit", preprocess=None):
    config = {"embed_dim": 16, "text_cfg": TEXT, **OPEN_CLIP[name]}
    kwargs = {k: v for k, v in config.items() if k != "custom_text"}
    torch.manual_seed(0)
    cls = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = perturb(cls(**kwargs))
    model.visual.image_mean, model.visual.image_std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    model.visual.preprocess_cfg = preprocess or {}
    folder.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    save_config_for_hf(model, folder / "open_clip_config.json", config)
    return model


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip_folder(tmp_path, name):
    model = open_clip_folder(tmp_path / name, name)
    loaded = load_pretrained(tmp_path / name)
    assert loaded.report.complete and loaded.report.share == 1 and isinstance(loaded.vlm.text.tokenizer, ClipTokenizer)
    x = images(loaded.config.image.image_size)
    with torch.no_grad():
        z_image, z_text = loaded.vlm.encode_image(x), loaded.vlm.encode_text(TEXTS)
        ids = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
        out = model(x, ids)
        expected = model.logit_scale.exp() * out[0] @ out[1].T + (0 if model.logit_bias is None else model.logit_bias)
    torch.testing.assert_close(loaded.vlm.logits(z_image, z_text), expected, atol=1e-5, rtol=0)
    assert loaded.config.image.mean == (0.4, 0.5, 0.6) and loaded.preprocess.mode == "crop"


def test_open_clip_preprocessing(tmp_path):
    open_clip_folder(tmp_path / "a", preprocess={"interpolation": "bilinear", "resize_mode": "squash"})
    preprocess = load_open_clip(tmp_path / "a").preprocess
    assert (preprocess.size, preprocess.mode, preprocess.interpolation) == (32, "squash", "bilinear")
    open_clip_folder(tmp_path / "b", preprocess={"interpolation": "random"})
    with pytest.raises(BadCheckpoint, match="interpolation 'random'"):
        load_open_clip(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multimodal_cfg": {}}, "CoCa"),
        ({"surprise": 3}, "surprise 3"),
        ({"vision_cfg": {"timm_model_name": "vit_base", "image_size": 32}}, "'vit_base' is not a model of timm"),
        ({"vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "rot_attn"}}, "timm_pool 'rot_attn'"),
        ({"vision_cfg": {"timm_model_name": "test_vit", "timm_proj": "deep"}}, "timm_proj 'deep'"),
        ({"vision_cfg": {"timm_model_name": "test_vit", "width": 64}}, "width 64"),
        ({"vision_cfg": {**VISION, "attentional_pool": True}}, "attentional_pool True"),
        ({"vision_cfg": {**VISION, "ls_init_value": 0.1}}, "ls_init_value 0.1"),
        ({"vision_cfg": {**VISION, "act_kwargs": {"approximate": "tanh"}}, "quick_gelu": True}, "act_kwargs"),
        ({"vision_cfg": {**VISION, "image_size": [32, 64]}}, "not square"),
        ({"text_cfg": {"hf_model_name": "google/mt5-base"}}, "'mt5-base' is not read; known: xlm-roberta"),
        (
            {"text_cfg": {"hf_model_name": "roberta-base", "hf_pooler_type": "cls_pooler"}},
            "hf_pooler_type 'cls_pooler'",
        ),
        ({"text_cfg": {"hf_model_name": "roberta-base", "hf_proj_type": "deep"}}, "hf_proj_type 'deep'"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "needs the tensor text.transformer.embeddings.word_emb"),
        ({"text_cfg": {**TEXT, "vocab_size": 1000}}, "vocab_size"),
        ({"text_cfg": {**TEXT, "pool_type": "first"}}, "pool_type 'first'"),
        ({"text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 2}}, "eos_id"),
        ({"text_cfg": {**TEXT, "no_causal_mask": True, "pad_id": 1}}, "pad_id"),
        ({"text_cfg": {**TEXT, "layers": 3}}, "transformer.resblocks.2.ln_1.weight"),
        ({"text_cfg": {**TEXT, "layers": 1}}, "unexpected"),
        ({"vision_cfg": {**VISION, "width": 32}}, "mismatched"),
    ],
)
def test_open_clip_settings_that_are_not_read(tmp_path, change, message):
    open_clip_folder(tmp_path / "a")
    path = tmp_path / "a" / "open_clip_config.json"
    data = json.loads(path.read_text())
    data["model_cfg"] |= change
    path.write_text(json.dumps(data))
    with pytest.raises(BadCheckpoint, match=message):
        load_open_clip(tmp_path / "a")


def test_open_clip_missing_tensor_is_named_and_can_be_allowed(tmp_path):
    open_clip_folder(tmp_path / "a")
    path = tmp_path / "a" / "open_clip_model.safetensors"
    tensors = load_file(path)
    del tensors["visual.ln_post.bias"]
    save_file(tensors, path)
    with pytest.raises(BadCheckpoint, match=r"visual\.ln_post\.bias"):
        load_open_clip(tmp_path / "a")
    report = load_open_clip(tmp_path / "a", strict=False).report
    assert report.missing == ["visual.ln_post.bias"] and report.loaded == report.expected - 1


def test_pickles_are_refused(tmp_path):
    model = open_clip_folder(tmp_path / "a")
    (tmp_path / "a" / "open_clip_model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "a" / "open_clip_pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match="pickle"):
        load_open_clip(tmp_path / "a")


def test_open_clip_tag_reads_the_activation_that_was_built(monkeypatch):
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
    torch.manual_seed(0)
    model = perturb(open_clip.CLIP(**config, quick_gelu=True))  # as the tag "openai" does, whatever the config says
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config if name == "Tiny" else None)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: model)
    loaded = load_pretrained("open_clip:Tiny/openai")
    assert loaded.config.image.activation == loaded.config.text.activation == "quick_gelu"
    with torch.no_grad():
        expected = model.encode_image(images(32), normalize=True)
    torch.testing.assert_close(loaded.vlm.encode_image(images(32)), expected, atol=1e-5, rtol=0)
    with pytest.raises(BadCheckpoint, match="names no weights"):
        load_pretrained("open_clip:Tiny")
    with pytest.raises(BadCheckpoint, match="Nothing"):
        load_pretrained("open_clip:Nothing/openai")


def test_open_clip_tag_without_open_clip(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(BadCheckpoint, match=r"emblema\[zoo\]"):
        load_pretrained("open_clip:ViT-B-32/openai")


# -- Hugging Face --------------------------------------------------------------------------------------------

PART = {"intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}


def word_tokenizer(specials, start=None):
    """A small tokenizer.json whose post-processor dresses texts as a real one does."""
    vocab = {s: i for i, s in enumerate([*specials, "<unk>"])}
    for word in ["a", "cat", "two", "dogs", "and", "bird", "it", "s", "3", "small", "cats", "on", "the", "table"]:
        vocab.setdefault(word, len(vocab))
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    end = specials[-1]
    tokens = [(t, vocab[t]) for t in ([start] if start else []) + [end]]
    core.post_processor = processors.TemplateProcessing(single=f"{start or ''} $A {end}".strip(), special_tokens=tokens)
    return core


def clip_folder(folder, act="quick_gelu", eos=49407):
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(hidden_size=32, hidden_act=act, eos_token_id=eos, **PART)
    vision = transformers.CLIPVisionConfig(hidden_size=48, image_size=32, patch_size=8, hidden_act=act, **PART)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    model = perturb(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    core = ClipTokenizer().core
    merges = json.loads(core.to_str())["model"]["merges"]
    tokenizer = transformers.CLIPTokenizer(vocab=core.get_vocab(), merges=[tuple(m) for m in merges])
    tokenizer.save_pretrained(folder)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return model, tokenizer


@pytest.mark.parametrize(("act", "eos"), [("quick_gelu", 49407), ("gelu", 2)])
def test_hugging_face_clip(tmp_path, act, eos):
    model, tokenizer = clip_folder(tmp_path / "clip", act, eos)
    loaded = load_pretrained(tmp_path / "clip")
    assert loaded.config.image.activation == act and loaded.report.complete
    x = images(32)
    with torch.no_grad():
        expected = model(pixel_values=x, **tokenizer(TEXTS, padding=True, return_tensors="pt")).logits_per_image
        ours = loaded.vlm.logits(loaded.vlm.encode_image(x), loaded.vlm.encode_text(TEXTS))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert loaded.preprocess.mode == "crop" and loaded.config.image.mean[0] == pytest.approx(0.48145466)


def test_hugging_face_clip_tokenizer_of_two_files(tmp_path):
    clip_folder(tmp_path / "clip")
    with_json = load_hugging_face(tmp_path / "clip").vlm.text.tokenize(TEXTS).ids
    core = ClipTokenizer().core
    (tmp_path / "clip" / "tokenizer.json").unlink()
    (tmp_path / "clip" / "vocab.json").write_text(json.dumps(core.get_vocab()))
    merges = json.loads(core.to_str())["model"]["merges"]
    (tmp_path / "clip" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges))
    assert load_hugging_face(tmp_path / "clip").vlm.text.tokenize(TEXTS).ids.equal(with_json)


def siglip_folder(folder, two=False, words=40):
    torch.manual_seed(0)
    part = {"hidden_size": 32, **PART}
    if two:
        cls, text_cls = transformers.Siglip2Config, transformers.Siglip2TextConfig
        vision = transformers.Siglip2VisionConfig(num_patches=16, patch_size=8, **part)
    else:
        cls, text_cls = transformers.SiglipConfig, transformers.SiglipTextConfig
        vision = transformers.SiglipVisionConfig(image_size=32, patch_size=8, **part)
    text = text_cls(
        vocab_size=words, max_position_embeddings=16, pad_token_id=0, eos_token_id=1, bos_token_id=None, **part
    )
    config = cls(text_config=text.to_dict(), vision_config=vision.to_dict())
    model = perturb((transformers.Siglip2Model if two else transformers.SiglipModel)(config))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-5.0)
    model.save_pretrained(folder)
    core = word_tokenizer(["<pad>", "</s>"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    if two:
        transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(folder)
    else:
        transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model, tokenizer


@pytest.mark.parametrize("two", [False, True], ids=["siglip", "siglip2-naflex"])
def test_hugging_face_siglip(tmp_path, two):
    model, tokenizer = siglip_folder(tmp_path / "siglip", two)
    loaded = load_pretrained(tmp_path / "siglip")
    assert loaded.report.complete and loaded.preprocess.mode == "squash"
    x = images(32)
    # padding to the full context is part of the model: the tokenizer's output without it differs
    tokens = tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt")["input_ids"]
    assert loaded.vlm.text.tokenize(TEXTS).ids.equal(tokens)
    with torch.no_grad():
        if two:  # patches row by row, channels last
            patches = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(3, 16, 192)
            mask, shapes = torch.ones(3, 16, dtype=torch.long), torch.full((3, 2), 4)
            out = model(input_ids=tokens, pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)
        else:
            out = model(input_ids=tokens, pixel_values=x)
        ours = loaded.vlm.logits(loaded.vlm.encode_image(x), loaded.vlm.encode_text(TEXTS))
    torch.testing.assert_close(ours, out.logits_per_image, atol=1e-5, rtol=0)


def test_siglip_2_at_fixed_resolution_with_its_gemma_tokenizer(tmp_path):
    """The fixed-resolution checkpoints of SigLIP 2 are SigLIP models with a lower-casing Gemma vocabulary."""
    model, _ = siglip_folder(tmp_path / "a")
    letters = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "▁": 5}
    vocab = letters | {c: 6 + i for i, c in enumerate("abcdefghilmnorstuwy'3,!")}
    tokenizer = transformers.Siglip2Tokenizer(vocab=vocab, merges=[], add_eos_token=True, add_bos_token=False)
    tokenizer.save_pretrained(tmp_path / "a")
    loaded = load_hugging_face(tmp_path / "a")
    texts = ["A cat", "two dogs", ""]
    tokens = tokenizer(texts, padding="max_length", max_length=16, padding_side="right")["input_ids"]
    ours = loaded.vlm.text.tokenize(texts)
    assert ours.ids.tolist() == tokens
    with torch.no_grad():
        expected = model.get_text_features(input_ids=torch.tensor(tokens)).pooler_output
    torch.testing.assert_close(loaded.vlm.text.encode(ours), expected, atol=1e-5, rtol=0)


def test_siglip_needs_the_full_context(tmp_path):
    siglip_folder(tmp_path / "a")
    text = load_hugging_face(tmp_path / "a").vlm.text
    with pytest.raises(ValueError, match="pad_to_context"):
        text.encode(TextIds(torch.ones(1, 5, dtype=torch.long), torch.tensor([5])))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": "blip"}, "model_type 'blip'"),
        ("config.json", {"vision_config": {"hidden_act": "swish"}}, "hidden_act 'swish'"),
        ("config.json", {"text_config": {"eos_token_id": 7}}, "eos_token_id is 7"),
        ("config.json", {"text_config": {"num_hidden_layers": 3}}, r"text_model.encoder.layers.2.layer_norm1"),
        ("config.json", {"vision_config": {"num_channels": 1}}, "num_channels"),
        ("preprocessor_config.json", {"resample": 0}, "resample 0"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 64}}, "crop_size"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor"),
        ("tokenizer_config.json", {"pad_token": "<nothing>"}, "pad_token"),
    ],
)
def test_hugging_face_settings_that_are_not_read(tmp_path, file, change, message):
    clip_folder(tmp_path / "clip")
    path = tmp_path / "clip" / file
    data = json.loads(path.read_text())
    for key, value in change.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) and key.endswith("config") else value
    path.write_text(json.dumps(data))
    with pytest.raises(BadCheckpoint, match=message):
        load_hugging_face(tmp_path / "clip")


def test_activation_of_the_file_decides(tmp_path):
    """A model saved with QuickGELU never comes back with GELU: the two differ far beyond round-off."""
    clip_folder(tmp_path / "clip")
    quick = load_hugging_face(tmp_path / "clip").vlm.encode_image(images(32))
    path = tmp_path / "clip" / "config.json"
    path.write_text(path.read_text().replace("quick_gelu", "gelu"))
    exact = load_hugging_face(tmp_path / "clip").vlm.encode_image(images(32))
    assert (quick - exact).abs().max() > 1e-4


# -- names ---------------------------------------------------------------------------------------------------


def test_names_and_paths(tmp_path, monkeypatch):
    with pytest.raises(UnknownName, match="open_clip"):
        load_pretrained("clop")
    with pytest.raises(BadCheckpoint, match="no checkpoint folder"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(BadCheckpoint, match="neither"):
        load_pretrained(tmp_path)
    clip_folder(tmp_path / "clip")
    asked = []

    def snapshot(name, allow_patterns, local_files_only=False):
        asked.append(local_files_only)
        return str(tmp_path / "clip")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load_pretrained("hf:someone/clip").report.complete
    assert asked == [True]  # the cache comes first
    assert pretrained.shipped() == sorted(pretrained.shipped())


def test_hub_errors_teach(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(BadCheckpoint, match="path of a folder"):
        load_pretrained("hf:someone/clip")


def test_weights_in_shards(tmp_path):
    clip_folder(tmp_path / "clip")
    whole = load_hugging_face(tmp_path / "clip")
    tensors = load_file(tmp_path / "clip" / "model.safetensors")
    (tmp_path / "clip" / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, tmp_path / "clip" / file)
    index = {"weight_map": {n: file for file, part in parts.items() for n in part}}
    (tmp_path / "clip" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_hugging_face(tmp_path / "clip").vlm.encode_text(TEXTS).equal(whole.vlm.encode_text(TEXTS))
    (tmp_path / "clip" / "b.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"b\.safetensors is missing"):
        load_hugging_face(tmp_path / "clip")


def test_open_clip_folder_with_its_own_tokenizer(tmp_path):
    """`hf_tokenizer_name`: the folder's tokenizer.json, cleaned and padded as open_clip does."""
    folder = tmp_path / "a"
    text = {**TEXT, "vocab_size": 40, "context_length": 16, "no_causal_mask": True, "pool_type": "last"}
    text |= {"hf_tokenizer_name": "someone/words", "tokenizer_kwargs": {"clean": "canonicalize"}}
    OPEN_CLIP["words"] = {"vision_cfg": VISION, "text_cfg": text, "custom_text": True}
    try:
        model = open_clip_folder(folder, "words")
    finally:
        del OPEN_CLIP["words"]
    core = word_tokenizer(["<pad>", "</s>"])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(folder)
    theirs = open_clip.tokenizer.HFTokenizer(str(folder), context_length=16, clean="canonicalize")(TEXTS)
    loaded = load_open_clip(folder)
    assert loaded.vlm.text.tokenize(TEXTS).ids.equal(theirs)
    with torch.no_grad():
        expected = model.encode_text(theirs, normalize=True)
    torch.testing.assert_close(loaded.vlm.encode_text(TEXTS), expected, atol=1e-5, rtol=0)


BERT = {"vocab_size": 40, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"intermediate_size": 192, "max_position_embeddings": 34}


def bert_folder(folder, family, **text):
    """A multilingual CLIP in open_clip's files: its text network stands in a folder of its own, named as the hub's."""
    network, specials = folder / f"{family}-tiny", ["<s>", "<pad>", "</s>"]
    kinds = {"xlm-roberta": transformers.XLMRobertaConfig, "bert": transformers.BertConfig}
    published = {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
    if family == "bert":
        specials, published = ["<pad>", "<s>", "</s>"], {"type_vocab_size": 2, "pad_token_id": 0}
    kinds[family](**BERT, **published).save_pretrained(network)
    core = word_tokenizer(specials, start="<s>")
    dressed = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, **dressed).save_pretrained(network)
    own = {"hf_model_name": str(network), "hf_tokenizer_name": str(network), "hf_model_pretrained": False}
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": {**own, "context_length": 12, **text}}
    torch.manual_seed(0)
    model = perturb(open_clip.CustomTextCLIP(**config))
    model.visual.image_mean, model.visual.image_std, model.visual.preprocess_cfg = (0.5,) * 3, (0.5,) * 3, {}
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, network / "open_clip_model.safetensors")
    save_config_for_hf(model, network / "open_clip_config.json", config)
    return network, model, config


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("xlm-roberta", {"hf_pooler_type": "mean_pooler"}),
        ("xlm-roberta", {"hf_proj_type": "linear", "hf_pooler_type": "cls_last_hidden_state_pooler"}),
        ("bert", {}),
    ],
)
def test_open_clip_folder_with_a_text_network_of_transformers(tmp_path, family, text):
    folder, model, _ = bert_folder(tmp_path, family, **text)
    loaded = load_open_clip(folder)
    assert loaded.report.complete and loaded.report.share == 1
    ids = open_clip.tokenizer.HFTokenizer(str(folder), context_length=12)(TEXTS)
    with torch.no_grad():
        expected = model.encode_text(ids, normalize=True)
        image = model.encode_image(images(32), normalize=True)
    torch.testing.assert_close(loaded.vlm.encode_text(TEXTS), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(loaded.vlm.encode_image(images(32)), image, atol=1e-5, rtol=0)


def test_open_clip_tag_with_a_tokenizer_of_its_own(tmp_path):
    """Nothing of open_clip is replaced: a configuration, weights and a tokenizer on the disk stand for the hub's."""
    folder, model, config = bert_folder(tmp_path, "xlm-roberta")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "Tiny-XLM.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    loaded = load_pretrained(f"open_clip:Tiny-XLM/{folder / 'open_clip_model.safetensors'}")
    ids = open_clip.get_tokenizer("Tiny-XLM")(TEXTS)
    with torch.no_grad():
        expected = model.encode_text(ids, normalize=True)
    torch.testing.assert_close(loaded.vlm.encode_text(TEXTS), expected, atol=1e-5, rtol=0)


def test_siglips_tokenizer_drops_punctuation(tmp_path):
    siglip_folder(tmp_path / "a")
    path = tmp_path / "a" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "SiglipTokenizer"}))
    text = load_hugging_face(tmp_path / "a").vlm.text
    assert text.tokenize(["A cat, two  DOGS!"]).ids.equal(text.tokenize(["a cat two dogs"]).ids)


def sentence_pieces(folder, **more):
    """A vocabulary that SentencePiece learns from names of drawings, with T5's ids for padding, end and unknown."""
    captions = sorted(set(catalog.load("emblems", split="val").column("text")))
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2}
    options = {"model_type": "unigram", "vocab_size": 400, **ids, **more}
    SentencePieceTrainer.train(sentence_iterator=iter(captions), model_prefix=str(folder / "spiece"), **options)
    (folder / "spiece.vocab").unlink()
    return captions


def test_siglips_own_vocabulary_file(tmp_path):
    """The original SigLIP has no tokenizer.json: its SentencePiece file is read, with ids as the library gives."""
    siglip_folder(tmp_path / "a", words=400)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "a" / name).unlink()
    captions = sentence_pieces(tmp_path / "a")
    theirs = transformers.SiglipTokenizer(str(tmp_path / "a" / "spiece.model"))
    theirs.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a" / "tokenizer.json").exists()
    text = load_hugging_face(tmp_path / "a").vlm.text
    odd = ["Two  cats, and\ta DOG!", "ünïcode ﬁsh ½", "日本 cat", "¡¿", "z" * 60]
    expected = theirs(captions + odd, padding="max_length", truncation=True, max_length=16)["input_ids"]
    assert text.tokenizer(captions + odd, 16, pad_to_context=True).ids.tolist() == expected
    assert text.tokenizer.decode(expected[0]) == captions[0]


@pytest.mark.parametrize("options", [{}, {"add_dummy_prefix": False}, {"normalization_rule_name": "identity"}])
def test_sentence_pieces_are_those_of_the_library(tmp_path, options):
    captions = sentence_pieces(tmp_path, **options)
    core = read_sentence_pieces(tmp_path / "spiece.model")
    library = SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    texts = [*captions, "  two   cats ", "", "ünïcode ﬁsh", "½ Ⅷ", "🙂 smile"]
    assert [core.encode(t, add_special_tokens=False).ids for t in texts] == library.encode(texts)


def test_a_broken_vocabulary_file_teaches(tmp_path):
    sentence_pieces(tmp_path)
    path = tmp_path / "spiece.model"
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"no protocol buffer at all"):
        path.write_bytes(broken)
        with pytest.raises(BadCheckpoint, match=r"spiece\.model is not a whole file of SentencePiece"):
            read_sentence_pieces(path)
    sentence_pieces(tmp_path, model_type="bpe")
    with pytest.raises(BadCheckpoint, match="only Unigram"):
        read_sentence_pieces(path)


def test_the_scale_is_the_files_own(tmp_path):
    """SigLIP's exceeds CLIP's bound of 100, and a file may hold any: what was saved is what is computed."""
    for name, make in (("clip", clip_folder), ("siglip", siglip_folder)):
        make(tmp_path / name)
        path = tmp_path / name / "model.safetensors"
        tensors = load_file(path)
        tensors["logit_scale"] = torch.full_like(tensors["logit_scale"], 4.77)
        save_file(tensors, path)
        torch.testing.assert_close(load_hugging_face(tmp_path / name).vlm.scale, torch.tensor(4.77).exp())
