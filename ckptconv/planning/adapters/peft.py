"""Understand checkpoints of models that PEFT wrapped, and folders that it saved adapters in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ckptconv.assets.config import read_config as read_model_config
from ckptconv.containers import safetensors
from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.statedict import state_dict_of
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.errors import FormatError, PlanError, UsageError
from ckptconv.families import find_family
from ckptconv.places.places import place
from ckptconv.planning.adapters.adapter import (
    WITH_PEFT,
    AdapterConfig,
    Scales,
    read_config,
    refuse_changed_base,
)
from ckptconv.planning.adapters.added import rows_added
from ckptconv.planning.adapters.lora import Prepared, as_adapter, low_rank, refuse_tied, renamed
from ckptconv.planning.adapters.said import find_adapter_config
from ckptconv.planning.adapters.tokens import rows_name, with_rows
from ckptconv.planning.model import find_config
from ckptconv.planning.shared import doubled
from ckptconv.planning.tied import ends
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.plans.request import Request
from ckptconv.readers.torch_file import named_tensors
from ckptconv.records import dataclass
from ckptconv.relations import LowRank, Relation, Scaled, Spec
from ckptconv.slots.translate import some

__all__ = ["Lent", "prepare"]

# Names of peft 0.21 (tuners/lora/layer.py, utils/other.py); saved adapters lack the adapter's own name.
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])"
    r"(?:\.(?!(?:weight|bias)$)(?P<adapter>[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
_COPY = re.compile(r"\.modules_to_save\.(?P<adapter>[^.]+)(?=\.)")
_ORIGINAL = re.compile(r"\.original_module(?=\.)")
# What stands before the names of the model that PEFT wraps: a value head's module may stand around all of it.
_AROUND = re.compile(r"^(?:[^.]+\.)*?base_model\.model\.")
_TOKENS = re.compile(
    r"(?P<module>.+)\.token_adapter\."
    r"(?:base_layer\.weight|trainable_tokens_delta(?P<delta>)(?:\.(?P<adapter>[^.]+))?)"
)
_OTHER = re.compile(
    r"(?:^|\.)(?:lora_(?!A\b|B\b|embedding_[AB]\b)\w+|ia3_\w+|hada_\w+|lokr_\w+|oft_\w+|boft_\w+|vera_\w+"
    r"|token_adapter|trainable_tokens_\w+)(?:\.|$)"
)


@dataclass(slots=True)
class _Parts:
    """The names of what one module's adapter is made of."""

    a: str = ""
    b: str = ""
    bias: str = ""
    embedding: bool = False


@dataclass(frozen=True, slots=True)
class _Found:
    """Say what of PEFT's is where.

    Attributes:
        parts: Adapters by module.
        names: Every other tensor's own name, or None for what a trained copy replaces.
        saved: Names of those copies.
        tokens: Rows trained for single tokens, by the module they are of.
    """

    parts: Mapping[str, _Parts]
    names: Mapping[str, str | None]
    saved: frozenset[str]
    tokens: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lent:
    """Hold an adapter that was saved by another library than PEFT, under PEFT's names.

    Attributes:
        path: The folder it is from.
        relation: What its files hold to its factors.
        source: What was opened.
        config: What an adapter_config.json would say.
    """

    path: Path
    relation: Relation
    source: Checkpoint
    config: AdapterConfig


