"""CLIP's text tower: oracle, pinned order, and short cuts that change nothing."""

from dataclasses import replace

import pytest
import torch
from open_clip.transformer import TextTransformer as OpenClipText
from torch import nn

from emblema.core.errors import PromptTooLong
from emblema.encoders.bert import BertConfig
from emblema.encoders.text import Packed, TextConfig
from emblema.encoders.tokenizers import TextIds
from emblema.frameworks.foreign import Source
from emblema.frameworks.open_clip_weights import text_tensors

CONTEXT, VOCAB, END = 20, 50, 49
SHAPE = {"vocab_size": VOCAB, "context_length": CONTEXT, "width": 16, "depth": 3, "heads": 2}
TOWERS = {
    "causal": TextConfig(**SHAPE),
    "causal-mean": TextConfig(**SHAPE, pool="mean"),
    "bidirectional": TextConfig(**SHAPE, causal=False),
    "bidirectional-mean": TextConfig(**SHAPE, causal=False, pool="mean"),
    "padded": TextConfig(**SHAPE, causal=False, pool="last", pad_to_context=True, projection_bias=True),
    "bert-cls": BertConfig(**SHAPE, pool="cls"),
    "bert-mean": BertConfig(**SHAPE, pool="mean"),
}


def tower(config):
    torch.manual_seed(0)
    text = config.build(12)
    for p in text.parameters():
        nn.init.normal_(p, std=0.4)
    return text.eval()


