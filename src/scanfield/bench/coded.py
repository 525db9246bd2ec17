"""A volume to a file and back, as the protocols of compression count it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from scanfield.data.scan import Scan
from scanfield.data.stored import StoredType
from scanfield.errors import InputError
from scanfield.metrics.image import psnr_db
from scanfield.run import Run
from scanfield.tasks.compression import compress, decompress
from scanfield.tasks.model import Model


def coded(
    scan: Scan, method: str, config: Any, run: Run, *, stored_type: StoredType, model: Model | None = None
) -> dict[str, Any]:
    """Bytes, PSNR of the decoded file (peak: the volume's range), and seconds; or under 'refused' why there is no file
    of these bytes.

    Args:
        run: nothing else may have been fitted in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.sfz"
        try:
            found = compress(scan, method, config, run, path, stored_type=stored_type, baselines=False, model=model)
        except InputError as error:
            return {"refused": error.what}
        start = time.perf_counter()
        decoded = decompress(path, device=run.device, model=model)
        seconds = time.perf_counter() - start
    return {
        "bytes": found.report.total,
        "psnr_db": round(psnr_db(decoded.values, scan.values), 3),
        "encode_s": round(run.timings["fit"], 1),
        "decode_s": round(seconds, 3),
    }
