"""Ids equal the originals'; the end token survives; the policy travels with the folder."""

import json

import open_clip
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizer

from emblema.core.errors import BadCheckpoint
from emblema.encoders.tokenizers import (
    CLEAN,
    ClipTokenizer,
    TokenPolicy,
    TrainedTokenizer,
    byte_alphabet,
    train_bpe,
)

TRICKY = [
    "",
    "   ",
    "a photo of a cat",
    "A DOG's life, it's 2024!!! 12345",
    "don't we'll they've I'm he'd you're 'S I'LL don’t",
    "café &amp; crème &lt;3 &amp;amp; x &quot;hi&quot; &eacute;&nbsp;&#128512; &notanentity;",
    "😀🎉 emoji 👨‍👩‍👧 ☎️",
    "日本語のテキスト 中文 한국어 العربية हिन्दी",
    "“curly” ‘quotes’ – — … ™ ® ©",
    "ﬁne ﬂow ﬀ ﬃ ǅ ﷺ",
    "ＦＵＬＬ　ｗｉｄｔｈ ｶﾞ",
    "x²½ Ⅷ ٣ 1,000.50",
    "naïve e\u0301 combining A\u030a",
    "\u00a0nbsp\u2003em\u200bzero soft\u00adhyphen \ufeffbom",
    "tabs\t\n\r\n\u2028lines",
    "a_b-c/d\\e <b>html &lt;</b>",
    "Straße İstanbul ΣΑΣ ŉ",
    "!!!???...;;",
    "\x1b[31mred\x1b[0m \x00ctrl\x07 \x93windows\x94",
    "word " * 200,
    "supercalifragilisticexpialidocious" * 10,
]


@pytest.fixture(scope="module")
def clip():
    return ClipTokenizer()


@pytest.fixture(scope="module")
def trained():
    captions = ["a photo of a small cat", "two dogs on the table", "It's a café", "a red circle above a square"] * 5
    return train_bpe(captions, 320)


@pytest.mark.parametrize("text", TRICKY, ids=range(len(TRICKY)))
def test_clip_ids_equal_the_original(clip, text):
    ours = clip([text], 77, pad_to_context=True)
    assert ours.ids.equal(open_clip.get_tokenizer("ViT-B-32")([text]))
    assert ours.ids[0].argmax() == ours.length[0] - 1  # the end token is where it is said to be


def test_clip_batches_cuts_and_lengths(clip):
    batch = clip(TRICKY, 16)
    expected = open_clip.get_tokenizer("ViT-B-32")(TRICKY, 16)
    assert batch.ids.equal(expected) and batch.ids.shape == (len(TRICKY), 16)
    assert (batch.ids.gather(1, batch.length[:, None] - 1) == 49407).all()  # truncation keeps the end token
    whole = clip(TRICKY, 4096)
    assert batch.cut == int((whole.length > 16).sum()) > 0 and whole.cut == 0
    assert clip(["a cat"], 77).ids.tolist() == [[49406, 320, 2368, 49407]]  # as long as needed, no longer
    assert clip([""], 77).ids.tolist() == [[49406, 49407]]
    assert clip([], 77).ids.shape[0] == 0


def test_a_caption_cannot_spell_the_end_token(clip, trained):
    assert (clip(["say <|endoftext|> <end_of_text>"], 77).ids == 49407).sum() == 1
    assert (trained(["say <end> <pad> <start>"], 77).ids == 2).sum() == 1


def test_clip_vocabulary(clip):
    assert clip.vocab_size == 49408 and len(set(byte_alphabet())) == 256
    assert clip.decode(clip(["A photo of it's 🎉 café"], 77).ids[0]) == "a photo of it 's 🎉 café"


def test_trained_bpe(trained):
    batch = trained(["a photo of a cat", "", "unseen: 漢字 🎉 zebra", "A  PHOTO of a cat"], 64)
    assert trained.vocab_size <= 320 and batch.ids[0].equal(batch.ids[3])  # lower case, spaces
    assert batch.ids[:, 0].eq(1).all() and batch.ids[1, :2].tolist() == [1, 2]
    assert trained.decode(batch.ids[2]) == "unseen : 漢字 🎉 zebra"  # bytes: nothing is unknown
    short = trained(["a photo of a small cat on the table"], 5)
    assert short.ids.shape == (1, 5) and short.ids[0, -1] == 2 and short.cut == 1
    assert trained(["a"], 12, pad_to_context=True).ids.shape == (1, 12)


def test_training_twice_gives_the_same_vocabulary():
    texts = ["a photo of a cat", "the cat is red", "a red photo"] * 3
    assert train_bpe(texts, 300).core.to_str() == train_bpe(texts, 300).core.to_str()


def test_word_piece_equals_bert(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "##s", "dog", "!", "cafe"]
    theirs = BertTokenizer(vocab={w: i for i, w in enumerate(words)})
    core = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    ours = TrainedTokenizer(core, TokenPolicy(start_id=2, end_id=3, pad_id=0))
    texts = ["A cat", "cats dogs!", "", "Café zebra"]
    expected = theirs(texts, padding=True, return_tensors="pt")
    batch = ours(texts, 32)
    assert batch.ids.equal(expected["input_ids"])
    assert batch.length.equal(expected["attention_mask"].sum(1))
    assert ours.unread(["a zebra", "zebra", "zebra lion", "cats"]) == ["zebra", "zebra lion"]


@pytest.mark.parametrize("which", ["clip", "trained"])
def test_saved_and_loaded_is_the_same(tmp_path, request, which):
    tokenizer = request.getfixturevalue(which)
    settings = json.loads(json.dumps(tokenizer.save(tmp_path)))
    again = TrainedTokenizer.load(tmp_path, settings)
    a, b = tokenizer(TRICKY, 40), again(TRICKY, 40)
    assert a.ids.equal(b.ids) and a.length.equal(b.length) and again.policy == tokenizer.policy


def test_a_vocabulary_without_start_and_end():
    core = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    batch = TrainedTokenizer(core, TokenPolicy())(["a a", ""], 8)
    assert batch.ids.tolist() == [[1, 1], [0, 0]] and batch.length.tolist() == [2, 1]


def test_cleaning():
    assert CLEAN["canonical"]("  A_photo, of   It's! ") == "aphoto of its"
    assert CLEAN["canonical_words"]("A_photo&amp;, of It's!") == "a photo of its"
    assert CLEAN["spaces"](" a \n b ") == "a b" and CLEAN["none"](" a ") == " a "
    assert CLEAN["canonical"](CLEAN["canonical"]("A, b")) == "a b"


def test_taught_errors(tmp_path, clip):
    with pytest.raises(TypeError, match=r"write \[text\]"):
        clip("a cat", 77)
    with pytest.raises(ValueError, match="no room"):
        clip(["a cat"], 1)
    with pytest.raises(BadCheckpoint, match="missing"):
        TrainedTokenizer.load(tmp_path, {})
    (tmp_path / "tokenizer.json").write_text('{"model": 3')
    with pytest.raises(BadCheckpoint, match="not a tokenizer file"):
        TrainedTokenizer.load(tmp_path, {})
    with pytest.raises(BadCheckpoint, match="surprise"):
        TrainedTokenizer.load(tmp_path, {"surprise": 1})
    with pytest.raises(BadCheckpoint, match="kind"):
        TokenPolicy(kind="magic")
    with pytest.raises(BadCheckpoint, match="end_id 99999"):
        TrainedTokenizer(clip.core, TokenPolicy(end_id=99999))


def test_ids_move_between_devices(clip):
    assert len(clip(["a", "b"], 9).to(torch.device("cpu"))) == 2
