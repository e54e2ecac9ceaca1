"""CoOp and Tip-Adapter-F against the official procedure: same weights, pictures, batches and recipe.

    python benchmarks/coop.py [--rounds 5] [--bf16] [--out results.jsonl]
    python benchmarks/coop.py --curves [--out results.jsonl]

A ViT-B/32 with random weights, 100 classes with 16 pictures each in one view, CoOp with 16 words in batches of 32,
Tip-Adapter-F in batches of 256. The official step is written here as the plain loop that the authors' code runs, on
open_clip's modules with our weights: all pictures of the batch through the image tower and, for CoOp, all prompts of 77
positions through the text tower, forward and backward. It gets normalised floats for nothing, and no side is charged
for decoding. Steps take turns; a ratio is of two steps of one round, the median over rounds is reported with its
range. Ratios of whole runs come from the same rounds: our side is charged for encoding every picture once, and each
side for all its steps. "On stored features" is the plain Tip-Adapter-F loop when it encodes nothing.
`--bf16` adds both sides in bf16, for processors that have it. `--curves` trains a small model in fp32 by both loops for
the whole run, and reports how far apart losses and answers ever are: the same accuracy on equal views.
"""

from __future__ import annotations

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for both sides: spinning threads cost 4 to 5 times on shared cores

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from side_by_side import compare, finish, settings_of
from torch import Tensor, nn
from train_step import CONTEXT, SMALL, peer_model

from emblema.core.batch import Level
from emblema.core.preprocess import Preprocess
from emblema.data import catalog
from emblema.encoders.tokenizers import ClipTokenizer
from emblema.engine.encode import Encoder
from emblema.engine.inputs import Inputs
from emblema.engine.optimise import State, lr_at, optimise
from emblema.frameworks.two_tower import TwoTower, architecture
from emblema.frameworks.vlm import VLM, frozen
from emblema.parts.adapters import raw_features
from emblema.parts.prompts import clean
from emblema.transfer.base import Transfer
from emblema.transfer.coop import CoOp
from emblema.transfer.tip_adapter_f import TipAdapterF

WORDS = 16  # M
ENCODED = 32  # pictures a round that the cost of the cache is measured on
FIELDS = {"coop": CoOp(context_length=WORDS), "tip_adapter_f": TipAdapterF(views=0)}


