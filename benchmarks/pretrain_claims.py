"""Claims of pre-training papers under protocol P: same pairs, order, steps, batch and start weights; three seeds.

    python benchmarks/pretrain_claims.py                  # all claims; arms that were run before are not run again
    python benchmarks/pretrain_claims.py --claims otter   # some of them

An *arm* is a system with its fields on some data; it is trained from the seed's start weights and scored once. Claims
share arms (CLIP's is run once a seed). Scores are kept in runs/claims/, lines go to benchmarks/results/pretrain.jsonl.
Pictures scored are those of art families that no arm was trained on; nothing is selected on them.

To add a claim: an `Arm` for each side, where it is not there yet, and a `Claim` that names both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from emblema.core.batch import Level, Record
from emblema.core.find import find
from emblema.core.method import Optim
from emblema.data import catalog
from emblema.data.captioned import Captioned, names_in
from emblema.data.pictures import load_batch
from emblema.data.templates import fill
from emblema.encoders.text import TextConfig
from emblema.encoders.vit import ViTConfig
from emblema.engine import checkpoint
from emblema.engine.train import preprocess_of, run_pretraining
from emblema.frameworks.two_tower import ARCHITECTURES, TwoTower
from emblema.frameworks.vlm import VLM
from emblema.model import Model
from emblema.objectives.late_interaction import late_interaction
from emblema.parts.decoder import next_words
from emblema.parts.views import Views
from emblema.report import claims
from emblema.tasks.dense_metrics import confusion, mean_iou
from emblema.tasks.detection import Detection
from emblema.tasks.linear_probe import LinearProbe
from emblema.tasks.protocols import Protocol
from emblema.tasks.zero_shot import ZeroShot

HERE = Path(__file__).parent
ARCHITECTURES["claims"] = TwoTower(  # small enough for three seeds of a dozen arms on one core
    image=ViTConfig(image_size=48, patch_size=16, width=128, depth=3, heads=2, stem="conv"),
    text=TextConfig(vocab_size=4096, context_length=24, width=128, depth=2, heads=2),
    dim=64,
)
SEEDS = (0, 1, 2)
OPTIM = Optim(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6, batch_size=128)  # of every arm
STEPS = 400
GROUPS = ("animals-nature", "food-drink")
TEMPLATES = ("{}", "a {}", "the {}", "one {}", "my {}", "icon of a {}", "drawing of a {}", "a small {}")


# -- data ----------------------------------------------------------------------------------------------------


@cache
def emblems(split: str) -> Any:
    """Drawings of animals and food with one caption each."""
    return catalog.load("emblems").where(split=split, kind="emoji", group=GROUPS)


def pairs() -> Captioned:
    """A caption comes bare or in one of the templates, drawn at each access."""
    return Captioned(emblems("train"), lambda record, _: phrased(record, record.text or ""))


def phrased(record: Record, text: str, **changes: Any) -> Record:
    bare, *more = [fill(t, text) for t in TEMPLATES]
    return replace(record, text=bare, texts=tuple(more), **changes)


def mismatched(share: float = 0.3) -> Captioned:
    """The same with a share of the captions dealt to other pictures, the same in every run."""
    records = emblems("train")
    texts, g = records.column("text"), torch.Generator().manual_seed(0)
    moved = torch.randperm(len(records), generator=g)[: int(share * len(records))].tolist()
    texts = dict(zip(moved, (texts[i] for i in moved[1:] + moved[:1])))
    return Captioned(records, lambda record, i: phrased(record, texts.get(i, record.text or "")))


def half_labelled(labels: bool) -> Captioned:
    """Half of the concepts are classes, named in templates; pictures of the others have their bare caption."""
    records = emblems("train")
    concepts = records.column("concept")
    number = {c: i for i, c in enumerate(sorted(set(concepts))) if zlib.crc32(c.encode()) % 2}

    def change(record: Record, i: int) -> Record:
        if concepts[i] not in number:
            return replace(record, texts=(), label=None)
        return phrased(record, record.text or "", label=number[concepts[i]] if labels else None)

    return Captioned(records, change)


def in_english() -> Any:
    """The half of the pictures to which KELIP gives English names."""
    records = emblems("train")
    return records.subset([i for i, key in enumerate(records.keys) if zlib.crc32(key.encode()) % 2 == 0])


@cache
def objects(split: str) -> Any:
    """The same concepts with class labels."""
    records = catalog.load("emblem-objects")
    inside = {n for n, g in zip(records.labels, records.column("group")) if g in ("animals", "food")}
    return records.only_classes(sorted(n for n in inside if n is not None)).split(split)


# -- scores --------------------------------------------------------------------------------------------------


def model_of(vlm: VLM) -> Model:
    return Model(vlm, preprocess_of(vlm), TEMPLATES, precision="fp32", cache=False, threads=1)


def zero_shot(vlm: VLM, templates: tuple[str, ...] = TEMPLATES) -> float:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "claims.txt"
        file.write_text("\n".join(templates), encoding="utf-8")
        return ZeroShot(resamples=1, templates=str(file)).run(model_of(vlm), objects("test")).metrics["top1"].value


def bare_name(vlm: VLM) -> float:
    return zero_shot(vlm, ("{}",))


def linear_probe(vlm: VLM) -> float:
    task = LinearProbe(resamples=1, c_path=(1.0, 10.0, 100.0))
    return task.run(model_of(vlm), objects("test"), train=objects("train")).metrics["top1"].value


def recall(vlm: VLM, k: int, late: bool = False) -> float:
    """R@k between held-out pictures and captions, mean of both directions; every picture of a caption is right."""
    records, model = emblems("test"), model_of(vlm)
    texts = list(dict.fromkeys(records.column("text")))
    right = torch.tensor([[t == own for t in texts] for own in records.column("text")])  # [N, M]
    if late:
        to_text, to_image = _late(vlm, model, records, texts)
    else:
        to_text = to_image = model.features(records) @ model.embed_texts(texts).T  # [N, M]
    return (hits(to_text, right, k) + hits(to_image.T, right.T, k)) / 2


@torch.inference_mode()
def _late(vlm: VLM, model: Model, records: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    w, real = vlm.encode_words(texts)
    return late_interaction(model.features(records, Level.PATCHES).flatten(1, 2), w, real)


def hits(scores: Tensor, right: Tensor, k: int) -> float:
    """Share of rows whose best right answer is among the first k; ties count against it."""
    best = scores.masked_fill(~right, -torch.inf).max(1).values - 1e-6
    wrong = ((scores >= best[:, None]) & ~right).sum(1)
    return (wrong < k).double().mean().item()


def across_languages(vlm: VLM, k: int = 5) -> float:
    """Korean name -> nearest held-out picture -> its k nearest English names; right when the concept is the same."""
    records, model = emblems("test"), model_of(vlm)
    korean, english = names_in("ko"), names_in("en")
    concepts = sorted({c for c in records.column("concept") if c in korean})
    index = {c: i for i, c in enumerate(concepts)}
    z_ko, z_en = (model.embed_texts([names[c][0] for c in concepts]) for names in (korean, english))
    z_image = model.features(records)
    picture = (z_ko @ z_image.T).argmax(1)  # [C]
    near = (z_image[picture] @ z_en.T).topk(k).indices  # [C, k]
    return (near == torch.arange(len(index))[:, None]).any(1).double().mean().item()


def chance_across_languages(vlm: VLM) -> float:
    return 5 / len({c for c in emblems("test").column("concept") if c in names_in("ko")})


def english_recall(vlm: VLM) -> float:
    """R@5 with the English names that KELIP reads."""
    records, model, names = emblems("test"), model_of(vlm), names_in("en")
    concepts = records.column("concept")
    texts = sorted({names[c][0] for c in concepts})
    right = torch.tensor([[names[c][0] == t for t in texts] for c in concepts])
    scores = model.features(records) @ model.embed_texts(texts).T
    return (hits(scores, right, 5) + hits(scores.T, right.T, 5)) / 2


# -- arms and claims -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A system with its fields, and the data it learns from."""

    system: str
    data: Callable[[], Any] = pairs
    fields: dict[str, Any] = field(default_factory=dict)
    view: bool = True  # the picture itself is varied as for CLIP; False: as the system says
    heads: tuple[str, ...] = ()  # what stands beside the model in training and is scored too


