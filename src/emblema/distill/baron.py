"""BARON: a region is said in pseudo words, and a bag of neighbouring regions is a sentence about the place they share.

The frozen text tower reads the pseudo words of a region, or of all regions of a bag, and its answer is held against
class texts, or against what the teacher's image tower says of the whole place. What stands beside what is learnt so,
not only what one box shows.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.card import Card
from emblema.core.errors import BadData, PromptTooLong
from emblema.core.method import Optim
from emblema.distill.base import Detecting, student_recipe
from emblema.engine import seed
from emblema.frameworks.vlm import VLM
from emblema.parts.prompts import Borrowed, embedded
from emblema.parts.queue import FeatureQueue
from emblema.students.two_stage import TwoStage, class_logits, suppressed

MOST = 6  # regions of a bag


@dataclass(kw_only=True)
class BARON(Detecting):
    card = Card(
        name="baron",
        title="Aligning Bag of Regions for Open-Vocabulary Object Detection",
        paper="2302.13996",
        year=2023,
        section="7.1 object detection",
        equation="L = L_rpn + L_box + CE(s cos(r, t)) + w NCE(T(words_1 + p_1, .., words_G + p_G), I(hull); queues)",
        reads="PIXELS",
        needs=("boxes",),
        claim="AP50 of novel classes: BARON > the same with bags of one region (spread=0)",
        oracle="the chances of a neighbour in closed form; a bag of one is its region; without queues open_clip's loss",
        deviations=(
            "the student is a small Faster R-CNN from scratch; a ResNet-50 that starts from SoCo in the paper",
            "bags are built around things and proposals found by colour and shape, once a picture",
            "a dropped pseudo word is a vector of zeros in its place; in the code the sentence is shorter",
            "the teacher looks at a crop of the hull; the code cuts it out of the picture by RoIAlign and may restrict "
            "its attention to the regions",
            "left out: the term of single regions against the teacher's patches (weight 0.1), the variant on captions",
        ),
    )
    words: int = 4  # W, pseudo words of a region; 6 with FPN in the paper
    spread: float = 0.3  # p_0, the largest chance of a row or column of neighbours; 0: bags of one region
    power: float = 3.0  # how strongly neighbours gather along the short side
    interval: float = -0.1  # between neighbours, in sizes of the region
    orders: int = 2  # of the regions of a bag
    bag_weight: float = 1.0  # w
    bag_scale: float = 30.0
    scale: float = 50.0  # s
    queue: int = 128  # bags of earlier pictures; 1,024 in the paper
    drop: float = 0.5  # of a pseudo word while training
    distilled: int = 4  # proposals a picture around which bags are built
    body: str = "tiny"
    width: int = 64
    optim: Optim = field(default_factory=lambda: student_recipe(precision="fp32", epochs=12.0))

    def build(self, teacher, class_names):
        if not 0 <= self.spread <= 1 or not 0 <= self.drop < 1 or self.words < 1:
            raise BadData(f"spread={self.spread}, drop={self.drop}: shares from 0 to 1; words={self.words}: at least 1")
        longest = 2 + MOST * self.words
        if longest > teacher.text.context_length:  # type: ignore[operator]
            raise PromptTooLong(longest, teacher.text.context_length)  # type: ignore[arg-type]
        text, seen = self.text(teacher, class_names), self.seen(class_names)
        return Speaking(teacher, text, seen, self.words, self.queue, body=self.body, width=self.width)

    def targets(self, teacher, batch):
        """Regions of bags [N, 4], the bag of each [N], and the teacher's vectors of the bags' hulls [G, D]."""
        assert batch.images is not None and batch.boxes is not None
        proposed = self.proposals(batch, self.distilled)
        found: dict[str, list[Tensor]] = {"regions": [], "bag": [], "hulls": []}
        for key, image, true, more in zip(batch.keys, batch.images, batch.boxes, proposed):
            dice = seed.generator(self.seed, "bags", key)
            bags = [
                bag
                for box in torch.cat([true.xyxy, more])
                if len(bag := self.bag(box, image.shape[-1], dice))
            ]  # fmt: skip
            hulls = [torch.cat([b[:, :2].amin(0), b[:, 2:].amax(0)]) for b in bags]
            found["regions"].append(torch.cat(bags) if bags else torch.empty(0, 4))
            found["bag"].append(torch.tensor([i for i, b in enumerate(bags) for _ in b], dtype=torch.long))
            found["hulls"].append(torch.stack(hulls) if hulls else torch.empty(0, 4))
        return found | {"vectors": self.vectors(batch, found["hulls"], (1.0,))}

    def bag(self, box: Tensor, size: int, dice: torch.Generator) -> Tensor:
        """A box and some of its eight neighbours, itself first: [G, 4]"""
        w, h = (box[2:] - box[:2]).tolist()
        if min(w, h) < 4 or not 0.25 <= w / h <= 4:
            return box.new_empty(0, 4)
        left, right, up, down = (
            float(torch.rand((), generator=dice)) < p
            for p in chances(box, size, self.spread, self.power, self.interval)
        )
        across, along = [0, *[-1] * left, *[1] * right], [0, *[-1] * up, *[1] * down]
        step = torch.tensor([w, h]) * (1 + self.interval)
        places = [torch.tensor([i, j]) * step for j in along for i in across][:MOST]
        return torch.stack([box + torch.cat([p, p]) for p in places]).clamp(0, size)

    def losses(self, student, batch):
        sampled = student.detector.sample(batch.images, batch.boxes)
        r = student.say(self.dropped(sampled.vectors.unflatten(-1, (self.words, -1)), student, batch))
        logits = class_logits(r, student.text, student.background, self.scale, student.seen)
        losses = sampled.losses | {"classes": F.cross_entropy(logits, sampled.labels)}
        told = batch.targets
        if not self.bag_weight or not any(len(v) for v in told["vectors"]):
            return losses
        regions = list(told["regions"])
        words = student.detector.embed(batch.images, sampled.maps, regions).unflatten(-1, (self.words, -1))  # [N, W, d]
        first = torch.tensor([0, *[len(v) for v in told["vectors"]]]).cumsum(0)
        bag = torch.cat([b + first[i] for i, b in enumerate(told["bag"])])  # [N] its number in the batch
        hull = torch.cat(list(told["hulls"]))[bag]
        words = student.placed(self.dropped(words, student, batch), relative(torch.cat(regions), hull))
        v = torch.cat(list(told["vectors"]))  # [G, D]
        picture = torch.tensor([zlib.crc32(key.encode()) for key in batch.keys]).repeat_interleave(first.diff())
        z = torch.cat([student.read(words, bag, batch.generator) for _ in range(self.orders)])  # [orders G, D]
        bags = bag_loss(z, v.repeat(self.orders, 1), picture.repeat(self.orders), student.memory, self.bag_scale)
        if student.training:
            student.memory.push(z[: len(v)].detach(), v, picture)
        return losses | {"bags": self.bag_weight * bags}

    def dropped(self, words: Tensor, student: Any, batch: Any) -> Tensor:
        """Pseudo words [N, W, d] of which some are zero while training."""
        if not student.training or not self.drop:
            return words
        kept = torch.rand(words.shape[:2], generator=batch.generator) >= self.drop
        return words * kept[..., None]

    def found(self, student, images, text):
        _, boxes, vectors, _ = student.detector.look(images)
        out = []
        for xyxy, words in zip(boxes, vectors):
            r = student.say(words.unflatten(-1, (self.words, -1)))
            p = class_logits(r, text, student.background, self.scale).softmax(-1)[:, 1:]  # [N, C]
            out.append(suppressed(xyxy, p))
        return out


class Speaking(Borrowed):
    """A detector whose vectors are pseudo words, and the teacher's text tower that reads them."""

    text: Tensor
    seen: Tensor

    def __init__(self, teacher: VLM, text: Tensor, seen: Tensor, words: int, queue: int, **detector: Any):
        super().__init__(teacher)
        width = int(teacher.text.width)
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("seen", seen, persistent=False)
        self.detector = TwoStage(text.new_zeros(len(text), words * width), seen, double=False, **detector)
        self.detector.background.requires_grad_(False)  # of the words' space: nothing is compared there
        self.background = nn.Parameter(F.normalize(torch.randn(text.shape[1]), dim=0))
        self.place = nn.Sequential(nn.Linear(4 * 8, width), nn.ReLU(), nn.Linear(width, width))
        self.memory = Memory(queue, text.shape[1])

    def say(self, words: Tensor) -> Tensor:
        """What the text tower makes of sentences of pseudo words: [N, L, d] -> [N, D] unit"""
        if not len(words):
            return self.background.new_zeros(0, len(self.background))
        silence = embedded(self.vlm, [""] * len(words))  # start and end
        return self.vlm.encode_text(silence.insert(words, 1))

    def placed(self, words: Tensor, where: Tensor) -> Tensor:
        """To each pseudo word of a region [N, W, d], where the region is in its bag [N, 4]: sines, then an MLP."""
        angle = where[..., None] * math.pi * 2.0 ** torch.arange(4)  # [N, 4, 4]
        return words + self.place(torch.cat([angle.sin(), angle.cos()], -1).flatten(1))[:, None]

    def read(self, words: Tensor, bag: Tensor, dice: torch.Generator | None) -> Tensor:
        """Each bag's regions in a random order as one sentence: [N, W, d], [N] -> [G, D] unit"""
        count = torch.bincount(bag)
        order = torch.argsort(bag + torch.rand(len(bag), generator=dice))  # by bag, at random inside it
        z = words.new_empty(len(count), len(self.background))
        rows = order.split(count.tolist())
        for size in count.unique().tolist():  # sentences of one length together
            which = (count == size).nonzero()[:, 0]
            some = torch.stack([rows[i] for i in which.tolist()])  # [g, size]
            z = z.index_copy(0, which, self.say(words[some].flatten(1, 2)))
        return z


