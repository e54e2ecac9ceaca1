"""ViLD: a detector whose classifier is texts, and whose region vectors imitate the teacher's vectors of crops.

(1) Regions are told apart by frozen class texts and a learnt background. (2) Vectors of proposals, things or not, are
drawn to what the teacher's image tower says of the same boxes, so that classes without annotations can be named.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.core.method import Optim
from emblema.distill.base import Detecting, student_recipe
from emblema.students.two_stage import TwoStage, class_logits, trained


@dataclass(kw_only=True)
class ViLD(Detecting):
    card = Card(
        name="vild",
        title="Open-vocabulary Object Detection via Vision and Language Knowledge Distillation",
        paper="2104.13921",
        year=2022,
        section="7.1 object detection",
        equation="L = L_rpn + L_box + CE(s [cos(r, e_bg), cos(r, t)]) + w mean_m |n(r_m) - n(v_m)|_1",
        reads="PIXELS",
        needs=("boxes",),
        claim="AP50 of novel classes: ViLD with two branches > ViLD-text (image_weight=0), same steps and proposals",
        oracle="closed forms: equal branches fuse to themselves; r = v costs 0; rows at -inf are rows that are absent",
        deviations=(
            "the student is a small Faster R-CNN from scratch without masks; Mask R-CNN R50-FPN in the paper",
            "distilled boxes are found by colour and shape; in the paper by a network trained on base boxes",
            "10 of them a picture by default, 300 in the paper",
            "a short schedule with AdamW and no scale jitter; the paper trains for 180k steps with SGD",
            'novel rows have a logit of -inf in training; the code multiplies it by 0: novel_rows="zero"',
            "a class is base at test when its text is a row that was trained, so other words count as novel",
        ),
    )
    image_weight: float = 0.5  # w; 0: ViLD-text
    double: bool = True  # a head of its own for the image branch (ViLD-ensemble); False: one head for both losses
    scale: float = 100.0  # s
    novel_rows: str = "neg_inf"  # or "zero", "absent"
    share: float = 2 / 3  # exponent of the text branch for base classes, of the image branch for novel ones
    distilled: int = 10  # M, proposals a picture; 300 in the paper
    body: str = "tiny"  # or "resnet18", "mobilenet"
    width: int = 64
    optim: Optim = field(default_factory=lambda: student_recipe(precision="fp32", epochs=12.0))

    def build(self, teacher, class_names):
        if self.image_weight < 0 or not 0 <= self.share <= 1:
            raise BadData(f"image_weight={self.image_weight}, share={self.share}: a weight is >= 0, a share 0 to 1")
        double = self.double and self.image_weight > 0
        text, seen = self.text(teacher, class_names), self.seen(class_names)
        return TwoStage(text, seen, body=self.body, width=self.width, double=double)

    def targets(self, teacher, batch):
        if not self.image_weight:
            return {}
        regions = self.proposals(batch, self.distilled)
        return {"regions": regions, "vectors": self.vectors(batch, regions)}

    def losses(self, student, batch):
        sampled = student.sample(batch.images, batch.boxes)
        logits = class_logits(
            sampled.vectors, student.text, student.background, self.scale, student.seen, self.novel_rows
        )
        labels = sampled.labels
        if self.novel_rows == "absent":  # labels counted among the rows that are there
            labels = torch.cat([labels.new_zeros(1), student.seen.cumsum(0)])[labels]
        losses = sampled.losses | {"classes": F.cross_entropy(logits, labels)}
        if not self.image_weight:
            return losses
        regions, v = list(batch.targets["regions"]), torch.cat(list(batch.targets["vectors"]))  # [M', D]
        r = student.embed(batch.images, sampled.maps, regions, image=True)
        return losses | {"image": self.image_weight * imitation(r, v)}

    def found(self, student, images, text):
        base = trained(text, student.text[student.seen])
        return student.found(images, text, self.scale, base, self.share if self.image_weight else None)


def imitation(r: Tensor, v: Tensor) -> Tensor:
    """The distance between unit vectors, summed over D, a mean over regions: [M, D], [M, D] -> []"""
    if not len(v):
        return r.sum() * 0
    return (F.normalize(r, dim=-1) - F.normalize(v, dim=-1)).abs().sum(-1).mean()
