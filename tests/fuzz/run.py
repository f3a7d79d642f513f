"""Fuzz one parser with atheris for some time: ``run.py TARGET [--seconds N] [--work DIR]``.

What it finds is left in ``DIR/TARGET/found``; inputs that reached something new in ``DIR/TARGET/corpus``.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ckptconv"]):
    from fuzz.targets import TARGETS
from fuzz.seeds import LARGEST, SMALL, seeds


def main() -> None:
    """Run libFuzzer's loop until the time is over or something is found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--work", type=Path, default=Path(".fuzz"))
    options = parser.parse_args()
    work = options.work / options.target
    corpus, found = work / "corpus", work / "found"
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    largest = SMALL if options.target in ("unpickler", "dcp") else LARGEST
    for seed in seeds(options.target, largest):
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    words = Path(__file__).parent / "words" / options.target
    flags = [
        f"-max_total_time={options.seconds}", f"-max_len={largest}", f"-dict={words}",
        f"-artifact_prefix={found}/", "-timeout=20", "-rss_limit_mb=2048", "-malloc_limit_mb=1024",
        "-print_final_stats=1",
    ]  # fmt: skip
    run = TARGETS[options.target]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], lambda data: run(bytes(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