def prepare(checkpoint: Checkpoint, options: Request, lent: Lent | None = None) -> Prepared:
    """Do with a checkpoint's LoRA adapters what the options say.

    Without ``lora`` and ``adapter`` they are refused, but where weights alone are written under the names
    they have.

    Args:
        checkpoint: The checkpoint.
        options: The options.
        lent: The adapter that is asked for, where its files are not PEFT's.

    Raises:
        UsageError: if flags contradict each other or the checkpoint, or no alpha is known.
        FormatError: if the adapter's files are damaged.
        PlanError: if an adapter is no plain LoRA, or has no weight to be added to.
    """
    if options.lora is None and options.adapter is None:
        if options.lora_alpha is not None or options.lora_r is not None:
            raise UsageError("--lora-alpha and --lora-r need --lora merge, --lora adapter or --adapter")
        if checkpoint.table is None:
            return Prepared(_unasked(checkpoint, options), checkpoint.terms)
    if options.adapter is not None and options.lora == "adapter":
        raise UsageError("--adapter merges an adapter: it cannot be given with --lora adapter")
    if checkpoint.table is not None:
        from ckptconv.planning.adapters.lora_ranks import prepare_ranks  # what few sources are asked

        return prepare_ranks(checkpoint, options)
    config: AdapterConfig | None
    if lent is not None:
        checkpoint, config = _with_lent(checkpoint, lent), lent.config
    elif options.adapter is not None:
        checkpoint, config = _with_adapter(checkpoint, place(options.adapter).expanduser())
    else:
        config = find_adapter_config(checkpoint, checkpoint.root, _folder(checkpoint))
    found = _find(checkpoint, options.drop)
    checkpoint = renamed(checkpoint, {**found.names, **_operand_names(found)})
    if options.lora != "adapter" and found.tokens:
        checkpoint = with_rows(checkpoint, list(found.tokens), config)
    tensors = dict(checkpoint.relation.right)
    scales = Scales.of(config, options)
    adapters, biases = {}, {}
    for module, parts in found.parts.items():
        weight, bias = f"{module}.weight", f"{module}.bias"
        a, b = f"{weight}.lora_A", f"{weight}.lora_B"
        scale = scales.scale_of(module, _rank(tensors[a], parts.a))
        adapters[weight] = (a, b, scale)
        if weight not in tensors:
            if options.lora != "adapter":
                _refuse_missing(checkpoint, weight)
            # Its shape is not needed but to tell which way it lies.
            tensors[weight] = Spec((*tensors[b].shape[:1], *tensors[a].shape[1:]), tensors[a].dtype)
        if parts.bias:
            biases[bias] = (Scaled(f"{bias}.lora_B", scale),)
    embeddings = {f"{m}.weight" for m, p in found.parts.items() if p.embedding}
    products = low_rank(tensors, adapters, embeddings, config.fan_in_fan_out if config is not None else None)
    if options.lora == "adapter":
        kept, notes = _resized(checkpoint, options, config)
        for alias in [n for n in kept if n in checkpoint.aliases]:
            checkpoint = _doubled(checkpoint, alias)
        checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *notes))
        rows = {rows_name(m): f"{m}.token_adapter.trainable_tokens_delta" for m in found.tokens}
        others = {**kept, **rows, **_trained(checkpoint, found, config)}
        checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *_lost(checkpoint, found, others)))
        return as_adapter(checkpoint, products, config, embeddings=embeddings, others=others)
    return Prepared(checkpoint, {**{n: (t,) for n, t in products.items()}, **biases})


