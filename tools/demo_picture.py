"""Makes the README's picture from the folder of `make demo`.

`python tools/demo_picture.py demo docs/images/demo.png`
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scanfield.report.pictures import Panel, comparison_figure, encode, robust_limit
from scanfield.report.record import read_record

SHOWN = ("reference", "fbp", "tv", "scope")
DPI = 130


def main() -> int:
    """Writes the picture and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    record = read_record(args.run)
    pictures = {picture.name: picture for picture in record.pictures}
    rows = {row.name: row.values for row in record.rows}
    truth = pictures["reference"].cuts[0]
    errors = {name: pictures[name].cuts[0] - truth for name in SHOWN[1:]}
    panels = [Panel("original", truth)]
    for name in SHOWN[1:]:
        psnr = f"PSNR {rows[name]['psnr_db:reference']:.1f} dB"
        panels.append(Panel(pictures[name].label, pictures[name].cuts[0], psnr, errors[name]))
    low, high = record.facts["display"]["window"]
    figure = comparison_figure(
        panels,
        record.views[0],
        window=(low, high),
        unit="1/mm",
        error_limit=robust_limit(list(errors.values())),
        error_label="image − original",
        columns=len(SHOWN),
    )
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    args.picture.write_bytes(encode(figure, "png", DPI))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
