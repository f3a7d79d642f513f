"""List the slots and their shapes, in the convention of ``torch.nn.Linear``: ``[out, in]``.

A slot that repeats is named ``layers.*.attn.q`` in tables and ``layers.3.attn.q`` for a layer;
``{e}`` stands for an expert's number. A layer for multi-token prediction, ``mtp.*``, has the slots of any
layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from ckptconv.errors import PlanError
from ckptconv.slots.part import Part, part_of

__all__ = ["SHAPES", "Dims", "Sizes", "place_of", "shape_of", "template"]

Dims = Mapping[str, int]

# One axis is a sum of products of sizes; the names of sizes are those of `ckptconv.families.dims`.
_LAYER = {
    "attn_norm": "hidden",
    "attn.q": "heads*head_dim,hidden",
    "attn.k": "kv_heads*head_dim,hidden",
    "attn.v": "kv_heads*head_dim,hidden",
    "attn.o": "hidden,heads*head_dim",
    "attn.q_norm": "q_norm",
    "attn.k_norm": "k_norm",
    "attn.gate": "heads*head_dim,hidden",
    "attn.sinks": "heads",
    # Multi-head latent attention; each head's query and key are a part without and a part with position.
    "mla.q.nope": "heads*nope,hidden",
    "mla.q.rope": "heads*rope,hidden",
    "mla.q_a": "q_rank,hidden",
    "mla.q_a_norm": "q_rank",
    "mla.q_b.nope": "heads*nope,q_rank",
    "mla.q_b.rope": "heads*rope,q_rank",
    "mla.kv_a": "kv_rank+rope,hidden",
    "mla.kv_a_norm": "kv_rank",
    "mla.kv_b.k": "heads*nope,kv_rank",
    "mla.kv_b.v": "heads*v_dim,kv_rank",
    "mla.o": "hidden,heads*v_dim",
    # The indexer of sparse attention over latents.
    "mla.indexer.q_b": "index_heads*index_dim,q_rank",
    "mla.indexer.k": "index_dim,hidden",
    "mla.indexer.k_norm": "index_dim",
    "mla.indexer.weights": "index_heads,hidden",
    # Gated delta net; beta and alpha are one for each value head.
    "gdn.q": "delta_keys*delta_key,hidden",
    "gdn.k": "delta_keys*delta_key,hidden",
    "gdn.v": "delta_values*delta_value,hidden",
    "gdn.z": "delta_values*delta_value,hidden",
    "gdn.beta": "delta_values,hidden",
    "gdn.alpha": "delta_values,hidden",
    "gdn.conv.q": "delta_keys*delta_key,1,delta_kernel",
    "gdn.conv.k": "delta_keys*delta_key,1,delta_kernel",
    "gdn.conv.v": "delta_values*delta_value,1,delta_kernel",
    "gdn.a_log": "delta_values",
    "gdn.dt_bias": "delta_values",
    "gdn.norm": "delta_value",
    "gdn.o": "hidden,delta_values*delta_value",
    # Mamba 2.
    "mamba.z": "mamba_inner,hidden",
    "mamba.x": "mamba_inner,hidden",
    "mamba.b": "mamba_groups*mamba_state,hidden",
    "mamba.c": "mamba_groups*mamba_state,hidden",
    "mamba.dt": "mamba_heads,hidden",
    "mamba.conv.x": "mamba_inner,1,mamba_kernel",
    "mamba.conv.b": "mamba_groups*mamba_state,1,mamba_kernel",
    "mamba.conv.c": "mamba_groups*mamba_state,1,mamba_kernel",
    "mamba.a_log": "mamba_heads",
    "mamba.d": "mamba_heads",
    "mamba.dt_bias": "mamba_heads",
    "mamba.norm": "mamba_inner",
    "mamba.o": "hidden,mamba_inner",
    "attn_post_norm": "hidden",
    "mlp_norm": "hidden",
    "mlp.gate": "inner,hidden",
    "mlp.up": "inner,hidden",
    "mlp.down": "hidden,inner",
    "moe.router": "experts,hidden",
    "moe.router_bias": "experts",
    # Experts may be narrower than the model, between projections of their own.
    "moe.latent.down": "expert_hidden,hidden",
    "moe.latent.up": "hidden,expert_hidden",
    "moe.experts.{e}.gate": "expert_inner,expert_hidden",
    "moe.experts.{e}.up": "expert_inner,expert_hidden",
    "moe.experts.{e}.down": "expert_hidden,expert_inner",
    "moe.shared.gate": "shared_inner,hidden",
    "moe.shared.up": "shared_inner,hidden",
    "moe.shared.down": "hidden,shared_inner",
    "moe.shared_gate": "1,hidden",
    "mlp_post_norm": "hidden",
}
SHAPES: Mapping[str, tuple[str, ...]] = {
    name: tuple(axes.split(","))
    for name, axes in {
        "embed": "vocab,hidden",
        "embed_norm": "hidden",
        "positions": "positions,hidden",
        **{f"layers.*.{name}": axes for name, axes in _LAYER.items()},
        "final_norm": "hidden",
        "head": "vocab,hidden",
        **{f"mtp.*.{name}": axes for name, axes in _LAYER.items()},
        "mtp.*.enorm": "hidden",
        "mtp.*.hnorm": "hidden",
        "mtp.*.eh_proj": "hidden,2*hidden",
        "mtp.*.norm": "hidden",
    }.items()
}


class Sizes(dict[str, int]):
    """Hold the sizes of a model by name, and what its family brings.

    Attributes:
        shapes: As in `SHAPES`, of slots that are not in there.
        parts: The sizes of parts beside the language model that have a table.
        beside: What frameworks call the tensors of those parts, and of the ones that pass through.
        beneath: What frameworks put before the names of the language model.
        known: Shapes that were asked for, by slots as tables write them; the sizes stay as they are.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        shapes: Mapping[str, tuple[str, ...]] | None = None,
        parts: Mapping[str, Sizes] | None = None,
        beside: tuple[Part, ...] = (),
        beneath: str = "",
    ) -> None:
        super().__init__(sizes)
        self.shapes = shapes or {}
        self.parts = parts or {}
        self.beside = beside
        self.beneath = beneath
        self.known: dict[str, tuple[int, ...]] = {}

    @staticmethod
    def of(dims: Dims, more: Mapping[str, int] | None = None) -> Sizes:
        """Return sizes with further ones."""
        known = dims if isinstance(dims, Sizes) else Sizes(dims)
        if not more:
            return known
        return Sizes({**known, **more}, known.shapes, known.parts, known.beside, known.beneath)

    def outer(self, name: str) -> str:
        """Return what a framework calls a tensor that its dialect calls so."""
        if not self.beneath or name.startswith(tuple(part.prefix for part in self.beside)):
            return name
        return self.beneath + name


