"""Turn a quantised checkpoint into one of plain tensors whose values are decoded when they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptconv.assets.find import CONFIG, find_assets
from ckptconv.containers.decoded import Decoded
from ckptconv.dtypes import BY_NAME
from ckptconv.errors import FormatError, PlanError
from ckptconv.places.files import SourceFiles
from ckptconv.places.places import place
from ckptconv.places.regular import read_bytes
from ckptconv.planning.decode.find import IDLE, find_parts, is_quantised, refuse_rest
from ckptconv.planning.decode.part import Given, Part
from ckptconv.planning.decode.rewrite import pairs_of, rewritten, stored_of
from ckptconv.planning.decode.says import Says, read_says
from ckptconv.plans.checkpoint import Checkpoint, Note, Quantised, beside_of
from ckptconv.plans.plan import AssetFile, Step
from ckptconv.plans.request import Request
from ckptconv.relations import Pair, Relation, Spec

if TYPE_CHECKING:
    from ckptconv.planning.names import Named

__all__ = [
    "as_values",
    "check_whole",
    "decode_steps",
    "decoded",
    "form_of",
    "is_opaque",
    "noted",
    "of_one_type",
    "quantised",
    "values_of",
    "with_values",
]

_MOST = 64 << 20  # bytes of a file that speaks of codes


def decoded(checkpoint: Checkpoint, options: Request) -> Checkpoint:
    """Return a checkpoint whose quantised weights are values, where the target is to have values.

    Where a target's writer owns ``dequantize`` a quantised model goes as it is, unless a dtype or values are
    asked for; every other target holds values.

    Raises:
        PlanError: if values are needed and the layout is not known, or codes or scales are missing; or if
            something is to be added to codes.
        FormatError: if what stands beside it is damaged.
    """
    dequantize = getattr(options.writing, "dequantize", True)
    dequantize = dequantize or getattr(options.writing, "quantize", None) is not None
    values = dequantize or options.dtype != "keep"
    says = _says(checkpoint, options.config)
    if values:
        return with_values(checkpoint, says)
    found = quantised(checkpoint, says)
    if found is None:
        return checkpoint
    if found.decoded:  # a config that speaks of codes which the weights are not
        return with_values(checkpoint, says)
    if options.adapter is not None or options.lora == "merge":
        raise PlanError(
            f"the adapter's base model is {found.text}: nothing can be added to codes",
            where=says.origin or checkpoint.data,
            hint="--lora adapter writes the adapter alone, for that base; --dequantize adds it to values",
        )
    if options.lora == "adapter":
        note = Note("info", f"the adapter's base model is {found.text}")
        return replace(checkpoint, quantised=found, notes=(*checkpoint.notes, note))
    return _as_is(checkpoint, found)


def noted(checkpoint: Checkpoint) -> Checkpoint:
    """Say how a checkpoint that is only looked at is quantised."""
    found = quantised(checkpoint)
    if found is None or found.decoded:
        return checkpoint
    return replace(checkpoint, quantised=found, notes=(*checkpoint.notes, Note("info", found.text)))


def _as_is(checkpoint: Checkpoint, found: Quantised) -> Checkpoint:
    notes = [Note("info", f"{found.text}; written as it is, --dequantize writes values")]
    if found.method.startswith("modelopt"):
        text = (
            "transformers (5.23) does not know ModelOpt's codes, and loads them without their scales: the "
            "model is for vLLM, SGLang or TensorRT-LLM; --dequantize writes one for transformers"
        )
        notes.append(Note("warning", text))
    return replace(checkpoint, quantised=found, notes=(*checkpoint.notes, *notes))


def _says(checkpoint: Checkpoint, config: str | None) -> Says:
    folders = list(beside_of(checkpoint))
    # Of a hub id once, where the architecture is: a config of plain weights loses its word in any case.
    if config is not None and (place(config).exists() or is_quantised(_given(checkpoint, Says()))):
        folder, _ = find_assets(config, (), (CONFIG,), flag="--config")
        if folder is not None:
            folders.append(folder)
    return read_says(folders)


def quantised(checkpoint: Checkpoint, says: Says | None = None) -> Quantised | None:
    """Say how a checkpoint is quantised; None if neither its tensors nor its files speak of it.

    A layout that is not known has no members.
    """
    if says is None:
        try:
            says = _says(checkpoint, None)
        except FormatError:  # what reads it for its own sake says so
            says = Says()
    given = _given(checkpoint, says)
    marks = tuple([(p.name, read_bytes(p, most=_MOST, within=p.parent)) for p in says.files])
    assets = tuple([AssetFile(name, str(says.origin), content) for name, content in marks])
    looks = is_quantised(given)
    if not looks and not says.method:
        return None
    try:
        parts = find_parts(given)
        refuse_rest(replace(given, left={n: None for n in given.left if n.rpartition(".")[2] not in IDLE}))
    except PlanError as e:
        return Quantised((f"{says.method or 'codes'}: {e.message}",), {}, False, assets, says.method)
    if not parts:
        if any(n.rpartition(".")[2] in IDLE for n in given.left):
            return Quantised(("caches or activations, not weights",), {}, False, assets, says.method)
        kinds: tuple[str, ...] = (f"config of {says.method}, plain weights",)
        return Quantised(kinds, {}, True, assets, says.method)
    return Quantised(
        _kinds(parts), {p.name: p.members for p in parts}, False, assets, says.method,
        {p.name: Spec(p.shape, says.dtype if says.dtype in BY_NAME else p.dtype) for p in parts},
    )  # fmt: skip


def _kinds(parts: Collection[Part]) -> tuple[str, ...]:
    counts = Counter(p.kind for p in parts)
    return tuple(f"{kind} ({count} weight{'' if count == 1 else 's'})" for kind, count in counts.items())


def form_of(source: Checkpoint, there: Checkpoint) -> str | None:
    """Return what a source was quantised to, of `encode.FORMS`, if what was written of it was."""
    found = quantised(there)
    if found is None or not found.members or found.method != "fp8":
        return None
    says = _says(there, None)
    if says.values.get("weight_block_size") != [128, 128] or source.relation.right == there.relation.right:
        return None
    ours = quantised(source)
    if ours is not None and ours.kinds == found.kinds:  # as it was, under other names
        return None
    return "fp8-block-ue8m0" if says.values.get("scale_fmt") == "ue8m0" else "fp8-block"


def with_values(checkpoint: Checkpoint, says: Says | None = None) -> Checkpoint:
    """Return a checkpoint whose quantised weights are values.

    Raises:
        PlanError: if the layout is not known, or codes or scales are missing or of another shape.
    """
    says = says if says is not None else _says(checkpoint, None)
    given = _given(checkpoint, says)
    if not is_quantised(given) and not says.method:
        return checkpoint
    parts = find_parts(given)
    idle = [n for n in given.left if n.rpartition(".")[2] in IDLE]
    for name in idle:
        del given.left[name]
    refuse_rest(given)
    notes = checkpoint.notes
    found = Quantised(_kinds(parts), {}, True, (), says.method)
    if not parts:
        text = f"{says.origin} speaks of {says.method}, the weights are plain: it is left out of config.json"
        made = rewritten(checkpoint, [], idle) if idle else checkpoint
        return replace(made, quantised=found, notes=(*notes, Note("info", text)))
    made = rewritten(checkpoint, parts, idle)
    return replace(made, quantised=found, notes=(*notes, Note("info", found.text)))


def _given(checkpoint: Checkpoint, says: Says) -> Given:
    """Gather the tensors, those that share data with others under their own names too."""
    right = checkpoint.relation.right
    tensors = {**right, **{a: right[b] for a, b in checkpoint.aliases.items() if b in right}}
    found: dict[str, Pair] = {}

    def content(name: str) -> bytes:
        if not found:
            found.update(pairs_of(checkpoint.relation))
        stored = stored_of(checkpoint, found, name)
        buffer = bytearray(stored.nbytes)
        at = 0
        with SourceFiles(checkpoint.files) as files:
            for path, offset, count in stored.spans(0, stored.numel):
                files.read_into(path, offset, memoryview(buffer)[at : at + count])
                at += count
        return bytes(buffer)

    return Given(tensors, says, content)


def decode_steps(checkpoint: Checkpoint) -> list[Step]:
    """Say which weights are decoded."""
    found = checkpoint.quantised
    if found is None or not found.decoded:
        return []
    return [Step("decode", kind, "float32(code) x float32(scale)") for kind in found.kinds]


def check_whole(checkpoint: Checkpoint, relation: Relation) -> None:
    """Refuse to write a part of what a quantised weight is made of, or to change it.

    Args:
        checkpoint: What is converted.
        relation: Its stored tensors to those that are written.

    Raises:
        PlanError: naming what is left out and what stays.
    """
    found = checkpoint.quantised
    if found is None:
        return
    written = relation.right
    for weight, members in found.members.items():
        there = [n for n in members if n in written or n in checkpoint.aliases]
        if there and len(there) < len(members):
            gone = next(n for n in members if n not in there)
            raise PlanError(
                f"{gone} is left out or renamed, but {there[0]} is written: codes and scales are one weight",
                where=checkpoint.data,
                hint=f"drop or keep all of {weight}'s tensors, or write values with --dequantize",
            )


def of_one_type(checkpoint: Checkpoint, relation: Relation) -> tuple[Checkpoint, Relation]:
    """Round values as they are decoded where a tensor is also made of parts that are stored in its type.

    A model may be quantised but for some layers, and ranks hold query, key and value as one tensor.
    """
    if checkpoint.quantised is None or not checkpoint.quantised.decoded:
        return checkpoint, relation
    plain: dict[str, set[str]] = {}
    coded: dict[str, set[str]] = {}
    for pair in relation.pairs:
        key, name = pair.left.tensor, pair.right.tensor
        if isinstance(checkpoint.stored[key], Decoded):
            coded.setdefault(key, set()).add(name)
        else:
            plain.setdefault(name, set()).add(relation.left[key].dtype)
    left, stored = dict(relation.left), dict(checkpoint.stored)
    for key, names in coded.items():
        dtypes = {relation.right[n].dtype for n in names}
        if len(dtypes) == 1 and any(plain.get(n) == dtypes for n in names):
            held, dtype = stored[key], dtypes.pop()
            assert isinstance(held, Decoded)
            stored[key] = held.rounded(BY_NAME[dtype])
            left[key] = left[key]._replace(dtype=dtype)
    return replace(checkpoint, stored=stored), replace(relation, left=left)


def is_opaque(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint is quantised in a layout that is not known, and goes as it is."""
    found = checkpoint.quantised
    return found is not None and not found.decoded and not found.members


def as_values(checkpoint: Checkpoint, named: Named) -> Named:
    """Return the tensors that are written as if quantised weights were values, to check names and shapes."""
    right = values_of(checkpoint.quantised, named.relation.right)
    return named if right is None else replace(named, relation=replace(named.relation, right=right))


def values_of(found: Quantised | None, written: Mapping[str, Spec]) -> dict[str, Spec] | None:
    """Return tensors as if quantised weights were values; None if there are none."""
    if found is None or not found.members:
        return None
    members = {n for names in found.members.values() for n in names}
    plain = {n: s for n, s in written.items() if n not in members and n.rpartition(".")[2] not in IDLE}
    for weight, names in found.members.items():
        if any(n in written for n in names):
            plain[weight] = found.values[weight]
    return plain
