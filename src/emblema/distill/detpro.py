"""DetPro: the words around a class name are learnt for boxes, before a detector is distilled as in ViLD.

(1) Contexts are learnt on the teacher's vectors of boxes that cover base things more or less well, one context for each
band of overlap; vectors of the background must be far from every class. (2) Class vectors under the averaged contexts
are the rows of a detector that imitates the teacher's crops.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from emblema.core.boxes import Boxes
from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.core.method import Optim
from emblema.distill.base import Detecting, student_recipe
from emblema.engine import seed
from emblema.parts.prompts import PromptedText
from emblema.students.two_stage import TwoStage, class_logits, trained

NOTHING = -1  # label of a box that covers no thing


@dataclass(kw_only=True)
class DetPro(Detecting):
    card = Card(
        name="detpro",
        title="Learning to Prompt for Open-Vocabulary Object Detection with Vision-Language Model",
        paper="2203.14940",
        year=2022,
        section="7.1 object detection",
        equation="L = (sum_fg w_c CE(cos(f, t(V)) / 0.01, c) + w_bg sum_bg CE(cos(f, t(V)) / 0.01, 1/C)) / sum w",
        reads="PIXELS",
        needs=("boxes",),
        claim="AP50 of novel classes: DetPro > the same detector under hand-written prompts (context_length=0)",
        oracle="CE to the uniform target is KL + log C; without background and bands it is CoOp's loss",
        deviations=(
            "boxes to learn words from are base things, moved at random into each band of overlap, and proposals found "
            "by colour and shape; in the paper all are proposals of a network trained on base boxes",
            "two bands of overlap by default, five in the paper",
            "the detector is a small Faster R-CNN from scratch, as in this library's ViLD",
        ),
    )
    context_length: int = 8  # M; 0: hand-written prompts
    edges: tuple[float, ...] = (0.5, 0.75)  # of the bands; the paper: 0.5, 0.6, 0.7, 0.8, 0.9
    jitters: int = 2  # boxes moved from each base thing
    prompt_steps: int = 200
    background: int = 10  # one background vector in so many is kept
    temperature: float = 0.01
    test_temperature: float = 0.007
    image_weight: float = 256.0
    share: float = 2 / 3  # as in ViLD
    distilled: int = 10  # proposals a picture
    body: str = "tiny"
    width: int = 64
    optim: Optim = field(default_factory=lambda: student_recipe(precision="fp32", epochs=12.0))

    def build(self, teacher, class_names):
        if list(self.edges) != sorted(set(self.edges)) or not self.edges or not 0 < self.edges[0] < 1:
            raise BadData(f"edges={self.edges}: give rising overlaps between 0 and 1, the first of a thing")
        text = super().text(teacher, class_names)
        detector = TwoStage(text, self.seen(class_names), body=self.body, width=self.width)
        contexts = torch.randn(len(self.edges), self.context_length, teacher.text.width) * 0.02  # type: ignore[operator]
        return Prompted(detector, contexts)

    def text(self, teacher, class_names):
        """Under the learnt contexts, once there are any."""
        module = vars(self).get("_module")
        if module is None or not self.context_length:
            return super().text(teacher, class_names)
        with torch.no_grad():
            return ensemble(PromptedText(teacher, class_names, self.context_length), module.contexts)

    def learn(self, student, data, on_step=None):
        if self.context_length and len(data):
            base = [n for n, s in zip(self._names, student.detector.seen) if s]
            words = PromptedText(self._model.vlm, base, self.context_length)
            self.learn_words(words, student.contexts, *self.examples(data))
            words = PromptedText(self._model.vlm, self._names, self.context_length)
            student.detector.text = ensemble(words, student.contexts).detach()
        super().learn(student, data, on_step)

    def examples(self, data: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's vectors [N, D] of boxes, their labels among base classes [N] or `NOTHING`, overlaps [N]."""
        among = self.seen(self._names).cumsum(0) - 1  # number among all classes -> among base classes
        vectors, labels, overlaps = [], [], []
        for i in range(len(data)):
            batch = self.collate([data[i]])
            true: Boxes = batch.boxes[0]  # type: ignore[index]
            dice = seed.generator(self.seed, "boxes", i)
            near = torch.cat([true.xyxy, moved(true.xyxy, self.jitters, self.image_size, dice)])
            proposed = self.proposals(batch, self.distilled)
            vectors += [*self.vectors(batch, [near]), *self.vectors(batch, proposed)]  # the latter are asked for again
            boxes = torch.cat([near, *proposed])
            best, thing = box_iou(boxes, true.xyxy).max(1) if len(true) else (torch.zeros(len(boxes)), None)
            label = torch.full((len(boxes),), NOTHING)
            if thing is not None:
                covers = best >= self.edges[0]
                label[covers] = among[true.labels[thing[covers]]]  # type: ignore[index]
            labels.append(label)
            overlaps.append(best)
        f, label, overlap = torch.cat(vectors), torch.cat(labels), torch.cat(overlaps)
        some = torch.rand(len(f), generator=seed.generator(self.seed, "background")) < 1 / self.background
        kept = (label != NOTHING) | ((overlap > 0.1) & (overlap < self.edges[0]) & some)
        return f[kept], label[kept], overlap[kept]

    def learn_words(self, words: PromptedText, contexts: nn.Parameter, f: Tensor, label: Tensor, overlap: Tensor):
        """A context for each band of overlap; the background belongs to every band."""
        band = torch.bucketize(overlap, torch.tensor(self.edges[1:]), right=True)
        optimiser = torch.optim.SGD([contexts.requires_grad_(True)], lr=2e-3, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(self.prompt_steps, 1))
        for step in range(self.prompt_steps):
            losses = []
            for k, context in enumerate(contexts):
                rows = ((band == k) | (label == NOTHING)).nonzero()[:, 0]
                if (label[rows] != NOTHING).any():
                    drawn = torch.randperm(len(rows), generator=seed.generator(self.seed, "words", step, k))[:512]
                    some = rows[drawn]
                    losses.append(prompt_loss(f[some] @ words(context).T / self.temperature, label[some]))
            if not losses:
                raise BadData("no base thing among the training pictures: detpro learns its words from them")
            optimiser.zero_grad()
            torch.stack(losses).sum().backward()
            optimiser.step()
            schedule.step()
        contexts.requires_grad_(False)

    def targets(self, teacher, batch):
        regions = self.proposals(batch, self.distilled)
        return {"regions": regions, "vectors": self.vectors(batch, regions)}

    def losses(self, student, batch):
        d = student.detector
        sampled = d.sample(batch.images, batch.boxes)
        logits = class_logits(sampled.vectors, d.text, d.background, 1 / self.temperature, d.seen)
        r = F.normalize(d.embed(batch.images, sampled.maps, list(batch.targets["regions"]), image=True), dim=-1)
        v = torch.cat(list(batch.targets["vectors"]))  # [M, D] unit
        image = F.l1_loss(r, v) if len(v) else r.sum() * 0
        classes = F.cross_entropy(logits, sampled.labels)
        return sampled.losses | {"classes": classes, "image": self.image_weight * image}

    def found(self, student, images, text):
        rows = self.text(self._model.vlm, self._names)[student.detector.seen]
        return student.detector.found(images, text, 1 / self.test_temperature, trained(text, rows), self.share)