@lru_cache(maxsize=1 << 17)
def template(slot: str) -> str:
    """Return a slot's name as tables write it: ``layers.3.attn.q`` is ``layers.*.attn.q``."""
    kind, _, rest = slot.partition(".")
    number, dot, rest = rest.partition(".")
    if dot and kind in ("layers", "mtp") and number.isdecimal():
        slot = f"{kind}.*.{rest}"
    before, experts, after = slot.partition(".experts.")
    number, dot, rest = after.partition(".")
    return f"{before}{experts}{{e}}.{rest}" if dot and number.isdecimal() else slot


@lru_cache(maxsize=1 << 17)
def place_of(slot: str) -> tuple[str, str, str]:
    """Return a slot's name in tables, and its layer and expert as text, empty if it has none."""
    parts = slot.split(".")
    layer = ".".join(parts[:2]) if parts[0] in ("layers", "mtp") else ""
    return template(slot), layer, parts[4] if parts[3:4] == ["experts"] else ""


def shape_of(slot: str, dims: Dims) -> tuple[int, ...]:
    """Return the shape of a slot, or of its ``.bias``, in a model of these sizes.

    Raises:
        PlanError: if it is no slot, or a size is not known.
    """
    if part := part_of(slot):
        return shape_of(slot.partition("/")[2], Sizes.of(dims).parts[part])
    name = template(slot)
    sizes = Sizes.of(dims)
    if (known := sizes.known.get(name)) is not None:
        return known
    own = sizes.shapes
    axes, bias = SHAPES.get(name) or own.get(name), False
    if axes is None and name.endswith(".bias"):
        bare, bias = name.removesuffix(".bias"), True
        axes = SHAPES.get(bare) or own.get(bare)
    if axes is None:
        raise PlanError(
            f"{slot} is no slot",
            hint="see ckptconv/slots/shapes.py for their names, or list it in the family's slots",
        )
    shape = sizes.known[name] = tuple([_axis(axis, dims) for axis in (axes[:1] if bias else axes)])
    return shape


def _axis(axis: str, dims: Dims) -> int:
    total = 0
    for factors in _parsed(axis):
        product = 1
        for factor in factors:
            if isinstance(factor, str) and factor not in dims:
                raise PlanError(
                    f"the configuration does not say {factor!r}",
                    hint="give a complete config.json with --config",
                )
            product *= dims[factor] if isinstance(factor, str) else factor
        total += product
    return total


@lru_cache(maxsize=256)
def _parsed(axis: str) -> tuple[tuple[str | int, ...], ...]:
    return tuple(
        tuple(int(f) if f.isdigit() else f for f in summand.split("*")) for summand in axis.split("+")
    )
