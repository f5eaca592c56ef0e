"""Remakes the pictures beside it; needs Pillow (made with 12.x) and numpy. No outside material."""

import numpy as np
from PIL import Image

rng = np.random.default_rng(7)

# Four flat quarters (red, green / blue, white), so that JPEG hardly changes them.
quarters = np.zeros((32, 48, 3), np.uint8)
quarters[:16, :24], quarters[:16, 24:] = (200, 30, 30), (30, 200, 30)
quarters[16:, :24], quarters[16:, 24:] = (30, 30, 200), (240, 240, 240)
upright = Image.fromarray(quarters)
upright.save("upright.png")
upright.convert("CMYK").save("cmyk.jpg", quality=95)
upright.convert("L").save("grey_progressive.jpg", quality=95, progressive=True)
# Stored lying on its side, to be turned a quarter clockwise.
upright.transpose(Image.Transpose.ROTATE_90).save("orientation6.tif", tiffinfo={274: 6}, compression="tiff_lzw")
palette = upright.quantize(4)
palette.save("palette_alpha.png", transparency=bytes([0, 80, 160, 255]))
black = Image.new("RGB", upright.size)
upright.save("animated.png", save_all=True, append_images=[black, black], duration=100)
upright.save("animated.webp", save_all=True, append_images=[black, black], duration=100, lossless=True)

# Smooth noise, fitted by Pillow as a reference for the resize.
field = rng.integers(0, 256, (10, 13, 3), np.uint8)
source = Image.fromarray(field).resize((101, 77), Image.Resampling.BICUBIC)
source.save("fit_source.png")
filters = {"bilinear": 2, "bicubic": 3, "lanczos": 1}
for name, code in filters.items():
    source.resize((32, 24), code).save(f"fit_{name}_32x24.png")
# Short side to 40 (smaller) or 120 (larger), then the centre 32x32, as torchvision does.
for short, name in ((40, "fit_crop_32x32.png"), (120, "fit_crop_large_32x32.png")):
    width = int(short * 101 / 77)
    left, top = int(round((width - 32) / 2.0)), int(round((short - 32) / 2.0))
    source.resize((width, short), 2).crop((left, top, left + 32, top + 32)).save(name)
source.resize((32, 24), 2).convert("L").save("fit_grey_32x24.png")
