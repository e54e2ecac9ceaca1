"""A small data set, tokenizer and methods for the tests of the loop."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from emblema.core.batch import Record
from emblema.core.card import Card, DatasetCard
from emblema.core.gather import gather, rank
from emblema.core.method import Optim
from emblema.encoders.text import TextConfig
from emblema.encoders.tokenizers import TextIds
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.two_tower import TwoTower
from emblema.pretrain.base import Pretrain

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "violet", "orange")
WORDS = ["", *COLOURS, "a", "square", "of", "size", *map(str, range(100)), "<start>", "<end>"]


class Words:
    """A tokenizer of whole words."""

    vocab_size, pad_id = len(WORDS), 0

    def __call__(self, texts, context_length, *, pad_to_context=False):
        rows = [[len(WORDS) - 2, *(WORDS.index(w) for w in t.split()), len(WORDS) - 1] for t in texts]
        length = torch.tensor([len(r) for r in rows])
        ids = torch.zeros(len(rows), int(length.max()), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return TextIds(ids, length)


class Squares:
    """Coloured squares with captions; the picture of a record is made when it is asked for."""

    class_names = list(COLOURS)

    def __init__(self, n: int = 48):
        self.n = n
        self.card = DatasetCard(name="squares", title="Squares", task="image-text")

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Record:
        label = i % len(COLOURS)
        caption = f"a {COLOURS[label]} square" + (f" of size {i % 100}" if i % 3 else "")
        return Record(key=f"square-{i}", image=bytes([i % 256]), text=caption, texts=(COLOURS[label],), label=label)


def canvas(record: Record, size: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(record.image[0])
    picture = torch.randint(0, 256, (4, size, size), dtype=torch.uint8, generator=random)
    picture[:3, 2:-2, 2:-2] = torch.randint(0, 256, (3, 1, 1), dtype=torch.uint8, generator=random)
    return picture


def view(canvases: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    shift = torch.randint(0, canvases.shape[-1] - size + 1, (len(canvases),), generator=generator).tolist()
    return torch.stack([c[:3, s : s + size, s : s + size] for c, s in zip(canvases, shift)])


TINY = TwoTower(
    image=ViTConfig(image_size=16, patch_size=8, width=32, depth=2, heads=2),
    text=TextConfig(vocab_size=len(WORDS), context_length=12, width=32, depth=2, heads=2),
    dim=16,
)


class Noisy(nn.Module):
    """A layer with dropout, as adapters have."""

    def __init__(self, inner: nn.Module, p: float):
        super().__init__()
        self.inner, self.drop = inner, nn.Dropout(p)

    def forward(self, x):
        return self.drop(self.inner(x))


@dataclass(kw_only=True)
class Pairs(Pretrain):
    """CLIP with a head, further views, dropout and the step's own noise: whatever a loop can get wrong."""

    card = Card(name="pairs", title="t", paper="p", year=2024, section="s", equation="e", needs=("texts", "views"))
    views: int = 1
    dropout: float = 0.1
    batch_norm: bool = False  # in the image tower's stem
    head_norm: bool = True
    noise: float = 0.0
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, batch_size=12, precision="fp32", epochs=5))

    def build(self):
        image = TINY.image.__class__(**{**TINY.image.__dict__, "stem": "conv" if self.batch_norm else "patch"})
        vlm = TwoTower(image=image, text=TINY.text, dim=TINY.dim).build()
        vlm.text.tokenizer = Words()
        for block in (*vlm.image.blocks, *vlm.text.blocks):
            block.mlp[2] = Noisy(block.mlp[2], self.dropout) if self.dropout else block.mlp[2]
        norm = nn.BatchNorm1d(16) if self.head_norm else nn.Identity()
        return nn.ModuleDict({"vlm": vlm, "head": nn.Sequential(nn.Linear(32, 16), norm, nn.Linear(16, 8))})

    def encoders(self, module):
        vlm = module["vlm"]
        tower = vlm.image

        def noisy(batch):
            z = tower.pool(tower.transform(tower.embed(batch.views[0])))
            return z + self.noise * torch.randn(z.shape, generator=batch.generator)

        return {
            "image": lambda batch: vlm.encode_image(batch.images),
            "text": lambda batch: vlm.encode_text(batch.texts),
            "view": noisy,
        }

    def compare(self, module, z, batch):
        image, text, view = (gather(z[k].float()) for k in ("image", "text", "view"))
        own = torch.arange(len(z["image"])) + rank() * len(z["image"])
        scale = module["vlm"].scale
        logits = scale * z["image"] @ text.T, scale * z["text"] @ image.T
        contrast = sum(F.cross_entropy(x, own) for x in logits) / 2
        h = F.normalize(module["head"](z["view"]), dim=-1)
        return {
            "image_text": contrast,
            "head": 0.1 * F.cross_entropy(5 * h @ gather(h).T, own),
            "size": view.square().mean(),
        }
