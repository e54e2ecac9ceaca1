"""PB-OVD: words of captions become boxes, so a detector is also trained on classes that nobody annotated.

A model that matches pictures and captions is asked where each class word of a caption is: its attention, weighted by
how it helps the match. The proposal that holds most of that map is a box of the word, and ordinary supervision.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emblema.core.boxes import Boxes
from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.core.method import Optim
from emblema.distill.base import Detecting, student_recipe
from emblema.engine import seed
from emblema.objectives.alignment import image_text_matching
from emblema.parts.dense import checked_features, places
from emblema.parts.matching import Matcher, best_box, word_maps
from emblema.parts.words import exchanged, mentions, named_at
from emblema.students.two_stage import TwoStage, suppressed


@dataclass(kw_only=True)
class PBOVD(Detecting):
    card = Card(
        name="pb_ovd",
        title="Open Vocabulary Object Detection with Pseudo Bounding-Box Labels",
        paper="2111.09452",
        year=2022,
        section="7.1 object detection",
        equation="b(word) = argmax_b sum_{p in b} M_p / sqrt(|b|),  M = mean_heads A ReLU(d match / dA)",
        reads="PIXELS",
        needs=("boxes", "texts"),
        claim="AP50 of novel classes: pseudo boxes and base boxes > base boxes only (pseudo=False), same steps",
        oracle="box sums against a loop; a map that fills a box picks that box; the maps against a loop over gradients",
        deviations=(
            "two layers of cross-attention, taught to match pictures and captions on the teacher's frozen features; "
            "ALBEF, of which a layer in the middle is read, in the paper",
            "a wrong caption has one class exchanged for another; ALBEF draws captions of pictures that look alike",
            "proposals are found by colour and shape; in the paper by a network trained on base boxes",
            "pseudo boxes are of words whose class is not annotated in the picture, and are learnt beside base boxes; "
            "the paper trains on pseudo boxes of all words first",
            "a quarter of the regions drawn are things, all of them in the paper",
            "the student is a small Faster R-CNN from scratch; Mask R-CNN with a ResNet-50 in the paper",
        ),
    )
    pseudo: bool = True  # False: base boxes only
    match_steps: int = 200  # of the matching model, before the detector is trained
    match_batch: int = 32
    match_width: int = 128
    features: str = "local"  # of the teacher's places: "values", "local", "plain"
    enlarge: float = 2.0  # the teacher sees pictures of so many times the size it was trained at
    proposed: int = 50  # proposals a picture, one of which a word takes
    background_weight: float = 0.2  # of regions that hold nothing
    body: str = "tiny"
    width: int = 64
    optim: Optim = field(default_factory=lambda: student_recipe(precision="fp32", epochs=12.0))

    def build(self, teacher, class_names):
        checked_features(self.features)
        text, seen = self.text(teacher, class_names), self.seen(class_names)
        if self.pseudo:  # captions speak of any class
            seen = torch.ones_like(seen)
        return TwoStage(text, seen, body=self.body, width=self.width, double=False)

    def learn(self, student, data, on_step=None):
        if self.pseudo and len(data):
            with seed.forked(self.seed, "matcher"):
                self._matcher = Matcher(self._model.vlm.dim, self.match_width)
            self.learn_matching(self._matcher, data)
        super().learn(student, data, on_step)
        vars(self).pop("_matcher", None)

    def learn_matching(self, matcher: Matcher, data: Any) -> None:
        """Teach the matcher which captions belong to which pictures, by features that are read once."""
        if self.match_steps < 1 or self.match_batch < 2:
            raise BadData(
                f"match_steps={self.match_steps}, match_batch={self.match_batch}: at least 1 and 2 are needed"
            )
        seen: list[Tensor] = []
        captions: list[str] = []
        told = False
        for start in range(0, len(data), 16):
            batch = self.collate([data[i] for i in range(start, min(start + 16, len(data)))])
            assert batch.images is not None and batch.texts is not None
            seen.append(self.places(self._model.vlm, batch.images))
            captions += batch.texts
            told = told or any(self.unannotated(batch))
        if not told:
            warnings.warn(
                "no caption names a class that is not annotated in its picture, so no pseudo box will be learnt: take "
                "pictures that show such classes (--novel-in-train 0.5 for made scenes)",
                stacklevel=2,
            )
        dice = seed.generator(self.seed, "wrong captions")
        wrong = [self.wrong(caption, dice) or [c for c in captions if c != caption][:1] for caption in captions]
        texts = list(dict.fromkeys([*captions, *(other for one in wrong for other in one)]))
        row = {text: i for i, text in enumerate(texts)}
        shown, (said, real) = torch.cat(seen), padded(self.words(self._model.vlm, texts))  # [N, P, D], [T, L, D]
        optimiser = torch.optim.AdamW(matcher.parameters(), lr=1e-3, weight_decay=0.01)
        for step in range(self.match_steps):
            dice = seed.generator(self.seed, "pairs", step)
            drawn = torch.randint(len(captions), (self.match_batch,), generator=dice).tolist()
            which = torch.rand(self.match_batch, generator=dice).tolist()
            right = [row[captions[n]] for n in drawn]
            other = [(n, row[wrong[n][int(w * len(wrong[n]))]]) for n, w in zip(drawn, which) if wrong[n]]
            image, text = torch.tensor([*zip(drawn, right), *other]).T
            logits = matcher(said[text], real[text], shown[image])
            optimiser.zero_grad()
            image_text_matching(logits, torch.arange(len(logits)) < len(drawn)).backward()
            optimiser.step()
        matcher.eval()

    def wrong(self, caption: str, dice: torch.Generator, each: int = 2) -> list[str]:
        """The caption with a class that it names exchanged for one that it does not name, `each` for each class."""
        named = [name for name in self._names if named_at(caption, name)]
        others = [name for name in self._names if name not in named]
        drawn = [torch.randperm(len(others), generator=dice)[:each].tolist() for _ in named]
        return [exchanged(caption, name, others[n]) for name, numbers in zip(named, drawn) for n in numbers]

    def places(self, teacher, images: Tensor) -> Tensor:
        """The teacher's unit features of the places of pictures: [B, P, D]"""
        with torch.no_grad():
            return places(teacher, images, self.features, self.enlarge).flatten(1, 2)

    def words(self, teacher, texts: list[str]) -> list[Tensor]:
        """The teacher's unit features of the tokens of each text: [L, D] each"""
        with torch.no_grad():
            z, real = teacher.encode_words(texts)
        return [row[r] for row, r in zip(z, real)]

    def targets(self, teacher, batch):
        """Pseudo boxes [M, 4] of class words and their labels [M]."""
        if not self.pseudo:
            return {}
        assert batch.images is not None and batch.boxes is not None and batch.texts is not None
        words, real = padded(self.words(teacher, batch.texts))
        places = self.places(teacher, batch.images)
        side = round(places.shape[1] ** 0.5)  # pictures are squares
        maps = word_maps(self._matcher, words, real, places).unflatten(2, (side, side))  # [B, L, h, w]
        found: dict[str, list[Tensor]] = {"boxes": [], "labels": []}
        proposed = self.proposals(batch, self.proposed)
        for map_, named, boxes in zip(maps, self.unannotated(batch), proposed):
            chosen = {}
            for label, tokens in named.items():
                read = [t for t in tokens if t < len(map_)]  # a long caption was cut
                if not read:
                    continue
                whole = map_[read].sum(0)  # of all tokens of the word; a new map, none is added to
                whole = F.interpolate(whole[None, None], (self.image_size, self.image_size), mode="nearest")[0, 0]
                if (n := best_box(whole, boxes)) is not None:
                    chosen[label] = n
            found["boxes"].append(boxes[list(chosen.values())].reshape(-1, 4))
            found["labels"].append(torch.tensor(list(chosen), dtype=torch.long))
        return found

    def unannotated(self, batch) -> list[dict[int, list[int]]]:
        """Of each caption the classes that it names and its picture's boxes do not, and the tokens that do so."""
        said = (mentions(self._model.vlm.text.tokenizer, text, self._names) for text in batch.texts)
        return [
            {label: tokens for label, tokens in named.items() if label not in true.labels}
            for named, true in zip(said, batch.boxes)
        ]

    def losses(self, student, batch):
        assert batch.boxes is not None
        truth = batch.boxes
        if self.pseudo:
            pseudo = zip(batch.targets["boxes"], batch.targets["labels"])
            truth = [both(true, xyxy, labels) for true, (xyxy, labels) in zip(truth, pseudo)]
        sampled = student.sample(batch.images, truth)
        weight = torch.ones(1 + len(student.text))
        weight[0] = self.background_weight
        logits = products(sampled.vectors, student.text, student.seen)
        return sampled.losses | {"classes": F.cross_entropy(logits, sampled.labels, weight)}

    def found(self, student, images, text):
        _, boxes, vectors, _ = student.look(images)
        return [suppressed(xyxy, products(r, text).softmax(-1)[:, 1:]) for xyxy, r in zip(boxes, vectors)]