def _find(checkpoint: Checkpoint, drops: tuple[str, ...]) -> _Found:
    """Find adapters, trained copies and the names of all other tensors; dropped ones are not looked at."""
    parts: dict[str, _Parts] = {}
    names: dict[str, str | None] = {}
    adapters: dict[str, str] = {}
    saved: set[str] = set()
    tokens: dict[str, str] = {}
    every = [*checkpoint.relation.right, *checkpoint.aliases, *checkpoint.unresolved]
    for name in every:
        if any(fnmatchcase(name, d) for d in drops):
            continue
        if m := _FACTOR.fullmatch(name):
            adapters.setdefault(m["adapter"] or "default", name)
            here = parts.setdefault(_bare(m["module"]), _Parts())
            here.embedding |= m["embedding"] is not None
            if name in checkpoint.aliases:
                raise PlanError(f"{name} shares the data of {checkpoint.aliases[name]}", hint=WITH_PEFT)
            if m["leaf"] == "bias":
                here.bias = name
            elif m["part"] == "A":
                here.a = name
            else:
                here.b = name
        elif m := _TOKENS.fullmatch(name):
            module = _AROUND.sub("", m["module"], count=1)
            if m["delta"] is None:
                names[name] = f"{module}.weight"
            else:
                adapters.setdefault(m["adapter"] or "default", name)
                shared = name in checkpoint.aliases
                names[name] = None if shared else rows_name(module)
                tokens |= {} if shared else {module: name}
        elif m := _COPY.search(name):
            adapters.setdefault(m["adapter"], name)
            names[name] = _bare(_COPY.sub("", name))
            saved.add(_bare(_COPY.sub("", name)))
        elif _ORIGINAL.search(name):
            names[name] = None
        elif _OTHER.search(name):
            raise PlanError(f"{name} is of an adapter that is no plain LoRA", hint=WITH_PEFT)
        else:
            names[name] = _bare(name)
    if not parts and not tokens:
        raise UsageError("the checkpoint holds no LoRA adapters", hint="leave out --lora")
    if len(adapters) > 1:
        raise PlanError(
            f"the checkpoint holds several adapters: {', '.join(sorted(adapters))}",
            hint="leave out all but one with --drop, for example --drop '*.lora_?.NAME.*'",
        )
    for module, here in parts.items():
        for part in (here.a, here.b):
            if part not in checkpoint.relation.right:
                there, lacks = (here.a, "lora_B") if here.a else (here.b, "lora_A")
                raise PlanError(f"{module} has {there}, but no data of {lacks}", where=checkpoint.data)
    return _Found(parts, names, frozenset(saved), tokens)


def _bare(name: str) -> str:
    return _AROUND.sub("", name, count=1).replace(".base_layer.", ".")


def _operand_names(found: _Found) -> dict[str, str]:
    """Return the names of adapters' tensors by the weight they belong to."""
    names: dict[str, str] = {}
    for module, parts in found.parts.items():
        names |= {parts.a: f"{module}.weight.lora_A", parts.b: f"{module}.weight.lora_B"}
        if parts.bias:
            names[parts.bias] = f"{module}.bias.lora_B"
    return names


def _refuse_missing(checkpoint: Checkpoint, weight: str) -> None:
    refuse_tied({weight: (LowRank("", "", 1.0),)}, checkpoint.aliases)
    raise PlanError(
        f"there is a LoRA adapter of {weight}, but no such weight",
        where=checkpoint.data,
        hint="were frozen weights left out of the save? Take the adapter with --lora adapter, and merge it "
        "into the base model with --adapter",
    )


def _rank(spec: Spec, name: str) -> int:
    if len(spec.shape) != 2 or not spec.numel:
        raise PlanError(f"{name} has shape {list(spec.shape)}, not [r, in]", hint=WITH_PEFT)
    return spec.shape[0]


def _trained(checkpoint: Checkpoint, found: _Found, config: AdapterConfig | None) -> dict[str, str]:
    """Return what PEFT saves beside the factors, and the names it does so under."""
    tensors = checkpoint.relation.right
    others = {checkpoint.aliases.get(n, n): n for n in found.saved}
    bias = config.values.get("bias", "none") if config is not None else "none"
    for name in tensors:
        module = name.removesuffix(".bias")
        if name in others or module == name:
            continue
        if module in found.parts and bias in ("all", "lora_only"):
            others[name] = f"{module}.base_layer.bias"
        elif bias == "all":
            others[name] = name
    for module, parts in found.parts.items():
        if parts.bias:
            others[f"{module}.bias.lora_B"] = f"{module}.lora_B.bias"
    return others


