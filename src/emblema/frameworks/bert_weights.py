"""Text towers of transformers inside open_clip's files: BERT, RoBERTa and XLM-R (the multilingual CLIPs).

Those files name the network (`hf_model_name`) and leave its shape to a download. Here width, depth, feed-forward and
vocabulary are read off the tensors; the rest is what all published models of a family share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from torch import Tensor

from emblema.core.errors import BadCheckpoint
from emblema.encoders.bert import BertConfig
from emblema.frameworks.foreign import Source

ROOT = "text.transformer."
WORDS = ROOT + "embeddings.word_embeddings.weight"
HEAD_WIDTH = 64


@dataclass(frozen=True)
class Family:
    """What the tensors do not tell."""

    eps: float
    first_position: int  # rows of the position table before that of the first token
    pad_id: int


ROBERTA = Family(eps=1e-5, first_position=2, pad_id=1)
FAMILIES = {"xlm-roberta": ROBERTA, "roberta": ROBERTA, "bert": Family(eps=1e-12, first_position=0, pad_id=0)}
POOLS = {"mean_pooler": "mean", "cls_last_hidden_state_pooler": "cls"}


def bert_family(text: Mapping[str, Any]) -> Family:
    """The family that `text_cfg.hf_model_name` belongs to; raises BadCheckpoint for others (mT5, NLLB)."""
    name = PurePath(text["hf_model_name"]).name
    for start, family in FAMILIES.items():
        if name.startswith(start):
            return family
    raise BadCheckpoint(f"text_cfg.hf_model_name {name!r} is not read; known: {', '.join(FAMILIES)}")


def bert_shape(text: Mapping[str, Any], tensors: Mapping[str, Tensor], dim: int) -> BertConfig:
    """`text_cfg` with a `hf_model_name`, and the tensors beside it -> the shape of a tower.

    Raises BadCheckpoint where the family, its pooling or its projection is not read.
    """
    family, pool = bert_family(text), text.get("hf_pooler_type", "mean_pooler")
    head = text.get("hf_proj_type", "mlp")
    if pool not in POOLS:
        raise BadCheckpoint(f"text_cfg.hf_pooler_type {pool!r} is not read; known: {', '.join(POOLS)}")
    if head not in ("mlp", "linear", None):
        raise BadCheckpoint(f"text_cfg.hf_proj_type {head!r} is not read; known: mlp, linear, null")
    inner = ROOT + "encoder.layer.0.intermediate.dense.weight"
    types = ROOT + "embeddings.token_type_embeddings.weight"
    for name in (WORDS, types, inner):
        if name not in tensors:
            raise BadCheckpoint(f"text_cfg.hf_model_name {text['hf_model_name']!r} needs the tensor {name}: missing")
    vocab, width = tensors[WORDS].shape
    return BertConfig(
        vocab_size=vocab,
        context_length=text.get("context_length", 77),
        width=width,
        depth=sum(n.startswith(ROOT) and n.endswith("intermediate.dense.weight") for n in tensors),
        heads=width // HEAD_WIDTH,
        mlp_ratio=tensors[inner].shape[0] / width,
        eps=family.eps,
        pool=POOLS[pool],
        token_types=len(tensors[types]),
        project=head is not None,
        hidden=(width + dim) // 2 if head == "mlp" else None,
    )


def bert_tensors(source: Source, shape: BertConfig, family: Family, root: str = ROOT) -> None:
    """Tensors of transformers' BERT, whose names begin with `root`, become those of the text tower."""
    embedded, first = root + "embeddings.", family.first_position
    source.take("text.words.weight", embedded + "word_embeddings.weight")
    source.take(
        "text.positions",
        embedded + "position_embeddings.weight",
        by=lambda x: x[first : first + shape.context_length],
    )
    source.take("text.token_types", embedded + "token_type_embeddings.weight")
    source.pair("text.norm_embedded", embedded + "LayerNorm")
    for i in range(shape.depth):
        a, b = f"text.blocks.{i}.", f"{root}encoder.layer.{i}."
        for part in ("weight", "bias"):
            names = (f"{b}attention.self.{p}.{part}" for p in ("query", "key", "value"))
            source.take(f"{a}attention.qkv.{part}", *names)
        source.pair(a + "attention.out", b + "attention.output.dense")
        source.pair(a + "norm1", b + "attention.output.LayerNorm")
        source.pair(a + "mlp.0", b + "intermediate.dense")
        source.pair(a + "mlp.2", b + "output.dense")
        source.pair(a + "norm2", b + "output.LayerNorm")
    for part in ("0.", "2.") if shape.hidden else ("",) if shape.project else ():
        source.take(f"text.projection.{part}weight", f"text.proj.{part}weight")