@dataclass(frozen=True)
class Claim:
    """`better` and `than` are (arm, score of a trained model); `margin` is added to the first."""

    system: str
    text: str
    metric: str
    better: tuple[str, Callable[[VLM], float]]
    than: tuple[str, Callable[[VLM], float]]
    data: str
    margin: float = 0.0


def r1(vlm: VLM) -> float:
    return recall(vlm, 1)


def r5(vlm: VLM) -> float:
    return recall(vlm, 5)


def token_wise_r1(vlm: VLM) -> float:
    return recall(vlm, 1, late=True)


def reranked_r1(vlm: VLM, most: int = 10) -> float:
    """R@1 of both directions where the ten best of contrast are put in the order of the matching head."""
    records, model = emblems("test"), model_of(vlm)
    texts = list(dict.fromkeys(records.column("text")))
    right = torch.tensor([[t == own for t in texts] for own in records.column("text")])  # [N, M]
    to_text = model.features(records) @ model.embed_texts(texts).T  # [N, M]
    pictures: list[Any] = [records[i].image for i in range(len(records))]
    pixels = load_batch(pictures, model.preprocess, threads=1)[0]

    def first_right(scores: Tensor, right: Tensor, by_text: bool = False) -> float:
        best = scores.topk(most, 1).indices  # [Q, 10]
        query = torch.arange(len(best))[:, None].expand_as(best)
        image, text = (best, query) if by_text else (query, best)
        with torch.inference_mode():
            sure = [
                vlm.match(pixels[i], [texts[j] for j in t.tolist()])[:, 1]  # type: ignore[operator]
                for i, t in zip(image.flatten().split(256), text.flatten().split(256))
            ]
        chosen = best.gather(1, torch.cat(sure).view_as(best).argmax(1, keepdim=True))
        return right.gather(1, chosen).double().mean().item()

    return (first_right(to_text, right) + first_right(to_text.T, right.T, by_text=True)) / 2


