"""Tokenizers: texts to ids, with the end token always kept and the number of cut texts reported.

All of them run on the Rust library `tokenizers`; what differs is the vocabulary and the policy: how a text is
cleaned, and which ids stand at its start, at its end and in the padding. The policy travels with a checkpoint
(`tokenizer.json` and the settings in `config.json`), because a wrong one is an error that nobody sees.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import string
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from emblema.core.errors import BadCheckpoint, BadData


@dataclass(frozen=True)
class TextIds:
    """Token ids of a batch of texts."""

    ids: Tensor  # [N, L] long, padded
    length: Tensor  # [N] long, start and end tokens included
    cut: int = 0  # texts that were longer than the context

    def to(self, device: torch.device) -> TextIds:
        return TextIds(self.ids.to(device), self.length.to(device), self.cut)

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer(Protocol):
    """Cuts a text to the context *before* its end token, so the end token is never lost."""

    vocab_size: int
    pad_id: int

    def __call__(self, texts: Sequence[str], context_length: int, *, pad_to_context: bool = False) -> TextIds: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, kw_only=True)
class TokenPolicy:
    """What a tokenizer does around its vocabulary."""

    kind: str = "trained"  # "clip" or "trained"
    start_id: int | None = None
    end_id: int | None = None
    pad_id: int = 0
    lower: bool = False  # lower-case before the vocabulary is asked
    clean: str = "none"  # a key of CLEAN

    def __post_init__(self) -> None:
        if self.kind not in ("clip", "trained") or self.clean not in CLEAN:
            raise BadCheckpoint(
                f'tokenizer settings kind={self.kind!r}, clean={self.clean!r}: kind is "clip" or "trained", '
                f"clean one of {', '.join(CLEAN)}"
            )


class TrainedTokenizer:
    """A vocabulary of `tokenizers` (BPE, WordPiece, Unigram) under an explicit policy."""

    def __init__(self, core: Any, policy: TokenPolicy):
        core.no_truncation()
        core.no_padding()
        self.core, self.policy = core, policy
        self.vocab_size, self.pad_id = core.get_vocab_size(), policy.pad_id
        self._clean = CLEAN[policy.clean]
        for name in ("start_id", "end_id", "pad_id"):
            value = getattr(policy, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise BadCheckpoint(f"tokenizer settings: {name} {value} is not in a vocabulary of {self.vocab_size}")

    def __call__(self, texts: Sequence[str], context_length: int, *, pad_to_context: bool = False) -> TextIds:
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, got one string; write [text]")
        policy = self.policy
        start = [] if policy.start_id is None else [policy.start_id]
        end = [] if policy.end_id is None else [policy.end_id]
        room = context_length - len(start) - len(end)
        if room < 0:
            raise ValueError(f"a context of {context_length} has no room for the start and end tokens")
        found = self.core.encode_batch_fast([self.clean(t) for t in texts], add_special_tokens=False)
        words = [e.ids for e in found]
        rows = [[*start, *w[:room], *end] for w in words]
        cut = sum(len(w) > room for w in words)
        lengths = [max(1, len(r)) for r in rows]  # a vocabulary without start and end: one padding token
        size = context_length if pad_to_context else max(lengths, default=1)
        ids = torch.tensor([r + [policy.pad_id] * (size - len(r)) for r in rows], dtype=torch.long)
        return TextIds(ids.view(len(rows), size), torch.tensor(lengths, dtype=torch.long), cut)

    def identity(self) -> str:
        """Equal for tokenizers that cut every text alike."""
        said = f"{type(self).__qualname__}:{self.policy}:{self.core.to_str(pretty=False)}"
        return hashlib.sha256(said.encode()).hexdigest()

    def offsets(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """The cleaned text, and for each token of the uncut row the characters [from, to) of it that it stands for.

        Start and end tokens stand for none: (0, 0).
        """
        cleaned = self.clean(text)
        words = self.core.encode(cleaned, add_special_tokens=False).offsets
        start, end = ([(0, 0)] * (x is not None) for x in (self.policy.start_id, self.policy.end_id))
        return cleaned, [*start, *words, *end]

    def unread(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts of which no token is in the vocabulary."""
        mark = getattr(self.core.model, "unk_token", None)
        unknown = None if mark is None else self.core.token_to_id(mark)
        found = self.core.encode_batch_fast([self.clean(t) for t in texts], add_special_tokens=False)
        return [t for t, e in zip(texts, found) if all(i == unknown for i in e.ids)]

    def clean(self, text: str) -> str:
        """What the vocabulary is asked about."""
        text = self._clean(text)
        return text.lower() if self.policy.lower else text

    def decode(self, ids: Sequence[int]) -> str:
        """Ids back to text, without start, end and padding."""
        special = {self.policy.start_id, self.policy.end_id, self.policy.pad_id}
        text = self.core.decode([int(i) for i in ids if int(i) not in special], skip_special_tokens=False)
        return text.strip()

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write `tokenizer.json` into a folder; returns the settings that belong into its `config.json`."""
        (Path(folder) / "tokenizer.json").write_text(self.core.to_str(pretty=False), encoding="utf-8")
        return asdict(self.policy)

    @staticmethod
    def load(folder: str | Path, settings: dict[str, Any]) -> TrainedTokenizer:
        """The tokenizer of a checkpoint folder."""
        unknown = set(settings) - {f.name for f in fields(TokenPolicy)}
        if unknown:
            raise BadCheckpoint(f"config.json: tokenizer has unknown settings {sorted(unknown)}")
        return TrainedTokenizer(read_core(Path(folder) / "tokenizer.json"), TokenPolicy(**settings))


def checked_words(tower: Any, words: Sequence[str]) -> None:
    """Warn of words that a text tower's vocabulary does not know; raise `BadData` when it knows none of them.

    To the tower all of them are the same word, so it would choose among them at random.
    """
    tokenizer: Any = getattr(tower, "tokenizer", None)
    unread = tokenizer.unread(words) if hasattr(tokenizer, "unread") else []
    if not unread:
        return
    named = ", ".join(map(repr, unread[:5])) + (", ..." if len(unread) > 5 else "")
    if len(unread) == len(words):
        raise BadData(f"the model's vocabulary has no token of {named}: write the words in a language that it learnt")
    warnings.warn(f"the model's vocabulary has no token of {named}: to it they are all one word", stacklevel=3)


class ClipTokenizer(TrainedTokenizer):
    """CLIP's byte-pair encoding with its 49,408 tokens; the vocabulary comes with the package.

    Ids equal the original's for well-formed text. Two things differ on purpose: text that was decoded with the
    wrong code page is not repaired (the original asks `ftfy` to guess), and a literal "<end_of_text>" in a
    caption is text, not an end token.
    """

    def __init__(self) -> None:
        super().__init__(_clip_core(), TokenPolicy(kind="clip", start_id=49406, end_id=49407, clean="clip"))


def train_bpe(
    texts: Iterable[str], vocab_size: int = 8192, *, lower: bool = True, min_frequency: int = 2
) -> TrainedTokenizer:
    """A byte-level BPE learnt from captions: every text has ids, no token is unknown.

    Ids 0, 1, 2 are padding, start and end.
    """
    import tokenizers as hf

    core = hf.Tokenizer(hf.models.BPE())
    core.normalizer = hf.normalizers.NFC()
    core.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [
            hf.pre_tokenizers.Split(hf.Regex(r"\s+"), "removed"),
            hf.pre_tokenizers.Split(hf.Regex(CLIP_WORDS), "isolated"),
            hf.pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        ]
    )
    core.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=["<pad>", "<start>", "<end>"],
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    clean = CLEAN["spaces"]
    core.train_from_iterator((clean(t).lower() if lower else clean(t) for t in texts), trainer)
    # a caption that spells "<end>" is text: the vocabulary keeps the three tokens, the splitter forgets them
    state = json.loads(core.to_str())
    state["added_tokens"] = []
    core = hf.Tokenizer.from_str(json.dumps(state))
    return TrainedTokenizer(core, TokenPolicy(start_id=1, end_id=2, pad_id=0, lower=lower, clean="spaces"))


def read_core(path: Path) -> Any:
    """A `tokenizer.json`."""
    import tokenizers as hf

    if not path.exists():
        raise BadCheckpoint(f"{path.name} is missing in {path.parent}: copy the whole checkpoint folder")
    try:
        return hf.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise BadCheckpoint(f"{path} is not a tokenizer file ({error}): copy it again") from error


# -- CLIP's vocabulary ---------------------------------------------------------------------------------------

CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


@cache
def _clip_merges() -> list[tuple[str, str]]:
    lines = gzip.decompress((Path(__file__).parent / "clip_merges.txt.gz").read_bytes()).decode("utf-8").split("\n")
    return [(a, b) for a, b in (line.split(" ") for line in lines)]


def byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for bytes, in the order of CLIP's (and GPT-2's) vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len(set(range(256)) - set(printable))
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(others)]


def clip_core(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """CLIP's splitting rules over a vocabulary of its kind."""
    import tokenizers as hf

    core = hf.Tokenizer(hf.models.BPE(vocab, merges, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    core.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [
            hf.pre_tokenizers.Split(hf.Regex(CLIP_WORDS), "removed", invert=True),
            hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # "</w>" ends a word; the byte alphabet is undone by ByteLevel, which keeps the space
    core.decoder = hf.decoders.Sequence([hf.decoders.Replace("</w>", "Ġ"), hf.decoders.ByteLevel()])
    return core


def _clip_core() -> Any:
    letters = byte_alphabet()
    merges = _clip_merges()
    words = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return clip_core({w: i for i, w in enumerate(words)}, merges)


# -- cleaning ------------------------------------------------------------------------------------------------

_STRAIGHT = str.maketrans(
    {**dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc", "'"), **dict.fromkeys("\u201c\u201d\u201e\u201f", '"')}
)
_LIGATURES = str.maketrans(
    {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ſt", "ﬆ": "st", "ŉ": "ʼn"}
    | {c: unicodedata.normalize("NFKC", c) for c in "ĲĳǄǅǆǇǈǉǊǋǌǱǲǳ"}
)
# control characters of Latin-1 that were letters and quotes in Windows-1252
_WINDOWS = {i: bytes([i]).decode("cp1252", errors="ignore") or chr(i) for i in range(0x80, 0xA0)}
_LINES = re.compile("\r\n|[\r\u2028\u2029]")
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]")
_WIDE = {i: unicodedata.normalize("NFKC", chr(i)) for i in [*range(0xFF01, 0xFFF0), 0x3000]}


def _clean_clip(text: str) -> str:
    """HTML entities, curly quotes, ligatures, full-width letters, line ends, control characters; lower case."""
    if not text.isascii():
        text = text.translate(_WINDOWS).translate(_LIGATURES).translate(_WIDE).translate(_STRAIGHT)
    text = _CONTROL.sub("", _LINES.sub("\n", _ESCAPES.sub("", text)))
    text = text if text.isascii() else unicodedata.normalize("NFC", text)
    return _clean_spaces(html.unescape(html.unescape(text))).lower()


def _clean_spaces(text: str) -> str:
    """Runs of white space become one space."""
    return " ".join(text.split())


def _clean_canonical(text: str) -> str:
    """Lower case without punctuation (SigLIP)."""
    return _clean_spaces(text.translate(str.maketrans("", "", string.punctuation)).lower())


def _clean_canonical_words(text: str) -> str:
    """The same with underscores as spaces (open_clip's "canonicalize")."""
    return _clean_canonical(html.unescape(html.unescape(text)).replace("_", " "))


CLEAN: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "spaces": _clean_spaces,
    "clip": _clean_clip,
    "canonical": _clean_canonical,
    "canonical_words": _clean_canonical_words,
}