class Memory(nn.Module):
    """Bags of earlier pictures, what the student and what the teacher said of them, and their pictures."""

    picture: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.student, self.teacher = FeatureQueue(size, dim, "empty"), FeatureQueue(size, dim, "empty")
        self.register_buffer("picture", torch.full((size,), -1, dtype=torch.long))

    @torch.no_grad()
    def push(self, z: Tensor, v: Tensor, picture: Tensor) -> None:
        at = (self.student.pointer + torch.arange(len(z))) % len(self.picture)
        self.picture[at] = picture
        self.student.push(z)
        self.teacher.push(v)


def chances(box: Tensor, size: int, spread: float, power: float, interval: float = -0.1) -> tuple[float, ...]:
    """How likely a column to the left, to the right, a row above and below join a box [4] in a picture of `size`.

    spread (h / w)^power sideways and its inverse up and down, at most `spread`; 0 where the border leaves no room.
    """
    w, h = (box[2:] - box[:2]).tolist()
    sideways, upright = (spread * min(1.0, ratio**power) for ratio in (h / w, w / h))
    x1, y1, x2, y2 = box.tolist()
    room = 1 + interval
    return tuple(
        p if left >= room * side else 0.0
        for p, left, side in ((sideways, x1, w), (sideways, size - x2, w), (upright, y1, h), (upright, size - y2, h))
    )