def two_way(vlm: VLM, matching: bool) -> float:
    """How often a held-out picture's own caption is surer than a wrong one of its group that shares its words."""
    records, model = emblems("test"), model_of(vlm)
    texts, groups = records.column("text"), records.column("group")
    wrong = [hard_wrong(text, group, texts, groups) for text, group in zip(texts, groups)]
    if not matching:
        z, own, other = model.features(records), *(model.embed_texts(said) for said in (texts, wrong))
        return ((z * own).sum(1) > (z * other).sum(1)).double().mean().item()
    pictures: list[Any] = [records[i].image for i in range(len(records))]
    pixels = load_batch(pictures, model.preprocess, threads=1)[0]
    sure = []
    with torch.inference_mode():
        for said in (texts, wrong):
            rows = range(0, len(said), 256)
            pooled = torch.cat([vlm.encode_pair(pixels[i : i + 256], said[i : i + 256]).pooled for i in rows])  # type: ignore[operator]
            sure.append(vlm.matching(pooled)[:, 1])  # type: ignore[operator]
    return (sure[0] > sure[1]).double().mean().item()


def hard_wrong(text: str, group: str, texts: list[str], groups: list[str]) -> str:
    """Another caption of the group: the one that shares most words, the first in the order of a hash among equals."""
    words = set(text.split())
    others = {t for t, g in zip(texts, groups) if g == group and t != text}
    return max(sorted(others), key=lambda t: (len(words & set(t.split())), zlib.crc32(f"{text} {t}".encode())))


