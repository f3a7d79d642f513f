"""Say what a Hugging Face architecture stores: a table of tensors, each with the slots it holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Final

from ckptconv.errors import PlanError
from ckptconv.facts.typed import MOST_LAYERS
from ckptconv.families.template import Template
from ckptconv.records import dataclass
from ckptconv.relations import Spec
from ckptconv.slots import Entry, Found, Part, Sizes, Table, Words, shape_of, template
from ckptconv.slots.entry import holes, numbers
from ckptconv.slots.words import beginnings, block, conditions

__all__ = ["Config", "Family", "FamilyPart", "Findings", "dims", "is_sparse"]

Config = Mapping[str, Any]
Shape = tuple[int, ...]

# What configs call the same size; the first key that is there counts.
_SIZES: dict[str, tuple[str, ...]] = {
    "vocab": ("vocab_size", "padded_vocab_size"),
    "hidden": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("head_dim",),
    "inner": ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim"),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len"),
    "experts": ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"),
    "expert_inner": ("moe_intermediate_size", "intermediate_size"),
    "expert_hidden": ("moe_latent_size",),
    "shared_inner": ("shared_expert_intermediate_size",),
    "q_rank": ("q_lora_rank",),
    "kv_rank": ("kv_lora_rank",),
    "nope": ("qk_nope_head_dim",),
    "rope": ("qk_rope_head_dim",),
    "v_dim": ("v_head_dim",),
    "delta_keys": ("linear_num_key_heads",),
    "delta_values": ("linear_num_value_heads",),
    "delta_key": ("linear_key_head_dim",),
    "delta_value": ("linear_value_head_dim",),
    "delta_kernel": ("linear_conv_kernel_dim",),
    "mtp": ("num_nextn_predict_layers", "mtp_num_hidden_layers"),
    "index_heads": ("index_n_heads",),
    "index_dim": ("index_head_dim",),
}


_MOST: Final = {"layers": MOST_LAYERS, "mtp": MOST_LAYERS, "experts": 100_000}
_MOST_EXPERTS: Final = 150_000
"""Experts of all layers, at most: slots are made of as many. DeepSeek-V3 has 15,000."""


def dims(config: Config) -> dict[str, int]:
    """Return the sizes a config fixes, under one set of names, with the defaults transformers applies."""
    found = {
        name: value
        for name, keys in _SIZES.items()
        if isinstance(value := next((config[k] for k in keys if config.get(k) is not None), None), int)
    }
    if "hidden" in found:
        found.setdefault("inner", 4 * found["hidden"])
        found.setdefault("expert_hidden", found["hidden"])
        if found.get("heads"):
            found.setdefault("head_dim", found["hidden"] // found["heads"])
    if "heads" in found:
        found.setdefault("kv_heads", found["heads"])
    if "head_dim" in found:
        found.setdefault("q_norm", found["head_dim"])
        found.setdefault("k_norm", found["head_dim"])
    if config.get("n_shared_experts") and "expert_inner" in found:
        found.setdefault("shared_inner", config["n_shared_experts"] * found["expert_inner"])
    for name, most in _MOST.items():
        if not 0 <= found.get(name, 0) <= most:
            raise PlanError(f"a model of {found[name]} {name}, says its config", hint="give another --config")
    if (experts := found.get("experts", 0) * found.get("layers", 0)) > _MOST_EXPERTS:
        raise PlanError(f"a model of {experts:,} experts, says its config", hint="give another --config")
    return found


def is_sparse(config: Config, layer: int) -> bool:
    """Whether a layer has experts, by any of the ways configs say it (transformers 5.23)."""
    if not dims(config).get("experts"):
        return False
    if isinstance(kinds := config.get("mlp_layer_types"), list):
        return layer < len(kinds) and kinds[layer] == "sparse"
    if layer in (config.get("mlp_only_layers") or ()):
        return False
    if (step := config.get("decoder_sparse_step")) is not None and (not step or (layer + 1) % step):
        return False
    if layer < (config.get("first_k_dense_replace") or 0):
        return False
    every = config.get("moe_layer_freq") or 1
    return bool(every[layer]) if isinstance(every, list) else layer % every == 0


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
class FamilyPart:
    """Describe a part of a larger model beside its language model.

    Attributes:
        prefix: What the names of its tensors begin with in Hugging Face's files.
        framework: And in frameworks.
        entries: Its tensors, by the names after the prefix; none where they pass through as they are.
        sizes: The sizes those need, from config.json; a dialect has the framework's names then.
        kept: What stands before Hugging Face's names in frameworks that keep them (mcore-bridge).
        slots: Shapes of slots only this part has.
    """

    prefix: str
    framework: str
    entries: tuple[Entry, ...] = ()
    sizes: Callable[[Config], Mapping[str, int]] | None = None
    kept: tuple[str, ...] = ()
    slots: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.framework.rstrip(".")


_LAST: Final[dict[str, tuple[tuple[Family, str], tuple[tuple[str, Shape, bool], ...]]]] = {}


@dataclass(frozen=True, slots=True)
class Family:
    """Describe how an architecture stores its weights.

    Attributes:
        name: Name for ``--family``.
        model_types: Values of ``model_type`` in config.json.
        entries: Its tensors.
        flags: Values of config flags that transformers assumes when the config does not say.
        ignored: Patterns of buffers old releases stored and new ones do not.
        pinned: Patterns of tensors whose dtype ``--dtype`` leaves alone.
        sizes: Sizes a config says in a way of its own, from the config; they go before `dims`.
        kinds: What each layer is, where not all are alike but for experts (`is_sparse`): the blocks of slots
            it has, ``attn moe`` or ``gdn mlp``. Layers for multi-token prediction come after the others.
        slots: Shapes of slots only this family has, as in `ckptconv.slots.SHAPES`: ``layers.*.mine.up`` is
            ``inner,hidden``.
        zero_centered: Whether its norms are stored without the 1 they multiply by.
        plain_norms: Norms that nevertheless are not.
        template: What its config.json states, for models whose training arguments are all there is.
        inside: The key of config.json that holds the config of the language model, in one of several parts.
        language: The family that model is of by itself, if it is always the same.
        beneath: What frameworks put before the names of the language model then.
        parts: The other parts, those that see or hear.
        beyond: Says what the language model's config asks for that frameworks compute only by code of their
            own, so that no arguments say it: a warning where arguments are written.
        text: The family of the language model, from the config, where any may stand in it; ``entries`` are
            then made of its.
    """

    name: str
    model_types: tuple[str, ...]
    entries: tuple[Entry, ...]
    flags: Mapping[str, Any]
    ignored: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    sizes: Callable[[Config], Mapping[str, int]] | None = None
    kinds: Callable[[Config], Sequence[str]] | None = None
    slots: Mapping[str, str] = field(default_factory=dict)
    zero_centered: bool = False
    plain_norms: tuple[str, ...] = ()
    template: Template | None = None
    inside: str | None = None
    language: Family | None = None
    beneath: str = ""
    parts: tuple[FamilyPart, ...] = ()
    beyond: Callable[[Config], Iterable[str]] | None = None
    text: Callable[[Config], Family | None] | None = None

    def for_config(self, config: Config) -> Family | None:
        """Return the family of a model with this config: this one, or what ``text`` makes of it."""
        return self if self.text is None else self.text(config)

    def is_pinned(self, name: str) -> bool:
        """Whether a tensor keeps its dtype whatever the others are rounded to."""
        return any(re.fullmatch(p, name) for p in self.pinned)

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor is a buffer the model makes itself."""
        return any(re.fullmatch(p, name) for p in self.ignored)

    def name_of(self, slot: str) -> str | None:
        """Return the Hugging Face name of a slot that is not per layer."""
        return next((e.name for e in self.entries if e.pack == slot and not e.copy), None)

    def tied(self, config: Config) -> bool:
        """Whether the config ties the output head to the embedding."""
        return bool(self.flag(config, "tie_word_embeddings"))

    def flag(self, config: Config, key: str) -> Any:
        """Return a config's value, or what transformers assumes where it says nothing."""
        value = self.own(config).get(key)
        return self.flags.get(key, False) if value is None else value

    def is_zero_centered(self, norm: str) -> bool:
        """Whether a slot that is a norm is stored without its 1."""
        said = self.template is not None and bool(self.template.fixed.get("zero_centered"))
        return (self.zero_centered or said) and template(norm) not in self.plain_norms

    def own(self, config: Config) -> Config:
        """Return the config of the model its table is of: of a larger one that of the language model."""
        part = config.get(self.inside) if self.inside is not None else None
        if not isinstance(part, Mapping):
            return config
        tied = {k: config[k] for k in ("tie_word_embeddings",) if config.get(k) is not None}
        return {**{k: v for k, v in config.items() if k != self.inside}, **part, **tied}

    def dims(self, config: Config) -> Sizes:
        """Return the sizes of a model of this config."""
        outer, config = config, self.own(config)
        own = self.sizes(config) if self.sizes is not None else {}
        tables = {p.name: Sizes(p.sizes(outer), _shapes(p.slots)) for p in self.parts if p.sizes is not None}
        beside = (
            *(Part(p.name, p.framework) for p in self.parts),
            *(Part(p.name, kept, Table(p.entries)) for p in self.parts for kept in p.kept),
        )
        found = {**dims(self._complete(config)), **own}
        return Sizes(found, _shapes(self.slots), tables, beside, self.beneath)

    def _complete(self, config: Config) -> dict[str, Any]:
        return {**self.flags, **{k: v for k, v in config.items() if v is not None}}

    def table(self, config: Config) -> Table:
        """Return the entries to look names and slots up in; of those with conditions, the ones that hold."""
        parts = tuple(Part(p.name, p.prefix, Table(p.entries) if p.entries else None) for p in self.parts)
        layers = self.dims(config).get("layers")
        return Table(self.entries, layers=layers, words=self.words(config), parts=parts)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks of slots a layer may have: ``attn``, ``mlp``, ``moe``."""
        found = [block(s.partition("*.")[2]) for e in self.entries if "*" in e.name for s in e.slots]
        return tuple(dict.fromkeys(b for b in found if b))

    def flagged(self, config: Config) -> Words:
        """Return the words that flags of a config tell of the whole model, whatever its layers are."""
        known = {w for e in self.entries for s in e.slots for w in beginnings(s.partition("*.")[2] or s)}
        asked = {w for e in self.entries if e.when for w, _ in conditions(e.when)} - known
        return Words(frozenset(w for w in asked if self.flag(config, w)), {}, frozenset(asked))

    def words(self, config: Config) -> Words:
        """Return what a model of this config and each of its layers is like."""
        config, sizes = self.own(config), self.dims(config)
        count, more = sizes.get("layers", 0), sizes.get("mtp", 0)
        if self.kinds is not None:
            kinds = [frozenset(w for b in kind.split() for w in beginnings(b)) for kind in self.kinds(config)]
        else:
            complete, blocks = self._complete(config), frozenset(self.blocks)
            apart = {True: blocks - {"mlp"}, False: blocks - {"moe"}} if "moe" in blocks else {}
            kinds = [apart.get(is_sparse(complete, i), blocks) for i in range(count + more)]
        kinds += kinds[-1:] * (count + more - len(kinds))
        layers = {f"layers.{i}" if i < count else f"mtp.{i - count}": kind for i, kind in enumerate(kinds)}
        some = {f"any.{word}" for kind in kinds for word in kind}
        if more:
            some.add("mtp")
        return Words(self.flagged(config).model | some, layers)

    def expected(self, config: Config) -> Iterator[tuple[str, Shape, bool]]:
        """Yield name, shape and whether it is optional, for every tensor a model of ``config`` has.

        Layers for multi-token prediction are optional: transformers does not save them (5.23).
        """
        # Asked for several times of one model, with tens of thousands of tensors.
        asked = (self, repr(config))
        last = _LAST.get("expected")
        if last is None or last[0] != asked:
            last = _LAST["expected"] = (asked, tuple(self._expected(config)))
        yield from last[1]

    def _expected(self, config: Config) -> Iterator[tuple[str, Shape, bool]]:
        sizes = self.dims(config)
        table = self.table(config)
        alike = self._alike(table.words)
        slots = dict.fromkeys(self._slots(sizes, table.words, set(alike.values())))
        found, _ = table.holding(slots)
        specs = table.specs(found, {s: Spec(shape_of(s, sizes), "any") for s in slots}, sizes)
        layered: dict[str, list[Found]] = {}
        for f in found:
            if f.layer.startswith("layers."):
                layered.setdefault(f.layer, []).append(f)
        done = False
        for f in found:
            if not f.layer.startswith("layers."):
                optional = f.entry.optional or f.entry.copy or f.layer.startswith("mtp.") or _predicts(f)
                yield f.name, specs[f.name].shape, optional
            elif not done:  # all of them, each as the one that is like it
                done = True
                forms = {
                    layer: [
                        (*_around_layer(g), specs[g.name].shape, g.entry.optional or g.entry.copy)
                        for g in every
                    ]
                    for layer, every in layered.items()
                }
                for layer, stands in alike.items():
                    number = layer.partition(".")[2]
                    for before, after, shape, optional in forms.get(stands, ()):
                        yield f"{before}{number}{after}", shape, optional

    def _alike(self, words: Words) -> dict[str, str]:
        """Return for each layer the first one of which the same holds; one with slots of its own is alone."""
        own = {".".join(s.split(".")[:2]) for e in self.entries for s in e.slots if "*" not in s}
        first: dict[frozenset[str], str] = {}
        return {
            layer: layer if layer in own or layer.startswith("mtp.") else first.setdefault(here, layer)
            for layer, here in words.layers.items()
        }

    def _slots(self, sizes: Mapping[str, int], words: Words, among: Collection[str]) -> Iterator[str]:
        """Yield the slots a model has, of its layers those of some."""
        if "layers" not in sizes and any("*" in e.name for e in self.entries):
            raise PlanError(
                "config.json does not say how many layers there are", hint="give a complete --config"
            )
        predicts = any(e.slots[0].startswith("mtp.") for e in self.entries)
        places = [layer for layer in words.layers if layer in among]
        places = [layer for layer in places if predicts or not layer.startswith("mtp.")]
        for entry in self.entries:
            if entry.copy:
                continue
            if "*" not in entry.slots[0]:
                yield from entry.slots if words.holds(entry.when) else ()
                continue
            for layer in places:
                if not words.holds(entry.when, layer):
                    continue
                for slot in entry.slots:
                    kind, rest = slot.split("*.")
                    if (kind == "mtp." and not layer.startswith(kind)) or not _has(words.layers[layer], rest):
                        continue
                    every = range(sizes.get("experts", 0)) if "{e}" in rest else range(1)
                    yield from (f"{layer}.{rest.replace('{e}', str(e))}" for e in every)

    def _refuse_excess(self, config: Config, tensors: int) -> None:
        """Refuse a config of far more slots than a checkpoint has tensors, before they are made."""
        sizes = self.dims(config)
        experts = sizes.get("experts", 0) if any("{e}" in s for e in self.entries for s in e.slots) else 0
        layers = sizes.get("layers", 0)
        if layers * (1 + experts) > 64 * (tensors + 1000):
            many = f"{layers:,} layers" + (f" of {experts:,} experts" if experts else "")
            raise PlanError(
                f"config.json says {many}, the checkpoint has {tensors:,} tensors",
                hint="give the config of this very model with --config",
            )

    def compare(
        self,
        config: Config,
        tensors: Mapping[str, Shape],
        present: Iterable[str] = (),
        *,
        part: bool = False,
    ) -> Findings:
        """Compare names and shapes with the architecture.

        Args:
            config: The content of config.json.
            tensors: Shapes by name.
            present: Further names that are there (aliases).
            part: Whether only some tensors are wanted, so that fewer layers contradict nothing.

        Raises:
            PlanError: if a tensor has another shape than the config asks for, or a layer it has not.
        """
        self._refuse_excess(config, len(tensors))
        expected = {name: (shape, optional) for name, shape, optional in self.expected(config)}
        plain = {_plain(n): n for n in tensors}
        there = {*plain, *(_plain(n) for n in present)}
        table, sizes = self.table(config), self.dims(config)
        as_asked = all(n in expected and tensors[name] == expected[n][0] for n, name in plain.items())
        layer_first = not any(holes(e.name)[2] for e in table.entries)  # no number stands before it
        found, _ = table.named(_one_of_experts(plain) if as_asked and layer_first else plain)
        by_name = {f.name: f for f in found}
        wrong: list[str] = []
        if not as_asked:
            wrong = [
                f"{plain[n]} is {list(tensors[plain[n]])}, config.json asks for {list(shape)}"
                for n, (shape, _) in expected.items()
                if n in plain
                and tensors[plain[n]] != shape
                and table.otherwise(by_name[n], Spec(tensors[plain[n]], "any"), sizes) is None
            ]
        layered = [int(n.split(".")[1]) for n in {f.layer for f in found} if n.startswith("layers.")]
        beyond = [f for f in found if f.layer.startswith("mtp.") or _predicts(f)]
        layers = self.dims(config).get("layers", 0)
        if beyond and not any(e.slots[0].startswith("mtp.") for e in self.entries):
            layered.append(layers + max(int(f.layer.split(".")[1]) for f in beyond))
        if layered and max(layered) + 1 != layers and not (part and max(layered) < layers):
            wrong.append(f"the checkpoint has {max(layered) + 1} layers, config.json says {layers}")
        if wrong:
            more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
            raise PlanError(
                "config.json contradicts the checkpoint: " + "; ".join(wrong[:5]) + more,
                hint="give the config of this very model with --config",
            )
        beside = (f.name for f in found if "/" in f.entry.slots[0])
        known = {*expected, *(f.name for f in beyond), *beside}
        return Findings(
            tuple([n for n, (_, optional) in expected.items() if not optional and n not in there]),
            tuple(plain[n] for n in plain if n not in known and not self.is_ignored(n)),
        )


def _around_layer(found: Found) -> tuple[str, str]:
    """Return what a name has before and after the number of its layer."""
    before = found.entry.name.partition("*")[0]
    return before, found.name[len(before) + len(found.layer.partition(".")[2]) :]


def _predicts(found: Found) -> bool:
    """Whether a tensor is of multi-token prediction alone."""
    first = found.entry.slots[0]
    return (found.layer if "*" in first else first).startswith("mtp.")


def _one_of_experts(names: Iterable[str]) -> Iterable[str]:
    """Return names of which the layers can be told, of tensors that differ in their last number one."""
    split = {n: numbers(n) for n in names}
    return {(form, values[:-1] or values): n for n, (form, values) in split.items()}.values()


def _has(blocks: frozenset[str], slot: str) -> bool:
    """Whether a layer of these blocks has a slot."""
    return (of := block(slot)) == "" or of in blocks


def _shapes(slots: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return a family's own shapes; a layer for multi-token prediction has the slots of any layer."""
    found = {name: tuple(a for a in axes.split(",") if a) for name, axes in slots.items()}
    mtp = {f"mtp{n.removeprefix('layers')}": a for n, a in found.items() if n.startswith("layers.")}
    return {**mtp, **found}


def _plain(name: str) -> str:
    """Strip what PEFT and torch.compile put around a parameter's own name."""
    name = name.removeprefix("base_model.model.").removeprefix("_orig_mod.")
    return name.replace(".base_layer.", ".") if ".base_layer." in name else name
