"""BERT against transformers, with random weights; MiniLM's shape with its mean pooling."""

import pytest
import torch
import transformers
from torch import nn

from emblema.encoders.bert import BertConfig
from emblema.encoders.tokenizers import TextIds
from emblema.frameworks.bert_weights import FAMILIES, bert_tensors
from emblema.frameworks.foreign import Source

LENGTHS = torch.tensor([4, 12, 7])


def pair(pool, width=24, depth=3, heads=3):
    torch.manual_seed(0)
    shape = transformers.BertConfig(
        vocab_size=60,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=16,
    )
    theirs = transformers.BertModel(shape, add_pooling_layer=False).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.2)
    config = BertConfig(
        vocab_size=60, context_length=16, width=width, depth=depth, heads=heads, pool=pool, project=False
    )
    ours, source = config.build(width).eval(), Source(theirs.state_dict())
    bert_tensors(source, config, FAMILIES["bert"], root="")
    ours.load_state_dict({name.removeprefix("text."): tensor for name, tensor in source.ours.items()})
    return ours, theirs


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("shape", [(24, 3, 3), (384, 6, 12)], ids=["tiny", "MiniLM"])
def test_equals_transformers(pool, shape):
    ours, theirs = pair(pool, *shape)
    ids = torch.randint(1, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    real = torch.arange(12) < LENGTHS[:, None]
    with torch.no_grad():
        hidden = theirs(input_ids=ids * real, attention_mask=real.long()).last_hidden_state
        mean = (hidden * real[..., None]).sum(1) / LENGTHS[:, None]  # sentence-transformers' mean pooling
        expected = hidden[:, 0] if pool == "cls" else mean
        batch = TextIds(ids * real, LENGTHS)
        torch.testing.assert_close(ours.encode(batch), expected, atol=1e-5, rtol=1e-4)  # packed
        tokens = ours.transform(ours.embed(batch))  # with all padding
        torch.testing.assert_close(ours.pool(tokens), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tokens.x[real], hidden[real], atol=1e-5, rtol=1e-4)


def test_order_prompts_before_positions_types_and_norm():
    ours, _ = pair("mean")
    ids, prompt = torch.tensor([[1, 7, 8, 2]]), torch.randn(2, 24)
    words = ours.words(ids)
    x = torch.cat([words[:, :1], prompt[None], words[:, 1:]], 1)
    x = ours.norm_embedded(x + ours.positions[:6] + ours.token_types[0])
    for block in ours.blocks:
        x = block(x)
    tokens = ours.embed(TextIds(ids, torch.tensor([4]))).insert(prompt, at=1)
    torch.testing.assert_close(ours.encode(tokens), x.mean(1), atol=1e-5, rtol=1e-4)


def test_shapes_that_are_refused():
    with pytest.raises(ValueError, match="pool"):
        BertConfig(pool="eot").build(8)
    with pytest.raises(ValueError, match="without a projection"):
        BertConfig(width=24, heads=2, depth=1, project=False).build(8)
    assert BertConfig(width=24, heads=2, depth=1, vocab_size=9).build(8).project(torch.zeros(2, 24)).shape == (2, 8)
