"""Lay ranks out: which exist, what their folders are called, which layers and slices each holds. Pure."""

from ckptconv.parallel.grid import Grid, Rank
from ckptconv.parallel.shards import Cut, Shard, merge_shards
from ckptconv.parallel.stages import Chunk, Stages, chunk_order, number_layers, stage_layers

__all__ = [
    "Chunk",
    "Cut",
    "Grid",
    "Rank",
    "Shard",
    "Stages",
    "chunk_order",
    "merge_shards",
    "number_layers",
    "stage_layers",
]