def pictures(classes: int, shots: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise over a colour pattern of its class: uint8 [N, 3, S, S] and labels [N]."""
    g = torch.Generator().manual_seed(seed)
    patterns = torch.randint(0, 180, (classes, 3, 4, 4), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(classes).repeat_interleave(shots)
    images = torch.empty(len(labels), 3, size, size, dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        pattern = F.interpolate(patterns[label][None].float(), (size, size))[0]
        images[i] = (pattern + torch.randint(0, 70, (3, size, size), generator=g)).to(torch.uint8)
    return images, labels


def model(shape: TwoTower) -> VLM:
    torch.manual_seed(0)
    vlm = frozen(shape.build())
    vlm.text.tokenizer = ClipTokenizer()
    return vlm


class Ours:
    """A system in `emblema.engine`, as `fit` runs it, a step at a time."""

    def __init__(self, system: Transfer, encoder: Encoder, pixels: Tensor, labels: Tensor, names: list[str]):
        self.system, self.encoder, self.steps = system, encoder, system.optim.steps or 1
        parts = [encoder.encode(some, "joint") for some in pixels.split(ENCODED)]
        arrays = {name: torch.cat([part[name] for part in parts])[None] for name in parts[0]}
        keys = [str(i) for i in range(len(labels))]
        self.inputs = Inputs(encoder, Level.POOLED, system.card.name, arrays, labels, keys, names, {})
        torch.manual_seed(0)
        self.module: Any = system.build(encoder.vlm, names)
        if isinstance(system, TipAdapterF):
            self.module.fill(raw_features(arrays), labels)
        self.state, self.loss = State(self.module, system.optim, system.rate), 0.0

    def step(self, number: int, rows: Tensor) -> None:
        optimise(
            self.system,
            self.module,
            [self.inputs.batch(rows)],
            self.system.optim,
            total_steps=self.steps,
            epoch_steps=self.inputs.epoch_steps(self.system.optim.batch_size),
            start=number,
            state=self.state,
            on_step=self._note,
        )

    def _note(self, step: Any) -> None:
        self.loss = step.loss

    @torch.no_grad()
    def answers(self) -> Tensor:
        return torch.cat([self.system.logits(self.module, batch) for batch in self.inputs.in_order()]).argmax(-1)


class Official:
    """The plain loop: `logits(images)` is computed anew, with all that it takes, at every step."""

    parameter: nn.Parameter

    def __init__(self, ours: Ours, clip: nn.Module, pixels: Tensor, labels: Tensor, bf16: bool = False):
        self.clip, self.pixels, self.labels, self.steps, self.loss = clip, pixels, labels, ours.steps, 0.0
        self.optim, self.epoch_steps = ours.system.optim, ours.inputs.epoch_steps(ours.system.optim.batch_size)
        tower: Any = ours.encoder.vlm.image
        self.mean, self.std, self.scale = tower.mean, tower.std, ours.encoder.vlm.scale.detach()
        self.autocast = (lambda: torch.autocast("cpu", torch.bfloat16)) if bf16 else nullcontext
        self.start(ours)
        self.optimizer = self.made()

    def start(self, ours: Ours) -> None:
        raise NotImplementedError

    def made(self) -> torch.optim.Optimizer:
        raise NotImplementedError

    def logits(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def shown(self, rows: Tensor) -> Tensor:
        """What the official data loader would hand over: not timed."""
        return (self.pixels[rows].float() / 255 - self.mean) / self.std

    def step(self, number: int, images: Tensor, rows: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(number, self.steps, self.optim, self.epoch_steps)
        with self.autocast():
            loss = F.cross_entropy(self.logits(images).float(), self.labels[rows])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = loss.item()

    @torch.no_grad()
    def answers(self) -> Tensor:
        rows = torch.arange(len(self.labels)).split(128)
        return torch.cat([self.logits(self.shown(some)) for some in rows]).argmax(-1)


class OfficialCoOp(Official):
    """All prompts at all 77 positions, every picture again; the picture's features keep no graph, as nothing learns."""

    def start(self, ours: Ours) -> None:
        tokenizer: Any = ours.encoder.vlm.text.tokenizer
        texts = [f"{' '.join('X' * WORDS)} {clean(name)}." for name in ours.inputs.class_names]
        self.ids = tokenizer(texts, CONTEXT, pad_to_context=True).ids  # [C, 77]
        with torch.no_grad():
            x = self.clip.token_embedding(self.ids)  # [C, 77, d]
        self.prefix, self.suffix = x[:, :1], x[:, 1 + WORDS :]
        self.parameter = nn.Parameter(ours.module.prompt.context.detach().clone())  # [M, d]

    def made(self) -> torch.optim.Optimizer:
        o = self.optim
        return torch.optim.SGD([self.parameter], lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay)

    def logits(self, images: Tensor) -> Tensor:
        z = F.normalize(self.clip.encode_image(images), dim=-1)  # [B, D]
        context = self.parameter.expand(len(self.ids), -1, -1)
        x = torch.cat([self.prefix, context, self.suffix], 1) + self.clip.positional_embedding
        x = self.clip.ln_final(self.clip.transformer(x, attn_mask=self.clip.attn_mask))  # [C, 77, d]
        ends = x[torch.arange(len(x)), self.ids.argmax(-1)]
        t = F.normalize(ends @ self.clip.text_projection, dim=-1)  # [C, D]
        return self.scale * z @ t.T


class OfficialTip(Official):
    """Pictures are encoded at every step without gradient, then compared with all keys."""

    def start(self, ours: Ours) -> None:
        self.hand, self.values = ours.module.hand, ours.module.values
        self.alpha, self.beta = float(ours.module.alpha), float(ours.module.beta)
        self.parameter = nn.Parameter(ours.module.keys.detach().clone())  # [N, D]

    def made(self) -> torch.optim.Optimizer:
        o = self.optim
        return torch.optim.AdamW([self.parameter], lr=o.lr, eps=o.eps, betas=o.betas, weight_decay=o.weight_decay)

    def features(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return F.normalize(self.clip.encode_image(images), dim=-1).float()

    def logits(self, images: Tensor) -> Tensor:
        z = self.features(images)  # [B, D]
        affinity = z @ self.parameter.T  # [B, N]
        return self.scale * z @ self.hand.T + self.alpha * ((-self.beta) * (1 - affinity)).exp() @ self.values


class StoredTip(OfficialTip):
    """The same loop when somebody has stored the features."""

    def start(self, ours: Ours) -> None:
        super().start(ours)
        self.stored = ours.inputs.arrays["pooled"][0]

    def shown(self, rows: Tensor) -> Tensor:
        return self.stored[rows]

    def features(self, images: Tensor) -> Tensor:
        return images


def order(count: int, batch: int, steps: int) -> Iterator[tuple[int, Tensor]]:
    """(step, rows): shuffled epochs, the incomplete last batch dropped."""
    per_epoch = max(count // batch, 1)
    for number in range(steps):
        if number % per_epoch == 0:
            rows = torch.randperm(count, generator=torch.Generator().manual_seed(number))
        place = number % per_epoch
        yield number, rows[place * batch : (place + 1) * batch]


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def speed(args: Any) -> dict[str, Any]:
    shape = architecture("vit-b-32")
    vlm, size = model(shape), 224
    clip = peer_model(shape, vlm).eval().requires_grad_(False)
    pixels, labels = pictures(args.classes, args.shots, size)
    names = list(catalog.load("emblem-objects").class_names)[: args.classes]
    kinds = ["fp32", "bf16"] if args.bf16 else ["fp32"]
    encoders = {k: Encoder(vlm, Preprocess(size=size), precision=k, batch_size=ENCODED) for k in kinds}
    comparisons, runs = [], {}
    for name, official in (("coop", OfficialCoOp), ("tip_adapter_f", OfficialTip)):
        optim = FIELDS[name].optim
        batch = min(optim.batch_size, len(labels))
        steps = max(round(optim.epochs * (len(labels) // batch)), 1)
        ours, peers = {}, {}
        for kind in kinds:
            system = replace(FIELDS[name], optim=replace(optim, precision=kind, steps=steps, batch_size=batch))
            ours[f"emblema {kind}"] = own = Ours(system, encoders[kind], pixels, labels, names)
            peers[f"official {kind}"] = official(own, clip, pixels, labels, bf16=kind == "bf16")
        if name == "tip_adapter_f":
            peers["plain loop on stored features"] = StoredTip(ours["emblema fp32"], clip, pixels, labels)
        seconds: dict[str, list[float]] = {n: [] for n in [*ours, *peers]}
        encoding: dict[str, list[float]] = {n: [] for n in ours}  # of all pictures
        for number, rows in order(len(labels), batch, min(args.warm + args.rounds, steps)):
            for n, side in ours.items():
                some = pixels[rows[:ENCODED]]
                spent = timed(partial(side.encoder.encode, some, "joint"))
                took = timed(partial(side.step, number, rows))
                if number >= args.warm:
                    encoding[n].append(spent * len(labels) / len(some))
                    seconds[n].append(took)
            for n, side in peers.items():
                images = side.shown(rows)
                took = timed(partial(side.step, number, images, rows))
                if number >= args.warm:
                    seconds[n].append(took)
        whole = {n: [steps * s + e for s, e in zip(seconds[n], encoding[n])] for n in ours}
        for n in peers:  # Tip-Adapter-F fills its cache once, whoever runs it
            fills = encoding["emblema fp32"] if name == "tip_adapter_f" else [0.0] * len(seconds[n])
            whole[n] = [steps * s + e for s, e in zip(seconds[n], fills)]
        where = f"{args.classes} classes x {args.shots} pictures, ViT-B/32"
        for own in ours:
            for peer in peers:
                comparisons.append(compare(f"{name} step, {where}, {own}", seconds[own], peer, seconds[peer]))
                comparisons.append(
                    compare(f"{name} run of {steps} steps, {where}, {own}", whole[own], peer, whole[peer])
                )
        apart = abs(ours["emblema fp32"].loss - peers["official fp32"].loss)
        runs[name] = {"steps": steps, "batch": batch, "last_losses_apart_fp32": apart}
        runs[name]["encoding_seconds"] = {n: round(statistics.median(e), 2) for n, e in encoding.items()}
    return {"comparisons": comparisons, "runs": runs}


def curves(args: Any) -> dict[str, Any]:
    """Whole runs of a small model by both loops."""
    vlm = model(SMALL)
    size = SMALL.image.image_size
    clip = peer_model(SMALL, vlm).eval().requires_grad_(False)
    pixels, labels = pictures(args.classes, args.shots, size)
    names = list(catalog.load("emblem-objects").class_names)[: args.classes]
    encoder = Encoder(vlm, Preprocess(size=size), precision="fp32")
    found, notes = {}, []
    for name, official in (("coop", OfficialCoOp), ("tip_adapter_f", OfficialTip)):
        optim = FIELDS[name].optim
        batch = min(optim.batch_size, len(labels))
        steps = args.steps or max(round(optim.epochs * (len(labels) // batch)), 1)
        system = replace(FIELDS[name], optim=replace(optim, precision="fp32", steps=steps, batch_size=batch))
        ours = Ours(system, encoder, pixels, labels, names)
        peer = official(ours, clip, pixels, labels)
        gaps, first = [], 0.0
        for number, rows in order(len(labels), batch, steps):
            ours.step(number, rows)
            peer.step(number, peer.shown(rows), rows)
            gaps.append(abs(ours.loss - peer.loss))
            first = first or ours.loss
        right = {n: float((side.answers() == labels).float().mean()) for n, side in (("ours", ours), ("peer", peer))}
        same = float((ours.answers() == peer.answers()).float().mean())
        found[name] = {"steps": steps, "first_loss": first, "last_loss": ours.loss, "accuracy": right}
        found[name] |= {"max_difference": max(gaps), "same_answers": same}
        notes.append(
            f"{name}, {steps} steps in fp32: losses differ by at most {max(gaps):.1e}, accuracy on the training "
            f"pictures {right['ours']:.4f} and {right['peer']:.4f}, the same answer for {same:.2%}"
        )
    return {"notes": notes, "runs": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--steps", type=int, default=0, help="of --curves; 0: the systems' own epochs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = curves(args) if args.curves else speed(args)
    name = "coop_curves" if args.curves else "coop"
    settings = settings_of(args) | {"open_clip": open_clip.__version__}
    finish(name, found.pop("comparisons", []), args.out, found.pop("notes", []), settings=settings, **found)


if __name__ == "__main__":
    main()