def by_matching(vlm: VLM) -> float:
    return two_way(vlm, matching=True)


def by_contrast(vlm: VLM) -> float:
    return two_way(vlm, matching=False)


def caption_nats(vlm: VLM, shift: int = 0) -> float:
    """Minus the nats a word that captions cost, each written about the picture `shift` places on."""
    records, model = emblems("test"), model_of(vlm)
    chosen: list[Any] = [records[i] for i in range(0, len(records), max(len(records) // 256, 1))][:256]
    pixels = load_batch([r.image for r in chosen], model.preprocess, threads=1)[0]
    with torch.inference_mode():
        ids = vlm.text.tokenize([r.text or "" for r in chosen])  # type: ignore[operator]
        logits = vlm.encode_pair(pixels.roll(shift, 0), ids)[2]  # type: ignore[operator]
        total, words = next_words(logits, ids.ids, ids.length).sum(0)
    return -float(total / words)


def caption_nats_of_others(vlm: VLM) -> float:
    return caption_nats(vlm, shift=7)


def scene_iou(vlm: VLM) -> float:
    """Mean IoU of maps from class names over the things in scenes (what is no thing does not count)."""
    scenes, model = catalog.load("emblem-scenes").split("test"), model_of(vlm)
    words = model.class_vectors(scenes.class_names)
    matrix = torch.zeros(len(words), len(words))
    for record in (scenes[i] for i in range(100)):
        assert record.mask is not None
        picture: Any = record.image
        pixels = load_batch([picture], replace(model.preprocess, mode="squash"), threads=1)[0]
        with torch.inference_mode():
            scores = (vlm.encode_patches(pixels) @ words.T).permute(0, 3, 1, 2)  # [1, C, h, w]
        truth = record.mask.labels
        scores = torch.nn.functional.interpolate(scores, truth.shape, mode="bilinear", align_corners=False)
        matrix += confusion(scores[0].argmax(0), truth, len(words))
    return float(mean_iou(matrix))


def scenes() -> Any:
    return catalog.load("emblem-scenes").split("train")


def coloured_scenes() -> Any:
    """Scenes whose classes are a colour and a thing: "red car"."""
    return catalog.load("emblem-scenes-pairs").split("train")


def attribute_ap50(vlm: VLM) -> float:
    """AP50 on scenes that show a thing in two colours, so that only the attribute tells which is meant."""
    scenes = catalog.load("emblem-scenes-pairs").split("test")
    things = [name.split(" ", 1)[1] for name in scenes.class_names]

    def ambiguous(labels: tuple[int, ...]) -> bool:
        return len({things[n] for n in labels}) < len(labels)

    chosen = [i for i in range(400) if ambiguous(scenes[i].labels)]
    return Detection(resamples=1, images=0).run(model_of(vlm), scenes.subset(chosen)).metrics["AP50"].value


ARMS = {
    "clip": Arm("clip"),
    "slip": Arm("slip"),
    "declip": Arm("declip", fields={"bank": 4096}, view=False),
    "otter": Arm("otter", mismatched),
    "infonce, mismatched": Arm("otter", mismatched, {"alpha": 1.0}),
    "filip": Arm("filip"),
    "unicl": Arm("unicl", lambda: half_labelled(True)),
    "unicl without labels": Arm("unicl", lambda: half_labelled(False)),
    "kelip": Arm("kelip", lambda: emblems("train")),
    "kelip, English half": Arm("kelip", in_english, {"languages": ("en",)}),
    "clippo": Arm("clippo"),
    "coca": Arm("coca"),
    "fiber": Arm("fiber"),
    "flava": Arm("flava", heads=("matching",)),
    "groupvit": Arm("groupvit", scenes, {"groups": (8, 4)}),
    "clip on scenes": Arm("clip", scenes),
    "glip": Arm("glip", coloured_scenes, {"side": 3.0}, view=False),
    "glip, late fusion": Arm("glip", coloured_scenes, {"side": 3.0, "fusion": False}, view=False),
}
SCENES = "emblem-scenes: 100 scenes of the test split"
COLOURED = "emblem-scenes-pairs: those of 400 scenes of the test split that show a thing in two colours"
OBJECTS, CAPTIONS = (
    "emblem-objects: animals and food, held-out families",
    "emblems: animals and food, held-out families",
)
CLAIMS = {
    "clip": Claim("clip", "an ensemble of 8 templates >= the bare class name (zero-shot)", "top1",
                  ("clip", zero_shot), ("clip", bare_name), OBJECTS),
    "slip": Claim("slip", "SLIP's linear probe beats CLIP's", "top1",
                  ("slip", linear_probe), ("clip", linear_probe), OBJECTS),
    "declip": Claim("declip", "DeCLIP > CLIP (zero-shot)", "top1", ("declip", zero_shot), ("clip", zero_shot), OBJECTS),
    "otter": Claim("otter", "with 30 % of the pairs mismatched, OTTER > InfoNCE (retrieval on clean pairs)", "R@5",
                   ("otter", r5), ("infonce, mismatched", r5), CAPTIONS),
    "filip": Claim("filip", "token-wise retrieval of FILIP > global retrieval of CLIP", "R@1",
                   ("filip", token_wise_r1), ("clip", r1), CAPTIONS),
    "unicl": Claim("unicl", "labels and captions: UniCL > the same batches without labels, which is CLIP (zero-shot)",
                   "top1", ("unicl", zero_shot), ("unicl without labels", zero_shot), OBJECTS),
    "kelip": Claim("kelip", "Korean name -> picture -> English name is above chance", "R@5",
                   ("kelip", across_languages), ("kelip", chance_across_languages), CAPTIONS),
    "kelip-half": Claim("kelip", "two languages on halves >= one language on its half (retrieval by English names)",
                        "R@5", ("kelip", english_recall), ("kelip, English half", english_recall), CAPTIONS),
    "clippo": Claim("clippo", "one tower is within 5 points of two towers (retrieval; 5 points are added to its score)",
                    "R@1", ("clippo", r1), ("clip", r1), CAPTIONS, margin=0.05),
    "coca": Claim("coca", "CoCa >= CLIP (zero-shot)", "top1", ("coca", zero_shot), ("clip", zero_shot), OBJECTS),
    "coca-captions": Claim("coca", "a caption costs fewer nats a word with its own picture than with another one",
                           "minus nats", ("coca", caption_nats), ("coca", caption_nats_of_others), CAPTIONS),
    "flava": Claim("flava", "own caption or a hard wrong one: FLAVA's matching head > CLIP's contrast", "accuracy",
                   ("flava", by_matching), ("clip", by_contrast), CAPTIONS),
    "fiber": Claim("fiber", "the ten best of contrast in the order of the matching head > contrast alone", "R@1",
                   ("fiber", reranked_r1), ("fiber", r1), CAPTIONS),
    "groupvit": Claim("groupvit", "masks from class names: GroupViT's groups > CLIP's patch similarity (mean IoU)",
                      "mIoU", ("groupvit", scene_iou), ("clip on scenes", scene_iou), SCENES),
    "glip": Claim("glip", "phrases that need an attribute: deep fusion > late fusion (AP50)", "AP50",
                  ("glip", attribute_ap50), ("glip, late fusion", attribute_ap50), COLOURED),
}  # fmt: skip


# -- running -------------------------------------------------------------------------------------------------


def scores_of(name: str, wanted: set[Callable[[VLM], float]], seed: int, folder: Path, steps: int) -> dict[str, Any]:
    """Train an arm, unless its scores are in the folder: {score: value, "seconds", "parameters"}."""
    arm = ARMS[name]
    settings = f"{arm.system} {arm.fields} {arm.view} {ARCHITECTURES['claims']} {OPTIM} {GROUPS} {TEMPLATES} {steps}"
    mark = f"{zlib.crc32(settings.encode()):08x}"
    path = folder / f"{name.replace(' ', '-').replace(',', '')}-{seed}-{mark}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept and all(score.__name__ in kept for score in wanted):
        return kept
    began = time.perf_counter()
    method = find("pretrain", arm.system)(arch="claims", optim=OPTIM, **arm.fields)
    options: dict[str, Any] = {"view": Views()} if arm.view else {}
    options |= {"steps": steps, "random_seed": seed, "quiet": True, "progress": False, "threads": 1}
    with tempfile.TemporaryDirectory() as run:
        vlm = run_pretraining(method, arm.data(), run if arm.heads else None, **options)
        for head in arm.heads:
            state = load_file(checkpoint.latest(Path(run)) / "model.safetensors")  # type: ignore[operator]
            own = {n.removeprefix(f"{head}."): t.clone() for n, t in state.items() if n.startswith(f"{head}.")}
            built = method.build()[head].eval()
            built.load_state_dict(own)
            object.__setattr__(vlm, head, built)  # beside the model, as in training
    found: dict[str, Any] = {"seconds": time.perf_counter() - began}
    found |= {"parameters": sum(p.numel() for p in vlm.parameters())}
    found |= {score.__name__: score(vlm) for score in sorted(wanted, key=lambda s: s.__name__)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    print(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}: {found}", flush=True)
    return found


def run(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """The line of a claim."""
    claim = CLAIMS[name]
    sides = (claim.better, claim.than)
    wanted = {a: {s for c in CLAIMS.values() for b, s in (c.better, c.than) if b == a} for a, _ in sides}
    found = {a: [scores_of(a, wanted[a], seed, folder, steps) for seed in SEEDS] for a in wanted}
    label = [a if claim.better[0] != claim.than[0] else f"{a}: {s.__name__}" for a, s in sides]
    values = [[f[s.__name__] for f in found[a]] for a, s in sides]
    if claim.margin:
        label[0], values[0] = f"{label[0]} + {claim.margin}", [v + claim.margin for v in values[0]]
    budget = {
        "pairs": len(emblems("train")),
        "steps": steps,
        "batch": OPTIM.batch_size,
        "parameters": {a: f[0]["parameters"] for a, f in found.items()},
        "fields": {a: ARMS[a].fields for a in found},
        "seconds": {a: round(sum(x["seconds"] for x in f) / len(f), 1) for a, f in found.items()},
    }
    protocol = Protocol(
        name=f"P/{claim.metric}/animals-food/test",
        task="claim",
        data=claim.data,
        split="test",
        metric=claim.metric,
        seeds=SEEDS,
        options={"steps": steps, "batch": OPTIM.batch_size, "groups": GROUPS, "templates": TEMPLATES},
    )
    return claims.claim_line(
        family="pretrain",
        system=claim.system,
        claim=claim.text,
        protocol=protocol,
        metric=claim.metric,
        arms={a: {claim.data: v} for a, v in zip(label, values)},
        better=label[0],
        than=label[1],
        seeds=SEEDS,
        model="claims, 48 px",
        weights="random, one draw a seed",
        budget=budget,
        seconds=sum(x["seconds"] for f in found.values() for x in f),
        command=f"python benchmarks/pretrain_claims.py --claims {name} --steps {steps}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--claims", nargs="+", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "claims", help="scores of arms")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "pretrain.jsonl")
    options = parser.parse_args()
    for name in options.claims:
        line = run(name, options.work, options.steps)
        claims.replace(options.out, line, ("system", "claim", "metric"))
        print(f"== {line['system']}: {line['claim']}: {line['verdict']} {line['difference']}", flush=True)


if __name__ == "__main__":
    main()