def products(vectors: Tensor, text: Tensor, seen: Tensor | None = None) -> Tensor:
    """[0, r . t_1 ... r . t_C], the background being the zero vector: [R, D] -> [R, 1 + C]"""
    logits = vectors @ text.T
    if seen is not None:
        logits = logits.masked_fill(~seen, -torch.inf)
    return torch.cat([logits.new_zeros(len(logits), 1), logits], 1)


def both(true: Boxes, xyxy: Tensor, labels: Tensor) -> Boxes:
    """Annotated boxes, then pseudo boxes."""
    if not len(xyxy):
        return true
    crowd = None if true.crowd is None else torch.cat([true.crowd, torch.zeros(len(xyxy), dtype=torch.bool)])
    assert true.labels is not None
    everything = torch.cat([true.xyxy, xyxy.to(true.xyxy)])
    return replace(true, xyxy=everything, labels=torch.cat([true.labels, labels]), crowd=crowd, areas=None, masks=None)


def padded(words: list[Tensor]) -> tuple[Tensor, Tensor]:
    """[L, D] each -> [N, longest, D], and [N, longest] False at padding."""
    real = [torch.ones(len(w), dtype=torch.bool) for w in words]
    fill = torch.nn.utils.rnn.pad_sequence
    return fill(words, True), fill(real, True)
