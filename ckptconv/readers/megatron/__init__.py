"""Read what Megatron-LM, ModelLink and MindSpeed-LLM write in the ``torch`` format."""

from ckptconv.readers.megatron.read import READER

__all__ = ["READER"]