def relative(boxes: Tensor, hull: Tensor) -> Tensor:
    """Centre, width and height of boxes [N, 4] in shares of their hulls [N, 4]: [N, 4]"""
    extent = (hull[:, 2:] - hull[:, :2]).clamp(min=1e-3)
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2 - hull[:, :2]) / extent
    return torch.cat([centre, (boxes[:, 2:] - boxes[:, :2]) / extent], 1)


def bag_loss(z: Tensor, v: Tensor, picture: Tensor, memory: Memory, scale: float) -> Tensor:
    """Symmetric InfoNCE of bags [G, D] against the teacher's [G, D], with earlier bags as further negatives.

    Other orders of the same bag are no negatives, nor are earlier bags of the same picture.
    """
    told, said = memory.teacher.read(), memory.student.read()  # [K, D]
    hidden = picture[:, None] == memory.picture[: len(told)]  # [G, K]
    own = torch.arange(len(z))
    again = ((v[:, None] - v[None]).abs().amax(-1) < 1e-7) & (own[:, None] != own)  # [G, G]
    mask = torch.cat([again, hidden], 1)
    to_teacher = (scale * z @ torch.cat([v, told]).T).masked_fill(mask, -torch.inf)
    to_student = (scale * v @ torch.cat([z, said]).T).masked_fill(mask, -torch.inf)
    return (F.cross_entropy(to_teacher, own) + F.cross_entropy(to_student, own)) / 2
