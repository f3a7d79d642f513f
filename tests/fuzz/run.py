"""Fuzz one parser with atheris for some time: ``run.py TARGET [--seconds N] [--work DIR]``.

What it finds is left in ``DIR/TARGET/found``; inputs that reached something new in ``DIR/TARGET/corpus``.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent)]

import atheris

with atheris.instrument_imports(include=["ckptconv"]):
    from fuzz.targets import TARGETS
from fuzz.seeds import LARGEST, SMALL, seeds

_WORDS = {
    "unpickler": ["builtins", "collections\\x0aOrderedDict\\x0a", "copyreg\\x0a_reconstructor\\x0a",
                  "_codecs\\x0aencode\\x0a", "copyreg\\x0a__newobj_ex__\\x0a", "\\x80\\x04\\x95", "cbuiltins\\x0aset\\x0a"],
    "torch": ["PK\\x03\\x04", "PK\\x01\\x02", "PK\\x05\\x06", "PK\\x06\\x06", "PK\\x06\\x07", "storage", "data.pkl",
              "ctorch._utils\\x0a_rebuild_tensor_v2\\x0a", "FloatStorage", "model", "args"],
    "protobuf": ["Float32", "BFloat16", "crc_num", "Int4", "\\x0a\\x00\\x12\\x00", "\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x01",
                 "parallel_layout_item", "dev_matrix", "tensor_map"],
    "safetensors": ["__metadata__", "\\\"dtype\\\":\\\"F32\\\"", "\\\"shape\\\":[", "\\\"data_offsets\\\":[0,0]", "BF16",
                    "9223372036854775807", "1e5", "null"],
    "dcp": ["ctorch.distributed.checkpoint.metadata\\x0aMetadataIndex\\x0a", "relative_path", "storage_data", "chunks",
            "offsets", "sizes", "../", "fqn"],
}  # fmt: skip


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
    words = work / "words"
    words.write_text("".join(f'"{word}"\n' for word in _WORDS[options.target]))
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