def _lost(checkpoint: Checkpoint, found: _Found, kept: Mapping[str, str]) -> list[Note]:
    """Say what was trained and has no place in an adapter: a value head around the model, single weights.

    What lies in one optimizer's flat group with the factors was trained as they were.
    """
    factors = {f"{m}.weight.lora_{part}" for m in found.parts for part in "AB"}
    groups = {p.left.tensor for p in checkpoint.relation.pairs if p.right.tensor in factors}
    trained = {p.right.tensor for p in checkpoint.relation.pairs if p.left.tensor in groups}
    if any(_AROUND.match(parts.a) for parts in found.parts.values()):
        trained |= {new for old, new in found.names.items() if new == old and not _AROUND.match(old)}
    more = {rows_name(m) for m in found.tokens} | {f"{m}.bias.lora_B" for m in found.parts}
    lost = sorted((trained & checkpoint.relation.right.keys()) - factors - more - kept.keys())
    lost = [n for n in lost if n not in checkpoint.buffers]
    if not lost:
        return []
    text = (
        f"{some(lost)} {'was' if len(lost) == 1 else 'were'} trained too, but an adapter of PEFT has no "
        "place for it: it is left out; --lora merge writes a model with it"
    )
    return [Note("warning", text)]


def _resized(
    checkpoint: Checkpoint, options: Request, config: AdapterConfig | None
) -> tuple[dict[str, str], list[Note]]:
    """Return embedding and head where they have other rows than the base model's, and so exist nowhere else.

    So PEFT saves them too (peft 0.21, ``utils/save_and_load.py``, ``save_embedding_layers="auto"``).
    """
    named = config.values.get("base_model_name_or_path") if config is not None else None
    seen = isinstance(named, str) and bool(named) and (Path(named) / "config.json").is_file()
    if seen:
        base: Mapping[str, Any] = read_model_config(Path(str(named)))
    else:
        found = find_config(checkpoint, options.config, needed=False)
        base = found.values if found is not None else {}
    text = base.get("text_config")
    size = base.get("vocab_size", text.get("vocab_size") if isinstance(text, Mapping) else None)
    embed, head, _ = ends(checkpoint.relation, find_family(base.get("model_type")), base)
    tensors = checkpoint.relation.right
    if embed is None or embed not in tensors:
        return {}, []
    rows = tensors[embed].shape[0]
    both = {n: n for n in (embed, head) if n is not None and n in {**tensors, **checkpoint.aliases}}
    if isinstance(size, int) and rows != size:
        return both, []
    if seen or not named:
        return {}, []
    if added := rows_added(checkpoint, embed):
        said = (
            f"{embed} has {rows} rows, and the last {added} are unlike the others, as those are that were "
            f"added for new tokens; {named} is not here to compare, so {' and '.join(both)} are "
            "kept, which does no harm if the base model has them too"
        )
        return both, [Note("guess", said)]
    said = (
        f"{embed} ({rows} rows) is left out as the base model's, but {named} is not here to compare: if "
        "the vocabulary was resized, give the base model's config with --config to keep it"
    )
    return {}, [Note("warning", said)]


def _doubled(checkpoint: Checkpoint, alias: str) -> Checkpoint:
    """Make a name that shares another tensor's data a tensor of its own, as PEFT saves it."""
    kept = checkpoint.aliases[alias]
    return replace(
        checkpoint,
        relation=checkpoint.relation.compose(doubled(checkpoint.relation.right, {alias: kept})),
        via={**checkpoint.via, **({alias: checkpoint.via[kept]} if kept in checkpoint.via else {})},
        aliases={a: k for a, k in checkpoint.aliases.items() if a != alias},
    )


def _with_lent(checkpoint: Checkpoint, lent: Lent) -> Checkpoint:
    """Put the factors of another library's adapter beside a checkpoint's tensors."""
    moved = {n: f"adapter/{n}" for n in lent.relation.left}
    relation = Relation(
        {moved[n]: s for n, s in lent.relation.left.items()},
        lent.relation.right,
        tuple([p._replace(left=p.left._replace(tensor=moved[p.left.tensor])) for p in lent.relation.pairs]),
        tuple([d._replace(box=d.box._replace(tensor=moved[d.box.tensor])) for d in lent.relation.left_only]),
        lent.relation.right_only,
    )
    note = Note("info", f"adapter {lent.path}: {len(relation.right)} factors")
    return replace(
        checkpoint,
        relation=Relation.union([checkpoint.relation, relation]),
        stored={**checkpoint.stored, **{moved[n]: s for n, s in lent.source.stored.items() if n in moved}},
        files=(*checkpoint.files, *lent.source.files),
        notes=(*checkpoint.notes, note),
    )


