"""A CLIP training step against open_clip's loop: same architecture, start weights, batches, batch size and recipe.

    python benchmarks/train_step.py [--rounds 7] [--batch 32] [--compile] [--out results.jsonl]
    python benchmarks/train_step.py --curves [--steps 300]

ViT-S/16 at 112 px and a text tower of width 384, 12 layers each. Variants run in turn, a step each; a ratio is of two
steps of one round, and the median over rounds is reported with its range, in wall time and in CPU time (the steadier
of the two when cores are shared). The peer gets normalised floats for nothing,
ours normalises uint8 within the step. Texts are token ids for both, of 14 tokens on average and 58 at most.
The products of matrices are counted in the first step, and their rate on this processor is measured: what they alone
would give is said beside the ratios.
`--curves` trains a small model in fp32 by both loops and reports how far apart the losses ever are.
"""

from __future__ import annotations

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for both sides: spinning threads cost 4 to 5 times on shared cores

import argparse
import statistics
import time
from contextlib import nullcontext

import open_clip
import torch
from open_clip.loss import ClipLoss
from side_by_side import compare, finish, product_rates
from torch.utils.flop_counter import FlopCounterMode

from emblema.core.batch import Batch
from emblema.core.method import Optim
from emblema.encoders.text import TextConfig
from emblema.encoders.tokenizers import TextIds
from emblema.encoders.vit import ViTConfig
from emblema.engine.optimise import State, lr_at, optimise
from emblema.frameworks.two_tower import TwoTower
from emblema.pretrain.clip import CLIP

VOCABULARY, CONTEXT = 49408, 77
STEP = TwoTower(
    image=ViTConfig(image_size=112, patch_size=16, width=384, depth=12, heads=6),
    text=TextConfig(width=384, heads=6, depth=12),
    dim=512,
)
SMALL = TwoTower(
    image=ViTConfig(image_size=32, patch_size=8, width=64, depth=3, heads=2),
    text=TextConfig(width=64, heads=2, depth=3),
    dim=64,
)


class Tokenised(CLIP):
    """CLIP on token ids, so that no side is charged for its tokenizer."""

    def encoders(self, module):
        vlm = module["vlm"]
        ids = lambda batch: TextIds(batch.targets["ids"], batch.targets["length"])
        return {"image": lambda b: vlm.encode_image(b.images), "text": lambda b: vlm.encode_text(ids(b))}


