import pytest
import torch
import torch.nn.functional as F
from torch import nn

from emblema.core.errors import BadData, ClosedClasses, NoSuchDoor
from emblema.distill.base import student_recipe
from emblema.distill.denseclip import DenseCLIP, cross_entropy
from emblema.engine.features import fingerprint
from emblema.parts.decoder import ContextDecoder
from emblema.parts.dense import enlarged
from emblema.students.pyramid import Pyramid
from emblema.testing import tiny_model
from emblema.testing.distill import placed_squares
from emblema.testing.squares import NAMES


@pytest.fixture(scope="module")
def teacher():
    return tiny_model(cache=False, precision="fp32")


def system_of(steps=1, **fields):
    optim = student_recipe(steps=steps, batch_size=4, precision="fp32", lr=3e-3)
    return DenseCLIP(image_size=64, optim=optim, decoder_width=16, width=16, **fields)


def test_without_context_scores_are_cosines_of_texts_and_places(teacher):
    data = placed_squares(4)
    system = system_of(gamma=0.0).fit(teacher, data)
    student = system.build(teacher.vlm, NAMES).eval()
    images = system.pixels([data[0].image])
    _, scores = student(images)
    places = teacher.vlm.encode_patches(enlarged(teacher.vlm, images, 1.0))[0]  # [h, w, D], before any step
    torch.testing.assert_close(scores[0], (places @ student.prompt().T).permute(2, 0, 1), atol=1e-5, rtol=1e-4)


def test_the_auxiliary_loss_is_that_of_scores_over_the_temperature(teacher):
    data = placed_squares(4)
    system = system_of().fit(teacher, data)
    batch = system.collate([data[i] for i in range(4)])
    logits, scores = system.module_(batch.images)
    assert logits.shape[-2:] == tuple(4 * n for n in scores.shape[-2:]) and logits.shape[1] == scores.shape[1] == 4
    terms = system.losses(system.module_, batch)
    labels = system.truth(batch, scores.shape[-2:])
    assert (labels != 255).any() and not (labels == 3).any()  # the novel class is hidden
    torch.testing.assert_close(terms["scores"], F.cross_entropy(scores / 0.07, labels, ignore_index=255))
    assert float(cross_entropy(logits, torch.full((4, *logits.shape[-2:]), 255))) == 0


def test_oracle_transformer_decoder_layer():
    torch.manual_seed(0)
    ours = ContextDecoder(12, width=16, depth=1, heads=2)
    block = ours.blocks[0]
    theirs = nn.TransformerDecoderLayer(16, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    with torch.no_grad():
        for mine, other in (
            (block.attention.qkv.weight, theirs.self_attn.in_proj_weight),
            (block.attention.qkv.bias, theirs.self_attn.in_proj_bias),
            (torch.cat([block.cross.q.weight, block.cross.kv.weight]), theirs.multihead_attn.in_proj_weight),
            (torch.cat([block.cross.q.bias, block.cross.kv.bias]), theirs.multihead_attn.in_proj_bias),
        ):
            other.copy_(mine)
        for mine, other in (
            (block.attention.out, theirs.self_attn.out_proj),
            (block.cross.out, theirs.multihead_attn.out_proj),
            (block.mlp[0], theirs.linear1),
            (block.mlp[2], theirs.linear2),
            (block.norm1, theirs.norm1),
            (block.norm_cross, theirs.norm2),
            (block.norm2, theirs.norm3),
        ):
            other.load_state_dict(mine.state_dict())
    texts, image = torch.randn(2, 3, 12), torch.randn(2, 5, 12)
    expected = ours.out(theirs(ours.from_text(texts), ours.from_image(image)))  # the memory is not normalised inside
    torch.testing.assert_close(ours(texts, image), expected, atol=1e-5, rtol=1e-4)


def test_a_pyramid_has_four_scales_and_takes_scores_at_the_grid():
    pyramid = Pyramid(8, 16, classes=3, more=5)
    maps, scores = [torch.randn(2, 8, 7, 5) for _ in range(4)], torch.randn(2, 5, 7, 5)
    sizes = [tuple(scale(x).shape[-2:]) for scale, x in zip(pyramid.scales, maps)]
    assert sizes == [(28, 20), (14, 10), (7, 5), (4, 3)]
    assert pyramid(maps, scores).shape == (2, 3, 28, 20)
    assert not torch.equal(pyramid(maps, scores), pyramid(maps, scores + 1))


def test_the_tower_is_learnt_and_the_teacher_is_not(teacher):
    data, before, losses = placed_squares(8), fingerprint(teacher.vlm), []
    system = system_of(steps=30).fit(teacher, data, on_step=lambda step: losses.append(step.loss))
    assert fingerprint(teacher.vlm) == before and losses[-1] < losses[0]
    tower = dict(system.module_.tower.named_parameters())
    assert any(not torch.equal(p, tower[n]) for n, p in teacher.vlm.image.named_parameters() if n in tower)
    assert system.rate("tower.blocks.0.norm1.weight") == 0.1 and system.rate("prompt.context") == 1.0
    assert (system.module_.gamma != 1e-4).any()


def test_the_tower_alone(teacher):
    system = system_of(texts=False).fit(teacher, placed_squares(4))
    assert not any(name.startswith(("prompt", "decoder", "gamma")) for name, _ in system.module_.named_parameters())


def test_classes_are_those_it_learnt(teacher):
    data = placed_squares(4)
    system = system_of().fit(teacher, data)
    both = [next(iter(system.segment([data[0].image], names))) for names in (NAMES, [NAMES[2], NAMES[0]])]
    assert torch.equal(both[0][[2, 0]], both[1])
    with pytest.raises(ClosedClasses, match="cannot name house"):
        next(iter(system.segment([data[0].image], ["house"])))


def test_bad_input(teacher):
    data = placed_squares(4)
    data.columns["mask"] = [None] * 4
    with pytest.raises(BadData, match="placed-0 has no masks"):
        system_of().fit(teacher, data)
    with pytest.raises(NoSuchDoor, match="maps of a ViT's layers"):
        from emblema.frameworks.two_tower import architecture

        system_of().fit(architecture("demo").build(), placed_squares(4))