def _with_adapter(checkpoint: Checkpoint, folder: Path) -> tuple[Checkpoint, AdapterConfig | None]:
    """Put a PEFT adapter's tensors beside a checkpoint's; what it trained as a whole replaces the model's."""
    if any(_FACTOR.fullmatch(n) for n in checkpoint.relation.right):
        raise UsageError(
            "--adapter: the checkpoint holds LoRA adapters itself", hint="merge those with --lora merge"
        )
    path = next((p for n in ("safetensors", "bin") if (p := folder / f"adapter_model.{n}").is_file()), None)
    if path is None:
        raise UsageError(
            f"--adapter: there is no adapter_model.safetensors or adapter_model.bin in {folder}",
            hint="give the folder that PEFT's save_pretrained wrote, or an adapter's run",
        )
    config = read_config(folder)
    if config is not None:
        refuse_changed_base(config)
    graph = GraphBuilder()
    graph.touch(path)
    found: dict[str, FileTensor] = {}
    for name, tensor in _adapter_tensors(path).items():
        bare = name if _FACTOR.fullmatch(name) else _bare(name)
        if bare in found:
            raise FormatError(f"two tensors are named {bare}", where=path)
        found[bare] = tensor
    aliases = named_tensors(graph, found)
    replaced = dict.fromkeys(n for n in graph.right if n in checkpoint.relation.right)
    dropped = replace(
        checkpoint, aliases={a: b for a, b in checkpoint.aliases.items() if a not in graph.right}
    )
    base = renamed(dropped, dict.fromkeys(replaced), reason=f"replaced by the one in {path.name}")
    added = graph.relation()
    if clash := next((n for n in added.left if n in base.relation.left), None):
        raise FormatError(f"adapter and checkpoint both hold {clash}", where=path)
    note = Note("info", f"adapter {path}: {len(graph.right)} tensors, {len(replaced)} replace the model's")
    both = replace(
        base,
        relation=Relation.union([base.relation, added]),
        stored={**base.stored, **graph.stored},
        aliases={**base.aliases, **aliases},
        files=(*base.files, *graph.files),
        notes=(*base.notes, note),
    )
    return both, config


def _adapter_tensors(path: Path) -> dict[str, FileTensor]:
    if path.suffix == ".safetensors":
        return safetensors.read_header(path)[0]
    return state_dict_of(open_torch(path).root, str(path))[0]


def _unasked(checkpoint: Checkpoint, options: Request) -> Checkpoint:
    """Refuse a model with adapters of which nothing is said; where it is no model that is written, say it.

    Raises:
        PlanError: if there are adapters, which no model has a place for.
    """
    factors = [n for n in checkpoint.relation.right if (m := _FACTOR.fullmatch(n)) and m["part"] == "A"]
    count = sum(1 for n in factors if not options.leaves_out(n))
    if not count:
        return checkpoint
    if options.to == "hf" and options.assets:
        raise PlanError(
            f"the checkpoint holds LoRA adapters of {count} weights, beside the names of a model that PEFT "
            f"wrapped: {factors[0]}",
            where=checkpoint.data,
            hint="say what is to become of them: --lora merge adds them to their weights, --lora adapter "
            "writes them alone for PEFT",
        )
    text = f"LoRA adapters of {count} weights pass through; --lora merge or --lora adapter makes use of them"
    return replace(checkpoint, notes=(*checkpoint.notes, Note("info", text)))


def _folder(checkpoint: Checkpoint) -> Path:
    return checkpoint.data if checkpoint.data.is_dir() else checkpoint.data.parent
