"""What holds the default model back on drawings of families it never saw: its pictures, or its words?

    python benchmarks/default_limits.py
    python benchmarks/default_limits.py --model runs/default-clean     # after recipes/default_model.py --clean

Classifiers share the model's picture vectors and differ in what stands for a class:

    class names              its name in the data set's templates: zero-shot
    training captions        the mean of the captions that its training pictures have: how much is a matter of naming?
    training pictures        the mean of its training pictures: no words at all
    mapped names             the name through a linear map that carries all names towards their training pictures
    mapped names, unseen     the same, each fifth of the classes by a map that was learnt from the others

Each is scored on pictures of the training families (val) and of the held-out ones (test). Nothing is chosen here.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import emblema
from emblema.data import catalog
from emblema.data.templates import templates_for
from emblema.engine.features import identity, weights_id
from emblema.frameworks.vlm import unit
from emblema.report import evidence, result
from emblema.tasks.zero_shot import ZeroShot

DATA = "emblem-objects"


@dataclass
class Anchored:
    """A predictor: the class whose anchor [C, D] is nearest to the picture."""

    model: emblema.Model
    anchors: Tensor

    def scores(self, data) -> Tensor:
        return self.model.vlm.logits(self.model.features(data), self.anchors)


def anchors(model: emblema.Model) -> dict[str, Tensor]:
    """What stands for a class -> [C, D] unit."""
    train, templates = catalog.load(DATA, split="train"), templates_for(DATA)
    labels = torch.tensor(train.column("label"))
    emblems = catalog.load("emblems", split="train")
    caption = dict(zip(emblems.keys, emblems.column("text")))
    captions = [caption[key] for key in train.keys]
    distinct = list(dict.fromkeys(captions))
    place = {text: i for i, text in enumerate(distinct)}
    worded = model.class_vectors(distinct, templates)[torch.tensor([place[text] for text in captions])]  # [N, D]
    names = model.class_vectors(train.class_names, templates)
    pictures = mean_of(model.features(train), labels, len(names))
    unseen = torch.empty_like(names)
    for fold in torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).chunk(5):
        others = torch.ones(len(names), dtype=torch.bool)
        others[fold] = False
        unseen[fold] = unit(names[fold] @ ridge(names[others], pictures[others]))
    return {
        "class names": names,
        "training captions": mean_of(worded, labels, len(names)),
        "training pictures": pictures,
        "mapped names": unit(names @ ridge(names, pictures)),
        "mapped names, unseen": unseen,
    }


def ridge(x: Tensor, y: Tensor, weight: float = 1.0) -> Tensor:
    """The map A [D, D] of least |x A - y|^2 + weight |A - 1|^2."""
    near = weight * torch.eye(x.shape[1])
    return torch.linalg.solve(x.T @ x + near, x.T @ y + near)


def mean_of(z: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean of the rows of each class: [C, D] unit."""
    return unit(z.new_zeros(classes, z.shape[1]).index_add_(0, labels, z))


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether pictures or words limit the default model.")
    parser.add_argument("--model", default="default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "limits.jsonl")
    options = parser.parse_args()
    model = emblema.load(options.model)
    lines = evidence.read(options.out.parent, options.out.stem)
    options.out.write_text("".join(json.dumps(one) + "\n" for one in lines if one["model"] != model.name))
    command = "python benchmarks/default_limits.py"
    command += f" --model {options.model}" if options.model != parser.get_default("model") else ""
    for name, anchor in anchors(model).items():
        for split in ("val", "test"):
            tested = catalog.load(DATA, split=split)
            found = ZeroShot().evaluate(Anchored(model, anchor), tested, split)
            line = result.line(
                found,
                system=f"nearest {name}",
                model=model.name,
                data_hash=identity(tested),
                weights=weights_id(model.vlm),
                command=command,
            )
            result.append(options.out, line)
            print(name, split, {k: round(v["value"], 3) for k, v in line["metrics"].items()}, flush=True)


if __name__ == "__main__":
    main()
