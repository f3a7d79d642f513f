"""A reader of what the target writes."""

import json

from ckptconv.containers.base import FileTensor, contiguous_stride
from ckptconv.dtypes import dtype
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.readers.reader import Reader


def recognise(path):
    return (path / "model.zoo").is_file()


def open_zoo(path, options):
    file = path / "model.zoo"
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    graph = GraphBuilder()
    for entry in json.loads(content[8:start]):
        shape, kind = tuple(entry["shape"]), dtype(entry["dtype"])
        at = start + entry["at"]
        tensor = FileTensor(kind, shape, contiguous_stride(shape), str(file), at, (at, 0))
        graph.whole(entry["name"], tensor, entry["name"].lower())
    return Checkpoint(path, path, "zoo", "a zoo", "model", graph.stored, graph.relation(), graph.files)


READER = Reader("zoo", recognise, open_zoo)
