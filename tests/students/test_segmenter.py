import pytest
import torch

from emblema.core.errors import BadData
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.two_tower import architecture
from emblema.frameworks.vlm import frozen
from emblema.students.segmenter import Segmenter, segmenter, text_scores
from emblema.testing import tiny_vlm


def hybrid():
    vlm = architecture("tiny").build()
    stem = "timm:tf_efficientnet_lite0:3+4"
    config = ViTConfig(image_size=32, patch_size=16, width=32, depth=1, heads=2, stem=stem)
    vlm.image = config.build(vlm.dim)
    return frozen(vlm)


def test_vectors_at_a_quarter_of_the_size():
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    assert Segmenter(8, 16)(images).shape == (2, 8, 16, 24)


def test_text_scores_are_products_or_cosines():
    x, text = torch.randn(2, 8, 3, 4), torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    product = torch.einsum("bdhw,cd->bchw", x, text)
    torch.testing.assert_close(text_scores(x, text), product)
    torch.testing.assert_close(text_scores(x, text, 7.0), 7 * product / x.norm(dim=1, keepdim=True))


def test_a_body_that_begins_as_the_teachers():
    teacher = hybrid()
    student = segmenter(teacher, 16)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert student(images).shape == (2, teacher.dim, 16, 16)
    x, stem = images.float() / 127.5 - 1, teacher.image.stem
    student.eval()
    for ours, theirs in zip(student.trunk(x)[-2:], stem.trunk(x)):
        torch.testing.assert_close(ours, theirs)
    student.train()
    before = {n: b.clone() for n, b in student.named_buffers()}
    student(images).sum().backward()
    assert all(b.equal(before[n]) for n, b in student.named_buffers())
    assert all(p.grad is None for p in teacher.parameters())


def test_bodies_are_told():
    with pytest.raises(BadData, match='choose "scratch"'):
        segmenter(tiny_vlm(), 16, "teacher")
    with pytest.raises(BadData, match="choose auto"):
        segmenter(tiny_vlm(), 16, "big")
    assert segmenter(tiny_vlm(), 16).trunk.widths == [32, 48, 64]
