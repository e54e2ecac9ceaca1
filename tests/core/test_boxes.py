"""Boxes as they are drawn, and as a picture can show them."""

import pytest
import torch

from emblema.core.boxes import Boxes


def test_what_a_picture_shows_of_boxes():
    nan = float("nan")
    corners = [[2, 3, 8, 9], [-20, 30, 20, 90], [70, 0, 90, 20], [8, 8, 8, 20], [nan, 0, 9, 9], [9, 9, 4, 4]]
    boxes = Boxes(torch.tensor(corners).float(), labels=torch.arange(6), crowd=torch.zeros(6, dtype=torch.bool))
    with pytest.warns(UserWarning, match="outside their picture, or without area, are left out"):
        shown, stays = boxes.visible(64, 48)
    assert stays.tolist() == [True, True, False, False, False, False]
    assert shown.xyxy.tolist() == [[2, 3, 8, 9], [0, 30, 20, 48]] and shown.labels.tolist() == [0, 1]
    whole, stays = shown.visible(64, 48)
    assert torch.equal(whole.xyxy, shown.xyxy) and stays.all()
