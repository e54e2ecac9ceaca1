"""One trunk for both modalities."""

import pytest
import torch

from emblema.encoders.text import TextConfig
from emblema.encoders.tokenizers import TextIds
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.one_tower import OneTower
from emblema.frameworks.two_tower import TwoTower

IMAGE = ViTConfig(image_size=64, patch_size=16, width=32, depth=2, heads=2, pool="cls")
TEXT = TextConfig(vocab_size=40, context_length=8, width=32, depth=2, heads=2, causal=False)
IDS = TextIds(torch.tensor([[1, 5, 2], [1, 2, 0]]), torch.tensor([3, 2]))


def test_two_embedders_share_the_blocks():
    torch.manual_seed(0)
    vlm = OneTower(image=IMAGE, text=TEXT, dim=16).build()
    assert id(vlm.image.blocks) == id(vlm.text.blocks) and vlm.image.norm is vlm.text.norm
    (vlm.encode_text(IDS).sum()).backward()
    assert vlm.image.blocks[0].mlp[0].weight.grad.abs().sum() > 0  # the texts teach the images' trunk
    two = TwoTower(image=IMAGE, text=TEXT, dim=16).build()
    trunk = sum(p.numel() for p in vlm.image.blocks.parameters()) + 2 * 32
    assert sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in vlm.parameters()) == trunk


def test_trunks_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="one trunk"):
        OneTower(image=IMAGE, text=TextConfig(width=16, depth=2, heads=2)).build()


@pytest.fixture(scope="module")
def drawn():
    torch.manual_seed(0)
    return OneTower(image=IMAGE, dim=16).build().eval()


def test_rendered_text_is_read_by_the_image_tower(drawn):
    assert id(drawn.image) == id(drawn.text.trunk) and id(drawn.image.blocks) == id(drawn.text.blocks)
    pages = drawn.text.render(["a cat", "a dog"])
    assert pages.shape == (2, 3, 64, 64) and pages.dtype == torch.uint8
    assert drawn.encode_text(["a cat", "a dog"]).equal(drawn.encode_image(pages))  # the same array, the same vector
    assert set(pages.unique().tolist()) == {0, 127}  # no smoothing
    assert not pages[0].equal(pages[1]) and drawn.text.render(["a cat"])[0].equal(pages[0])
    assert len(list(drawn.parameters())) == len(list(drawn.image.parameters())) + 1


def test_overflow_is_counted(drawn):
    drawn.text.render(["short", "a very long caption " * 10, "x" * 40])
    assert drawn.text.cut == 2
    drawn.text.render(["", "ok"])
    assert drawn.text.cut == 0
    assert drawn.text.render([]).shape == (0, 3, 64, 64)


def test_other_alphabets_differ(drawn):
    pages = drawn.text.render(["猫", "犬", "кот", "ÉTÉ", "été"])
    assert not pages[0].equal(pages[1]) and not pages[2].equal(pages[1]) and pages[3].equal(pages[4])


def test_taught_errors(drawn):
    with pytest.raises(TypeError, match=r"write \[text\]"):
        drawn.encode_text("a cat")
    with pytest.raises(TypeError, match="no tokens"):
        drawn.encode_text(IDS)
    with pytest.raises(ValueError, match="no room"):
        OneTower(image=ViTConfig(image_size=8, patch_size=4, width=8, depth=1, heads=1), dim=8).build()


def test_doors_of_the_shared_tower(drawn):
    seen = []

    def edit(i, tokens):
        seen.append(i)
        return tokens

    z = drawn.encode_text(["a cat"], edit)
    assert seen == [0, 1]
    torch.testing.assert_close(z, drawn.encode_text(["a cat"]))
    assert drawn.encode_words(["a cat"])[0].shape == (1, 17, 16)
