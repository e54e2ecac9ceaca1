"""The plain name of a picture's colour, where one prevails."""

from __future__ import annotations

import numpy as np

HUES = ((15, "red"), (40, "orange"), (70, "yellow"), (165, "green"), (255, "blue"), (290, "purple"), (340, "pink"))


def colour_name(rgba: np.ndarray, share: float = 0.5) -> str | None:
    """The colour of at least `share` of the visible pixels of uint8 [H, W, 4], by hue, saturation and value."""
    rgb = rgba[rgba[..., 3] >= 128][:, :3].astype(np.float32) / 255
    if not len(rgb):
        return None
    value, low = rgb.max(1), rgb.min(1)
    spread = value - low
    saturation = spread / np.maximum(value, 1e-6)
    safe = np.maximum(spread, 1e-6)
    r, g, b = rgb.T
    sector = np.select([value == r, value == g], [(g - b) / safe % 6, (b - r) / safe + 2], (r - g) / safe + 4)
    hue = sector * 60
    names = np.select([hue < edge for edge, _ in HUES], [name for _, name in HUES], "red")
    warm = (names == "orange") | (names == "red")
    names = np.where(warm & (value < 0.65) & (value >= 0.2), "brown", names)
    names = np.where(saturation < 0.18, np.where(value > 0.85, "white", "grey"), names)
    names = np.where((value < 0.22) | ((value < 0.4) & (saturation < 0.5)), "black", names)
    found, counts = np.unique(names, return_counts=True)
    best = counts.argmax()
    return str(found[best]) if counts[best] >= share * len(names) else None
