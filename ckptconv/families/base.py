"""Say what a Hugging Face architecture stores: a table of slots, each with its name and shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckptconv.errors import PlanError
from ckptconv.graph import Relation, Spec, concat
from ckptconv.graph import one as renamed

__all__ = ["Family", "Findings", "Fused", "Slot", "dims", "one"]

Config = Mapping[str, Any]
Shape = tuple[int, ...]

# What configs call the same size; the first key that is there counts.
_SIZES: dict[str, tuple[str, ...]] = {
    "vocab": ("vocab_size", "padded_vocab_size"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "inner": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "positions": ("max_position_embeddings", "n_positions"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_inner": ("moe_intermediate_size", "intermediate_size"),
    "shared_inner": ("shared_expert_intermediate_size",),
}


def dims(config: Config) -> dict[str, int]:
    """Return the sizes a config fixes, under one set of names, with the defaults transformers applies."""
    found = {
        name: value
        for name, keys in _SIZES.items()
        if isinstance(value := next((config[k] for k in keys if config.get(k) is not None), None), int)
    }
    if "hidden" in found:
        found.setdefault("inner", 4 * found["hidden"])
        if found.get("heads"):
            found.setdefault("head_dim", found["hidden"] // found["heads"])
    if "heads" in found:
        found.setdefault("kv_heads", found["heads"])
    return found


@dataclass(frozen=True, slots=True)
class Slot:
    """One logical tensor of an architecture.

    Attributes:
        slot: Its name in ckptconv's vocabulary, for example ``layers.*.attn.q``.
        name: Its name in a Hugging Face file; ``*`` is the layer's number, ``{e}`` the expert's.
        shape: A product of sizes per axis, for example ``"heads*head_dim"``; see ``dims``.
        when: Config flag the tensor exists for, ``!`` before it negates; None if it always exists.
        optional: Whether a model is complete without it.
    """

    slot: str
    name: str
    shape: tuple[str, ...]
    when: str | None = None
    optional: bool = False


def one(slot: str, name: str, *shape: str, when: str | None = None, optional: bool = False) -> Slot:
    """Declare a slot stored as a tensor of its own."""
    return Slot(slot, name, shape, when, optional)


@dataclass(frozen=True, slots=True)
class Fused:
    """A tensor transformers 5 holds in memory under another name or form than it saves.

    Attributes:
        memory: Its name in a training state dict; ``*`` is the layer's number.
        saved: The names ``save_pretrained`` writes: one, or with ``{e}`` several for every expert, which are
            the rows of the memory tensor ``[experts, rows, columns]``, expert by expert, in this order.
    """

    memory: str
    saved: tuple[str, ...]

    def relate(self, name: str, spec: Spec) -> Relation | None:
        """Relate a memory tensor to the tensors that are saved, or return None if it is another one."""
        match = re.fullmatch(re.escape(self.memory).replace(r"\*", r"(\d+)"), name)
        if match is None:
            return None
        names = [s.replace("*", match[1]) for s in self.saved]
        if "{e}" not in names[0]:
            return renamed(name, names[0], spec)
        if len(spec.shape) != 3 or spec.shape[1] % len(names):
            raise PlanError(
                f"{name} has shape {list(spec.shape)}, not [experts, {len(names)} x rows, columns]"
            )
        experts, rows, columns = spec.shape[0], spec.shape[1] // len(names), spec.shape[2]
        parts = {
            n.replace("{e}", str(e)): Spec((rows, columns), spec.dtype) for e in range(experts) for n in names
        }
        flat = f"{name} as rows"
        flatten = renamed(name, flat, Spec((experts * spec.shape[1], columns), spec.dtype), shape=spec.shape)
        return flatten.compose(concat(flat, parts))


@dataclass(frozen=True, slots=True)
class Findings:
    """Compare a checkpoint's names and shapes with a family's.

    Attributes:
        missing: Names the architecture has and the checkpoint lacks.
        unexpected: Names the architecture does not know (adapters, custom heads).
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Describe how an architecture stores its weights.

    Attributes:
        name: Name for ``--family``.
        model_types: Values of ``model_type`` in config.json.
        slots: Its tensors; none if only ``fused`` is known of it.
        flags: Values of config flags that transformers assumes when the config does not say.
        ignored: Patterns of buffers old releases stored and new ones do not.
        fused: What memory and file hold differently.
        pinned: Patterns of tensors whose dtype ``--dtype`` leaves alone.
    """

    name: str
    model_types: tuple[str, ...]
    slots: tuple[Slot, ...]
    flags: Mapping[str, Any]
    ignored: tuple[str, ...] = ()
    fused: tuple[Fused, ...] = ()
    pinned: tuple[str, ...] = ()

    def is_pinned(self, name: str) -> bool:
        """Whether a tensor keeps its dtype whatever the others are rounded to."""
        return any(re.fullmatch(p, name) for p in self.pinned)

    def name_of(self, slot: str) -> str | None:
        """Return the Hugging Face name of a slot that is not per layer."""
        return next((s.name for s in self.slots if s.slot == slot), None)

    def tied(self, config: Config) -> bool:
        """Whether the config ties the output head to the embedding."""
        return bool(self._flag(config, "tie_word_embeddings"))

    def _flag(self, config: Config, key: str) -> Any:
        value = config.get(key)
        return self.flags.get(key, False) if value is None else value

    def expected(self, config: Config) -> Iterator[tuple[str, Shape, bool]]:
        """Yield name, shape and whether it is optional, for every tensor a model of ``config`` has."""
        sizes = dims(config)
        for slot in self.slots:
            if slot.when is not None and bool(
                self._flag(config, slot.when.lstrip("!"))
            ) == slot.when.startswith("!"):
                continue
            try:
                shape = tuple(_product(axis, sizes) for axis in slot.shape)
                count = sizes["layers"] if "*" in slot.name else 1
            except KeyError as e:
                raise PlanError(
                    f"config.json does not say {e.args[0]}", hint="give a complete --config"
                ) from e
            experts = sizes.get("experts", 0) if "{e}" in slot.name else 1
            for layer in range(count):
                for expert in range(experts):
                    name = slot.name.replace("*", str(layer)).replace("{e}", str(expert))
                    yield name, shape, slot.optional

    def saved(self, tensors: Mapping[str, Spec]) -> Relation | None:
        """Relate the tensors a model holds in memory to those it saves; None if they are the same."""
        parts = {
            n: next((r for f in self.fused if (r := f.relate(n, s)) is not None), None)
            for n, s in tensors.items()
        }
        if not any(parts.values()):
            return None
        return Relation.union(parts[n] or renamed(n, n, s) for n, s in tensors.items())

    def compare(self, config: Config, tensors: Mapping[str, Shape], present: Iterable[str] = ()) -> Findings:
        """Compare names and shapes with the architecture.

        Args:
            config: The content of config.json.
            tensors: Shapes by name.
            present: Further names that are there (aliases).

        Raises:
            PlanError: if a tensor has another shape than the config asks for, or a layer it has not.
        """
        expected = {name: (shape, optional) for name, shape, optional in self.expected(config)}
        plain = {_plain(n): n for n in tensors}
        there = {*plain, *(_plain(n) for n in present)}
        wrong = [
            f"{plain[n]} is {list(tensors[plain[n]])}, config.json asks for {list(shape)}"
            for n, (shape, _) in expected.items()
            if n in plain and tensors[plain[n]] != shape
        ]
        patterns = [
            re.compile(re.escape(s.name).replace(r"\*", r"(\d+)").replace(r"\{e\}", r"\d+"))
            for s in self.slots
            if "*" in s.name
        ]
        found = [int(m[1]) for n in plain for p in patterns if (m := p.fullmatch(n))]
        layers = dims(config).get("layers", 0)
        if found and max(found) + 1 != layers:
            wrong.append(f"the checkpoint has {max(found) + 1} layers, config.json says {layers}")
        if wrong:
            more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
            raise PlanError(
                "config.json contradicts the checkpoint: " + "; ".join(wrong[:5]) + more,
                hint="give the config of this very model with --config",
            )
        ignored = [re.compile(p) for p in self.ignored]
        return Findings(
            tuple(n for n, (_, optional) in expected.items() if not optional and n not in there),
            tuple(plain[n] for n in plain if n not in expected and not any(p.fullmatch(n) for p in ignored)),
        )


def _plain(name: str) -> str:
    """Strip what PEFT and torch.compile put around a parameter's own name."""
    return name.removeprefix("base_model.model.").removeprefix("_orig_mod.").replace(".base_layer.", ".")


def _product(axis: str, sizes: Mapping[str, int]) -> int:
    total = 1
    for factor in axis.split("*"):
        total *= int(factor) if factor.isdigit() else sizes[factor]
    return total
