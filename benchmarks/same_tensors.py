#!/usr/bin/env python
"""Check that two safetensors files hold the same tensors, bit for bit; exit with 1 if not.

python benchmarks/same_tensors.py A B
"""

from __future__ import annotations

import sys

from safetensors import safe_open


def main(a: str, b: str) -> None:
    """Compare names, dtypes, shapes and bytes, one tensor at a time."""
    with safe_open(a, "np") as left, safe_open(b, "np") as right:
        if different := set(left.keys()) ^ set(right.keys()):
            sys.exit(f"only in one of them: {sorted(different)[0]}")
        for name in left.keys():  # noqa: SIM118
            x, y = left.get_tensor(name), right.get_tensor(name)
            if x.dtype != y.dtype or x.shape != y.shape or x.tobytes() != y.tobytes():
                sys.exit(f"{name} differs")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
