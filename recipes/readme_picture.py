"""Draw docs/images/held-out.webp: drawings of art families never trained on, chosen by lot, and their names."""

import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import emblema
from emblema.data import catalog
from emblema.data.pictures import open_picture

ROWS, COLUMNS, SIZE, GAP = 3, 8, 96, 34
data = catalog.load("emblem-objects", split="test").where(domain=("openmoji", "emojione", "emojione-v1"))
chosen = [data[i] for i in random.Random(0).sample(range(len(data)), ROWS * COLUMNS)]
model = emblema.load("default")
found = model.classify([r.image for r in chosen], data.class_names).argmax(-1).tolist()

sheet = Image.new("RGB", (COLUMNS * (SIZE + 16), ROWS * (SIZE + GAP)), "white")
draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
for place, (record, guess) in enumerate(zip(chosen, found)):
    x, y = place % COLUMNS * (SIZE + 16) + 8, place // COLUMNS * (SIZE + GAP) + 4
    picture = open_picture(record.image).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    sheet.paste(picture, (x, y), picture)
    name = data.class_names[guess]
    colour = "#11603a" if guess == record.label else "#a03020"
    draw.text((x + SIZE / 2, y + SIZE + 4), name[:17], fill=colour, font=font, anchor="ma")
path = Path("docs/images/held-out.webp")
path.parent.mkdir(parents=True, exist_ok=True)
sheet.save(path, quality=85)
print(path)
