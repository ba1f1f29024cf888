"""Resume a tiny run in N random ways: other lengths, batch sizes, stops and placements, and say which of them failed.

    python scripts/check_resume.py [N=200] [FIRST_SEED=0]

Every run ends with a PLY; where neither length nor batch size changed, with the bits of the uninterrupted run.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.run.resumes import check_case, random_case, tiny_scene


def main(count: int, first: int) -> int:
    """Exit code: 0 when all cases hold."""
    os.fsync = lambda _descriptor: None  # nothing here is about power cuts, and it takes half of the time
    began, failed, unchanged = time.perf_counter(), 0, 0
    with tempfile.TemporaryDirectory() as name:
        data = tiny_scene(Path(name) / "data")
        for seed in range(first, first + count):
            case = random_case(seed)
            unchanged += case.unchanged
            try:
                check_case(case, data, Path(name) / str(seed))
            except Exception:
                failed += 1
                print(f"case {seed}: {case}\n{traceback.format_exc()}")
    seconds = time.perf_counter() - began
    print(f"{count} resumes, {unchanged} of them compared bit by bit: {failed} failed, {seconds:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    sys.exit(main(*[*numbers, *(200, 0)[len(numbers) :]]))
