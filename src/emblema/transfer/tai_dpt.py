"""TaI-DPT: texts as images. Prompts for several classes a picture are learnt from captions alone.

A caption that names classes stands for a picture that shows them: its vector for the global prompt, its words for the
local one. At test time the picture takes their place.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from emblema.core.batch import Batch, ImageInput, Level
from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.core.method import Optim
from emblema.engine import seed
from emblema.engine.optimise import optimise
from emblema.engine.precision import autocast
from emblema.parts.prompts import Borrowed, PromptedText, clean
from emblema.parts.words import named_at
from emblema.transfer.base import Transfer, coop_recipe

FRAMES = ("a picture of {}.", "{} on a table.", "there is {} here.", "{} in the street.", "we see {} today.")


@dataclass(kw_only=True)
class TaIDPT(Transfer):
    card = Card(
        name="tai_dpt",
        title="Texts as Images in Prompt Tuning for Multi-Label Image Recognition",
        paper="2211.12739",
        year=2023,
        section="6.3.1 text prompt",
        equation="L = sum_{i absent, j present} max(0, 1 + s_i - s_j), global and local",
        reads=Level.PATCHES,
        needs=("values", "no pictures", "multi-label"),
        protocol="multi-label",
        claim="learnt from captions alone, its mAP on pictures beats zero-shot",
        oracle="the ranking loss by hand; flat word weights: mean pooling",
        deviations=(
            "without a file of captions, sentences of one to three classes are made; the paper uses COCO captions",
            "classes are found by their names and plurals; the paper adds lists of synonyms",
            "a fixed number of epochs; the official code takes the best on test",
        ),
    )
    context_length: int = 16
    captions: str = ""  # a text file, one caption a line; default: made sentences
    made: int = 2000  # sentences, where there is no file
    margin: float = 1.0
    scale: float = 4.0
    sharpness: tuple[float, float] = (50.0, 40.0)  # of the weights of words, and of places
    optim: Optim = field(default_factory=lambda: coop_recipe(lr=1e-3, batch_size=256, epochs=20.0))

    def build(self, vlm, class_names):
        return GlobalAndLocal(vlm, class_names, self.context_length, self.scale, self.sharpness)

    def learn(self, module, train=None, on_step=None):
        texts, labels = self.corpus(list(self._names))
        optim, per_epoch = self.optim, max(len(texts) // self.optim.batch_size, 1)
        total = optim.total(per_epoch)
        batches = self.batches(module.vlm, texts, labels, total, per_epoch)
        optimise(self, module, batches, optim, total_steps=total, epoch_steps=per_epoch, on_step=on_step)

    def corpus(self, class_names: list[str]) -> tuple[list[str], Tensor]:
        """Captions that name a class, and which: [N, C]. Raises `BadData` when none does."""
        if self.captions:
            lines = Path(self.captions).read_text(encoding="utf-8").splitlines()
            texts = [line.strip() for line in lines if line.strip()]
        else:
            texts = made_up(class_names, self.made, self.seed)
        labels = named(texts, class_names)
        kept = labels.any(1)
        if not kept.any():
            raise BadData(f"none of {len(texts)} captions names a class, e.g. {class_names[0]!r}: give other captions")
        return [t for t, keep in zip(texts, kept.tolist()) if keep], labels[kept]

    def batches(self, vlm, texts: list[str], labels: Tensor, total: int, per_epoch: int):
        """What the frozen text tower says of a caption is kept: later epochs ask for it again."""
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        for step in range(total):
            order = torch.randperm(len(texts), generator=seed.generator(self.seed, "order", step // per_epoch))
            rows = order[step % per_epoch * self.optim.batch_size :][: self.optim.batch_size]
            new = [i for i in rows.tolist() if i not in kept]
            if new:
                with autocast(self.optim.precision, next(vlm.parameters()).device):
                    kept |= zip(new, told(vlm, [texts[i] for i in new]))
            caption, words = zip(*(kept[i] for i in rows.tolist()))
            real = [torch.ones(len(w), dtype=torch.bool) for w in words]
            targets = {
                "caption": torch.stack(caption),
                "words": pad_sequence(list(words), True),
                "labels": labels[rows],
            }
            targets["real"] = pad_sequence(real, True)  # [B, L]
            chosen = [texts[i] for i in rows.tolist()]
            yield Batch(keys=chosen, texts=chosen, targets=targets)

    def losses(self, module, batch):
        t = batch.targets
        score, local = module.scores(t["caption"], t["words"], t["real"], self.sharpness[0])
        return {"global": ranking(score, t["labels"], self.margin), "local": ranking(local, t["labels"], self.margin)}


class GlobalAndLocal(Borrowed):
    def __init__(self, vlm, class_names, length: int, scale: float, sharpness: tuple[float, float]):
        super().__init__(vlm)
        self.whole, self.part = (PromptedText(vlm, class_names, length) for _ in range(2))
        self.scale, self.sharpness = scale, sharpness

    def forward(self, x: ImageInput) -> Tensor:
        places = x.values.flatten(1, 2)  # [B, S, D]
        real = torch.ones(places.shape[:2], dtype=torch.bool)
        score, local = self.scores(x.pooled, places, real, self.sharpness[1])
        return (score + local) / 2

    def scores(self, z: Tensor, parts: Tensor, real: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
        """Global and local scores [B, C] of vectors [B, D] with their words or places [B, S, D]."""
        a = parts @ self.part().T  # [B, S, C]
        w = (sharpness * a).masked_fill(~real[..., None], -torch.inf).softmax(1)
        return self.scale * z @ self.whole().T, self.scale * (w * a).sum(1)


@torch.no_grad()
def told(vlm, texts: list[str]) -> list[tuple[Tensor, Tensor]]:
    """The vector [D] and the words [L, D] of each text."""
    words, real = vlm.encode_words(texts)  # [N, L, D], [N, L]
    return [(z, w[r].clone()) for z, w, r in zip(vlm.encode_text(texts).float(), words.float(), real)]


def ranking(score: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """sum over (absent i, present j) of max(0, margin + s_i - s_j), mean over the batch; [B, C]."""
    gap = margin + score[:, :, None] - score[:, None, :]  # [B, i, j]
    pairs = ~labels[:, :, None] & labels[:, None, :]
    return (gap.clamp(min=0) * pairs).sum((1, 2)).mean()


def named(texts: list[str], class_names: list[str]) -> Tensor:
    """Which classes a caption names, as whole words, in the singular or with an s: bool [N, C]."""
    return torch.tensor([[bool(named_at(text, name)) for name in class_names] for text in texts]).view(len(texts), -1)


def made_up(class_names: list[str], count: int, random_seed: int) -> list[str]:
    """Sentences that name one to three classes each."""
    dice = random.Random(random_seed)
    texts = []
    for _ in range(count):
        chosen = [f"a {clean(n)}" for n in dice.sample(class_names, min(dice.randint(1, 3), len(class_names)))]
        texts.append(dice.choice(FRAMES).format(" and ".join(chosen)))
    return texts
