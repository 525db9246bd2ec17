"""A small picture of an item for the start page."""

from __future__ import annotations

from scanfield.data.nifti import read_nifti
from scanfield.errors import InputError
from scanfield.report.snapshot import snapshot, usual_window
from scanfield.report.views import views
from scanfield.view.items import Item

SIDE = 160  # pixels
MOST_BYTES = 64_000_000  # of a file that is read for a thumbnail
ORDER = ("method", "read-out", "file", "baseline", "reference")


def thumbnail(item: Item) -> bytes | None:
    """The middle slice of the item's most telling volume as PNG, or None where there is none."""
    volumes = [layer for layer in item.layers if layer.kind in ORDER and layer.path.stat().st_size <= MOST_BYTES]
    if not volumes:
        return None
    try:
        scan = read_nifti(min(volumes, key=lambda layer: ORDER.index(layer.kind)).path, channels=True)
    except InputError:
        return None
    volume = scan.values.reshape(*scan.grid.shape, -1)[..., 0].numpy()
    cut = views(scan.grid.shape, scan.grid.affine)[0].cut(volume)
    return snapshot(cut, usual_window(cut), SIDE)
