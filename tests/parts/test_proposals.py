import numpy as np
import pytest
import torch
from skimage.segmentation import felzenszwalb
from torchvision.ops import box_iou

from emblema.parts.proposals import Proposals, contrast, grid, grouped, regions, straddling


def picture(size=(60, 80), boxes=((10, 12, 34, 40), (50, 20, 72, 50))):
    """Two plain rectangles on grey, with a little noise."""
    g = torch.Generator().manual_seed(0)
    pixels = 128 + torch.randint(-4, 5, (3, *size), generator=g)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        pixels[:, y1:y2, x1:x2] = torch.tensor([[230, 30, 40], [20, 90, 220]][i]).view(3, 1, 1)
    return pixels.to(torch.uint8), torch.tensor(boxes, dtype=torch.float32)


def test_regions_are_the_rectangles_and_agree_with_scikit_image():
    pixels, boxes = picture()
    ours = regions(pixels.float() / 255, 300, 150)
    theirs = felzenszwalb(pixels.permute(1, 2, 0).numpy(), scale=300, sigma=0.8, min_size=150)
    assert len(np.unique(ours)) == len(np.unique(theirs)) == 3
    inner = torch.ones(60, 80, dtype=torch.bool)  # edges are blurred, and may go to either side
    for x1, y1, x2, y2 in boxes.int().tolist():
        inner[y1 - 4 : y2 + 4, x1 - 4 : x2 + 4] = False
        inner[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4] = True
    both = list(zip(ours[inner].tolist(), theirs[inner].tolist()))
    assert len(set(both)) == 3 == len({a for a, _ in both}) == len({b for _, b in both})
    assert box_iou(boxes, grouped(pixels.float() / 255, ours)).amax(1).min() > 0.85


def test_the_best_proposals_are_the_things():
    pixels, boxes = picture()
    found = Proposals(most=10)(pixels)
    assert box_iou(found.xyxy[:4], boxes).amax(0).min() > 0.8
    assert found.scores.equal(found.scores.sort(descending=True).values) and 0 <= found.scores.min() <= 1
    large = torch.nn.functional.interpolate(pixels[None].float(), scale_factor=4)[0].to(torch.uint8)
    assert box_iou(Proposals(most=10)(large).xyxy[:4], 4 * boxes).amax(0).min() > 0.75  # in the picture's own pixels
    assert Proposals(most=10)(pixels).xyxy.equal(found.xyxy)  # the same every time


@pytest.mark.parametrize("kind", ["regions", "grid", "both"])
@pytest.mark.parametrize("size", [(40, 40), (9, 130), (200, 30)])
def test_boxes_lie_inside_any_picture(kind, size):
    noise = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = Proposals(kind=kind, most=20)(noise)
    x1, y1, x2, y2 = found.xyxy.T
    assert len(found) <= 20 and (x1 >= 0).all() and (y1 >= 0).all()
    assert (x2 <= size[1] + 1e-3).all() and (y2 <= size[0] + 1e-3).all() and (x2 > x1).all() and (y2 > y1).all()


def test_a_plain_picture_has_nothing_that_stands_out():
    found = Proposals()(torch.full((3, 30, 30), 90, dtype=torch.uint8))
    assert len(found) == 0 or found.scores.max() == 0
    with pytest.raises(ValueError, match="choose regions, grid, both"):
        Proposals(kind="edges")


def test_straddling_and_contrast_by_hand():
    labels = np.zeros((4, 4), dtype=int)
    labels[:, 2:] = 1
    boxes = torch.tensor([[0.0, 0, 2, 4], [1, 0, 3, 4], [0, 0, 4, 4]])
    assert straddling(boxes, labels).tolist() == [1.0, 0.0, 1.0]  # a whole region; halves of both; all
    pixels = torch.zeros(3, 4, 4)
    pixels[:, :, 2:] = 1
    # black within and white around; as much of both within as around; nothing around the whole picture
    assert contrast(boxes, pixels, ring=2.0).tolist() == [1.0, 0.0, 0.0]


def test_grid_by_hand():
    boxes = grid(8, 16, shares=(1.0,), step=0.5)
    assert boxes[:, 0].unique().tolist() == [0.0, 4.0, 8.0] and (boxes[:, 2] - boxes[:, 0]).eq(8).all()
