"""A dialect: that of megatron-core, every name behind a prefix."""

from dataclasses import replace

from ckptconv.dialects.core import CORE_LOCAL

DIALECT = replace(
    CORE_LOCAL, name="zoo", lines=tuple(replace(line, name=f"zoo.{line.name}") for line in CORE_LOCAL.lines)
)