class Prompted(nn.Module):
    """A detector and the contexts [bands, M, d] of the class vectors that are its rows."""

    def __init__(self, detector: TwoStage, contexts: Tensor):
        super().__init__()
        self.detector, self.contexts = detector, nn.Parameter(contexts, requires_grad=False)


def prompt_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy to the class, or to all classes alike for `NOTHING`: [N, C], [N] -> []

    Samples weigh as one over how often their label occurs, so that each label counts alike.
    """
    said = logits.log_softmax(-1)
    cost = torch.where(label == NOTHING, -said.mean(-1), -said.gather(1, label.clamp(min=0)[:, None])[:, 0])
    weight = 1 / torch.bincount(label + 1).float()[label + 1]
    return (weight * cost).sum() / weight.sum()


def ensemble(words: PromptedText, contexts: Tensor) -> Tensor:
    """Class vectors under each context, summed and normalised: [C, D] unit"""
    return F.normalize(torch.stack([words(context) for context in contexts]).sum(0), dim=-1)


def moved(xyxy: Tensor, times: int, size: int, dice: torch.Generator) -> Tensor:
    """Each box `times` times at another place and size, some further away than others: [times * N, 4]"""
    boxes = xyxy.repeat(times, 1)
    centre, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    much = 0.3 * torch.rand(len(boxes), 1, generator=dice)
    drift, grow = ((2 * torch.rand(len(boxes), 2, generator=dice) - 1) * much for _ in range(2))
    centre, extent = centre + drift * extent, extent * (1 + grow)
    out = torch.cat([centre - extent / 2, centre + extent / 2], 1).clamp(0, size)
    return out[(out[:, 2:] - out[:, :2]).amin(1) >= 2]
