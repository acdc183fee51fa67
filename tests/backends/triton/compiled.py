"""Compile kernels for a GPU that is not there: `python compiled.py TARGET [SEEDS]`.

Prints shared memory, registers and spilled bytes of each as JSON: of the named regions, or of so many random ones.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from random_regions import random_region
from regions import CASES, named
from stretto.backends.triton.blocks import default_blocks
from stretto.backends.triton.cross_compile import cross_compile
from stretto.backends.triton.generate import generate

if __name__ == "__main__":
    regions = {name: named(name)[0] for name in CASES}
    if len(sys.argv) > 2:
        regions = {f"seed_{seed}": random_region(seed)[0] for seed in range(int(sys.argv[2]))}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, region in regions.items():
            kernel = generate(region, name)
            taken = cross_compile(region, kernel, default_blocks(kernel), sys.argv[1], Path(folder))
            found[name] = [taken.shared_bytes, taken.registers, taken.spilled_bytes]
    print(json.dumps(found))
