"""Print what a run reached and what it cost: the PSNR and the receipt that `clm train` wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clm.units import format_bytes


def main() -> None:
    run = Path(sys.argv[1])
    metrics = json.loads((run / "metrics.json").read_text())
    report = json.loads((run / "report.json").read_text())
    traffic, lanes, peak = report["traffic"], report["lanes"], report["peak"]
    shown = metrics["test"] or metrics["train"]
    print(f"PSNR {shown['psnr']:.2f} dB, SSIM {shown['ssim']:.3f}, {metrics['num_gaussians']:,} Gaussians")
    print(
        f"{report['iterations']:,} images in {report['seconds']:.0f} s ({report['images_per_second']:.1f} images/s), "
        f"offload {report['offload']}"
    )
    print(
        f"device peak {format_bytes(peak['device_bytes'])}; all on the device would need {format_bytes(report['in_core_bytes'])}"
    )
    print(
        f"rows loaded {traffic['rows_loaded']:,} (without reuse {traffic['rows_loaded_no_reuse']:,}, "
        f"lower bound {traffic['rows_lower_bound']:,}); {100 * lanes['hidden_fraction']:.0f}% of the transfers hidden"
    )


if __name__ == "__main__":
    main()