def make_batch(seed: int, batch: int, size: int) -> Batch:
    """Random pictures, each with a colour, and captions of random words that begin with that colour."""
    g = torch.Generator().manual_seed(seed)
    length = (2 + torch.distributions.Exponential(1 / 12.5).icdf(torch.rand(batch, generator=g))).long().clamp(5, 58)
    if batch >= 16:
        length[0] = 58
    ids = torch.randint(1000, VOCABULARY - 2, (batch, 58), generator=g)
    label = torch.randint(0, 64, (batch,), generator=g)
    ids[:, 0], ids[:, 1] = VOCABULARY - 2, label + 1
    steps = torch.arange(58)
    ids = ids.masked_fill(steps >= length[:, None], 0)
    ids[torch.arange(batch), length - 1] = VOCABULARY - 1
    colour = torch.stack([label % 4, label // 4 % 4, label // 16], 1)[..., None, None] * 60
    noise = torch.randint(0, 70, (batch, 3, size, size), generator=g)
    images = (colour + noise).to(torch.uint8)
    return Batch(keys=[""] * batch, images=images, targets={"ids": ids[:, : int(length.max())], "length": length})


def peer_model(shape: TwoTower, ours) -> open_clip.CLIP:
    """open_clip's model with our weights."""
    image, text = shape.image, shape.text
    model = open_clip.model.CLIP(
        embed_dim=shape.dim,
        vision_cfg={
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "width": image.width,
            "layers": image.depth,
            "head_width": image.width // image.heads,
        },
        text_cfg={
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY,
            "width": text.width,
            "heads": text.heads,
            "layers": text.depth,
        },
    )
    theirs, used = model.state_dict(), set()

    def put(name, value):
        theirs[name].copy_(value)
        used.add(name)

    def blocks(prefix, tower):
        for i, b in enumerate(tower.blocks):
            at = f"{prefix}transformer.resblocks.{i}."
            put(at + "attn.in_proj_weight", b.attention.qkv.weight)
            put(at + "attn.in_proj_bias", b.attention.qkv.bias)
            pairs = {"ln_1": b.norm1, "ln_2": b.norm2, "attn.out_proj": b.attention.out}
            pairs |= {"mlp.c_fc": b.mlp[0], "mlp.c_proj": b.mlp[2]}
            for name, part in pairs.items():
                put(f"{at}{name}.weight", part.weight)
                put(f"{at}{name}.bias", part.bias)

    def norm(name, part):
        put(f"{name}.weight", part.weight)
        put(f"{name}.bias", part.bias)

    with torch.no_grad():
        put("visual.conv1.weight", ours.image.stem.weight)
        put("visual.class_embedding", ours.image.class_token)
        put("visual.positional_embedding", ours.image.positions)
        put("visual.proj", ours.image.projection)
        norm("visual.ln_pre", ours.image.norm_before)
        norm("visual.ln_post", ours.image.norm)
        norm("ln_final", ours.text.norm)
        put("token_embedding.weight", ours.text.words.weight)
        put("positional_embedding", ours.text.positions)
        put("text_projection", ours.text.projection.weight.T)
        put("logit_scale", ours.scale.log())
        blocks("visual.", ours.image)
        blocks("", ours.text)
    left = set(theirs) - used - {"attn_mask"}
    assert not left, f"weights that were not copied: {sorted(left)}"
    return model.train()


class Ours:
    """`emblema.engine.optimise`, as users run it."""

    def __init__(self, shape: TwoTower, optim: Optim, total: int, compiled: bool = False):
        self.method, self.optim, self.total, self.done = Tokenised(optim=optim), optim, total, 0
        torch.manual_seed(0)
        self.module = torch.nn.ModuleDict({"vlm": shape.build()})
        self.state = State(self.module, optim)
        self.loss = 0.0
        if compiled:
            for tower in (self.module["vlm"].image, self.module["vlm"].text):
                for block in tower.blocks:
                    block.mlp.compile(dynamic=True)
            self.module["vlm"].image.blocks.apply(lambda m: m.compile() if type(m).__name__ == "Block" else None)

    def step(self, batch: Batch) -> None:
        options = {"total_steps": self.total, "start": self.done, "state": self.state}
        optimise(self.method, self.module, [batch], self.optim, on_step=self._note, **options)
        self.done += 1

    def _note(self, step) -> None:
        self.loss = step.loss


class Peer:
    """The step of open_clip's training loop, with its flags."""

    def __init__(self, shape: TwoTower, optim: Optim, total: int, amp: bool = False, compiled: bool = False):
        torch.manual_seed(0)
        ours = shape.build()
        self.model = peer_model(shape, ours)
        self.mean, self.std = ours.image.mean, ours.image.std
        named = list(self.model.named_parameters())
        plain = lambda n, p: p.ndim < 2 or "positional" in n
        groups = [
            {"params": [p for n, p in named if plain(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not plain(n, p)], "weight_decay": optim.weight_decay},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
        self.criterion, self.optim, self.total, self.done, self.loss = ClipLoss(), optim, total, 0, 0.0
        self.autocast = (lambda: torch.autocast("cpu", torch.bfloat16)) if amp else nullcontext
        self.forward = torch.compile(self.model) if compiled else self.model
        self.ready: dict[int, tuple] = {}

    def prepare(self, batch: Batch) -> tuple:
        """What the peer's data loader would hand over: not timed."""
        ids = torch.zeros(len(batch), CONTEXT, dtype=torch.long)
        ids[:, : batch.targets["ids"].shape[1]] = batch.targets["ids"]
        return (batch.images.float() / 255 - self.mean) / self.std, ids

    def step(self, batch: Batch) -> None:
        images, texts = self.ready.pop(id(batch))
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.done, self.total, self.optim)
        self.optimizer.zero_grad()
        with self.autocast():
            out = self.forward(images, texts)
            loss = self.criterion(*out[:3])
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, 4.6052)
        self.loss = loss.item()
        self.done += 1


def run(side, batch: Batch) -> tuple[float, float]:
    """Seconds of wall time and of CPU time."""
    if isinstance(side, Peer):
        side.ready[id(batch)] = side.prepare(batch)
    wall, cpu = time.perf_counter(), time.process_time()
    side.step(batch)
    return time.perf_counter() - wall, time.process_time() - cpu


def speed(args) -> dict:
    recipe = {"clip_norm": None, "lr": 1e-4, "batch_size": args.batch}
    total = args.rounds + args.warm
    sides = {
        "open_clip fp32": Peer(STEP, Optim(**recipe), total),
        "open_clip amp_bf16": Peer(STEP, Optim(**recipe), total, amp=True),
        "ours fp32": Ours(STEP, Optim(precision="fp32", **recipe), total),
        "ours bf16": Ours(STEP, Optim(precision="bf16", **recipe), total),
    }
    if args.patch_drop:
        optim = Optim(precision="bf16", patch_drop=args.patch_drop, **recipe)
        sides[f"ours bf16, {args.patch_drop:.0%} of patches dropped"] = Ours(STEP, optim, total)
    if args.compile:
        sides["open_clip amp_bf16 + torchcompile"] = Peer(STEP, Optim(**recipe), total, amp=True, compiled=True)
        sides["ours bf16 + compile"] = Ours(STEP, Optim(precision="bf16", **recipe), total, compiled=True)
    seconds, cpu = {name: [] for name in sides}, {name: [] for name in sides}
    lengths, flops = [], {}
    for i in range(total):
        batch = make_batch(i, args.batch, 112)
        lengths += batch.targets["length"].tolist()
        for name, side in sides.items():
            counting = i == 0 and "compile" not in name
            with FlopCounterMode(display=False) if counting else nullcontext() as counter:
                took = run(side, batch)
            if counting:
                flops[name] = counter.get_total_flops()
            if i >= args.warm:
                seconds[name].append(took[0])
                cpu[name].append(took[1])
    result: dict = {"tokens": {"mean": round(statistics.mean(lengths), 1), "max": max(lengths)}, "variants": {}}
    for name, own in seconds.items():
        result["variants"][name] = {
            "pairs_per_second": round(args.batch / statistics.median(own), 1),
            "last_loss": round(sides[name].loss, 5),
        }
        if name in flops:
            result["variants"][name]["gflop"] = round(flops[name] / 1e9, 1)
    fewer = flops["open_clip fp32"] / flops["ours fp32"]
    fp32, bf16 = product_rates().values()
    result["note"] = (
        f"open_clip's step asks for {fewer:.2f} times as many operations in products of matrices, which run at "
        f"{fp32:.0f} GFLOP/s in fp32 and {bf16:.0f} in bf16 here: alone they would make ours {fewer:.2f}x open_clip "
        f"fp32 in fp32 and {fewer * bf16 / fp32:.2f}x in bf16"
    )
    peers = [n for n in seconds if n.startswith("open_clip")]
    result["comparisons"] = [
        compare(f"CLIP training step, ViT-S/16 at 112 px, {n}", seconds[n], p, seconds[p])
        for n in seconds
        for p in peers
        if n not in peers
    ]
    return result


def curves(args) -> dict:
    optim = Optim(clip_norm=None, lr=5e-4, warmup=0.1, precision="fp32", batch_size=args.batch)
    sides = [Ours(SMALL, optim, args.steps), Peer(SMALL, optim, args.steps)]
    bf16 = Ours(SMALL, Optim(**{**vars(optim), "precision": "bf16"}), args.steps)
    gaps, ours, low = [], [], []
    for i in range(args.steps):
        batch = make_batch(i, args.batch, SMALL.image.image_size)
        for side in (*sides, bf16):
            run(side, batch)
        ours.append(sides[0].loss)
        low.append(bf16.loss)
        gaps.append(abs(sides[0].loss - sides[1].loss))
    tail = args.steps // 6
    return {
        "note": f"{args.steps} steps in fp32: largest difference of the two losses {max(gaps):.1e}, "
        f"mean {statistics.mean(gaps):.1e}; mean of the last losses fp32 {statistics.mean(ours[-tail:]):.4f}, "
        f"bf16 {statistics.mean(low[-tail:]):.4f}",
        "steps": args.steps,
        "first_loss": round(ours[0], 5),
        "last_losses_ours_fp32": round(statistics.mean(ours[-tail:]), 5),
        "last_losses_ours_bf16": round(statistics.mean(low[-tail:]), 5),
        "max_difference_fp32": max(gaps),
        "max_difference_first_100": max(gaps[:100]),
        "mean_difference_fp32": statistics.mean(gaps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--patch-drop", type=float, default=0.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = curves(args) if args.curves else speed(args)
    name, notes = "train_step_curves" if args.curves else "train_step", [found.pop("note")]
    settings = {"batch": args.batch, "threads": args.threads, "open_clip": open_clip.__version__}
    finish(name, found.pop("comparisons", []), args.out, notes, **settings, **found)


if __name__ == "__main__":
    main()
