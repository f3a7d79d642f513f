"""Read what Megatron-LM, ModelLink and MindSpeed-LLM write in the ``torch`` format."""

from ckptconv.plugins import later
from ckptconv.readers.megatron.find import lacking, recognise, saves
from ckptconv.readers.megatron.options import MegatronOptions
from ckptconv.readers.reader import Reader

__all__ = ["READER"]

READER = Reader(
    "megatron",
    recognise,
    later("ckptconv.readers.megatron.read:open_checkpoint"),
    MegatronOptions,
    saves,
    lacking,
)