def ids(lengths=(5, 9, 7, 3), size=None, same=2):
    """Rows [start, same words, other words, end, padding]; `same` leading positions are equal in all rows."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(len(lengths), size or max(lengths), dtype=torch.long)
    for row, n in zip(rows, lengths):
        row[:n] = torch.randint(3, END - 1, (n,), generator=generator)
        row[:same] = torch.arange(1, same + 1)
        row[n - 1] = END
    return TextIds(rows, torch.tensor(lengths))


def plain(text, tokens):
    """The long way: every position of the full context through every layer."""
    return text.project(text.pool(text.transform(tokens)))


def gradients(text, z):
    return torch.autograd.grad(z.square().sum(), list(text.parameters()), allow_unused=True, retain_graph=True)


def assert_same(text, a, b):
    """Features and the gradients of all parameters."""
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    for ours, theirs, (name, _) in zip(gradients(text, a), gradients(text, b), text.named_parameters()):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_open_clip(act, bias):
    from open_clip.transformer import QuickGELU

    torch.manual_seed(0)
    theirs = OpenClipText(
        context_length=CONTEXT,
        vocab_size=VOCAB,
        width=16,
        heads=2,
        layers=3,
        output_dim=12,
        proj_bias=bias,
        act_layer=QuickGELU if act == "quick_gelu" else nn.GELU,
    ).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.4)
    config = TextConfig(**SHAPE, activation=act, projection_bias=bias)
    ours, source = config.build(12), Source(theirs.state_dict())
    text_tensors(source, config)
    ours.load_state_dict({n.removeprefix("text."): t for n, t in source.ours.items()})
    assert not source.tensors and not source.missing
    full = ids(size=CONTEXT)
    torch.testing.assert_close(ours.encode(full), theirs(full.ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
def test_short_cuts_equal_the_full_context(name):
    text, full = tower(TOWERS[name]), ids(size=CONTEXT)
    assert_same(text, text.encode(full), plain(text, text.embed(full)))


@pytest.mark.parametrize("name", [n for n in TOWERS if n != "padded"])
def test_trimmed_equals_full(name):
    text, full, trimmed = tower(TOWERS[name]), ids(size=CONTEXT), ids()
    assert trimmed.ids.shape[1] == 9
    assert_same(text, text.encode(trimmed), text.encode(full))
    assert_same(text, plain(text, text.embed(trimmed)), plain(text, text.embed(full)))


@pytest.mark.parametrize("name", [n for n in TOWERS if n != "padded"])
@pytest.mark.parametrize("same", [0, 3])
def test_rows_of_very_different_lengths_are_packed_in_groups(name, same):
    text = tower(replace(TOWERS[name], context_length=80))
    mixed = ids((40, 5, 80, 17, 18, 16, 6, 33), same=same)
    tokens = text.embed(mixed)
    groups = Packed(text.enter(tokens), text.causal, heads=2).groups
    assert [g.width for g in groups] == ([3, 15, 30, 37, 77] if tokens.shared else [16, 18, 40, 80])
    assert_same(text, text.encode(mixed), plain(text, tokens))


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("per_class", [False, True])
def test_prompts_through_the_short_cuts(name, per_class):
    """CoOp: context after the start token, one for all classes or one for each."""
    text, full = tower(TOWERS[name]), ids(size=CONTEXT if name == "padded" else None)
    prompt = nn.Parameter(torch.randn(4 if per_class else 1, 4, 16, generator=torch.Generator().manual_seed(2)))
    tokens = text.embed(full).insert(prompt, at=1)
    if text.causal:
        assert tokens.shared == (1 if per_class else 6)  # start, prompt, one common word
    a, b = text.encode(tokens), plain(text, tokens)
    assert_same(text, a, b)
    torch.testing.assert_close(
        *(torch.autograd.grad(z.square().sum(), prompt)[0] for z in (text.encode(tokens), plain(text, tokens))),
        atol=2e-4,
        rtol=1e-3,
    )


@pytest.mark.parametrize("name", TOWERS)
def test_edits_enter_before_each_layer(name):
    text, full = tower(TOWERS[name]), ids(size=CONTEXT if name == "padded" else None)
    prompts = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(2))
    tokens, seen = text.embed(full).insert(prompts[0], at=1), []

    def edit(i, entering):
        seen.append(i)
        return entering.swap(prompts[i], at=1) if i else entering

    z = text.encode(tokens, edit)
    assert seen == [0, 1, 2]
    torch.testing.assert_close(z, text.project(text.pool(text.transform(tokens, edit))), atol=1e-5, rtol=1e-4)


def test_order_text_prompts_join_before_positions():
    """MaPLe: word embeddings, then the prompt, then positions over the whole; the words behind move on."""
    text, short = tower(TOWERS["causal"]), ids((5,))
    prompt = torch.randn(2, 16)
    words = text.words(short.ids)
    x = torch.cat([words[:, :1], prompt[None], words[:, 1:]], 1) + text.positions[:7]
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    for block in text.blocks:
        x = block(x, mask)
    expected = text.project(text.norm(x[:, -1]))
    torch.testing.assert_close(text.encode(text.embed(short).insert(prompt, at=1)), expected)


def test_common_words_are_found_and_counted_once():
    text = tower(TOWERS["causal"])
    assert text.embed(ids((5, 9), same=3)).shared == 3 and text.embed(ids((5, 9), same=1)).shared == 1
    assert tower(TOWERS["bidirectional"]).embed(ids()).shared == 0
    alike = TextIds(ids((5,)).ids.expand(3, -1), torch.tensor([5, 5, 5]))
    assert_same(text, text.encode(alike), plain(text, text.embed(alike)))
    other_starts = ids(same=0)
    other_starts.ids[:, 0] = torch.tensor([1, 2, 3, 4])
    assert text.embed(other_starts).shared == 0
    assert_same(text, text.encode(other_starts), plain(text, text.embed(other_starts)))


def test_layers_in_step_equal_transform():
    text = tower(TOWERS["bidirectional"])
    tokens = text.enter(text.embed(ids()))
    for i in range(text.depth):
        tokens = text.layer(i, tokens)
    assert tokens.x.equal(text.transform(text.embed(ids())).x)


def test_causal_towers_never_look_ahead():
    text, batch = tower(TOWERS["causal"]), ids((9, 9))
    other = TextIds(batch.ids.clone(), batch.length)
    other.ids[:, 6:] = 5
    a, b = (text.transform(text.embed(i)).x[:, :6] for i in (batch, other))
    assert a.equal(b)


def test_read_only_prompts():
    text, batch = tower(TOWERS["causal"]), ids((6, 6))
    plain_x = text.transform(text.embed(batch)).x
    prompted = text.transform(text.embed(batch).insert(torch.randn(2, 16), None, read_only=True)).x
    torch.testing.assert_close(prompted[:, :6], plain_x, atol=1e-5, rtol=1e-5)
    tokens = text.embed(batch).insert(torch.randn(2, 16), at=None, read_only=True)
    torch.testing.assert_close(text.encode(tokens), text.encode(batch), atol=1e-5, rtol=1e-5)


def test_attention_weights_rows_sum_to_one_and_skip_padding():
    text = tower(TOWERS["bidirectional"])
    weights = text.attention_weights(0, text.enter(text.embed(ids())))
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert weights[3, :, :, 3:].eq(0).all()


@pytest.mark.parametrize("name", ["causal", "padded", "bert-mean"])
def test_too_long_prompts_are_refused_but_padding_is_given_up(name):
    text = tower(TOWERS[name])
    tokens = text.embed(ids((5, 9), size=CONTEXT))
    z = text.encode(tokens.insert(torch.randn(11, 16), at=1))  # 9 + 11 positions fit exactly
    assert z.shape == (2, 12)
    with pytest.raises(PromptTooLong, match="21 positions"):
        text.encode(tokens.insert(torch.randn(12, 16), at=1))


def test_nothing_to_encode():
    text = tower(TOWERS["causal"])
    empty = TextIds(torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert text.encode(empty).shape == (0, 12)


def test_taught_errors():
    text = tower(TOWERS["causal"])
    with pytest.raises(TypeError, match=r"write \[text\]"):
        text.encode("a cat")
    with pytest.raises(ValueError, match="no tokenizer"):
        text.encode(["a cat"])
    with pytest.raises(ValueError, match="pad_to_context"):
        TextConfig(**SHAPE, pool="last").build(12)
    with pytest.raises(ValueError, match="pool='first'"):
        TextConfig(**SHAPE, pool="first").build(12)
    with pytest.raises(ValueError, match="without a projection"):
        TextConfig(**SHAPE, project=False).build(12)
