"""Open checkpoints, plan conversions and carry them out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ckptconv.assets.config import config_file, generation_file, read_config
from ckptconv.assets.find import CONFIG, find_assets, tokenizer_files
from ckptconv.assets.tokenizer import collect_tokenizer
from ckptconv.casts import is_exact
from ckptconv.dtypes import DType
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.engine.events import Listener
from ckptconv.engine.run import Options, Report, run
from ckptconv.errors import PlanError, UsageError
from ckptconv.families import Family, families, find_family
from ckptconv.graph import Relation
from ckptconv.graph.naming import names_relation, parse_renames
from ckptconv.graph.plan import AssetFile, Plan, Step
from ckptconv.readers.base import Checkpoint, Note, ReadOptions, Weights
from ckptconv.readers.registry import open_checkpoint
from ckptconv.writers.huggingface import Container, layout_weights, parse_size

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["ConvertOptions", "Model", "TensorInfo", "convert", "open", "plan"]

PathArg = str | PathLike[str]
DTypeChoice = Literal["keep", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """Say what a conversion is to write; the defaults are the command line's.

    Attributes:
        to: The target; ``hf``.
        dtype: ``keep`` or the dtype all floating-point tensors are rounded to.
        format: ``safetensors`` or ``bin``.
        max_shard_size: The most bytes of weights per file, such as ``5GB``.
        weights: fp32 masters or the 16-bit weights the model ran with; None is the producer's default.
        tag: DeepSpeed tag instead of the one in ``latest``.
        config: Folder or hub id to take config.json from, instead of beside the checkpoint.
        tokenizer: Folder or hub id to take tokenizer files from.
        family: Name of the architecture's table instead of the config's ``model_type``.
        assets: Whether config, tokenizer and the like are written.
        drop: Glob patterns of tensors to leave out.
        rename: A file of ``old = new`` rules.
    """

    to: str = "hf"
    dtype: DTypeChoice = "keep"
    format: Container = "safetensors"
    max_shard_size: str = "5GB"
    weights: Weights | None = None
    tag: str | None = None
    config: str | None = None
    tokenizer: str | None = None
    family: str | None = None
    assets: bool = True
    drop: tuple[str, ...] = ()
    rename: PathArg | None = None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Describe one tensor: shape, dtype, and the byte ranges it is made of."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    nbytes: int
    files: tuple[str, ...]


class Model(Mapping[str, TensorInfo]):
    """A checkpoint seen as named tensors; data is read when it is asked for.

    Attributes:
        checkpoint: What the reader found.
        relation: Stored tensors to these tensors.
    """

    def __init__(
        self, checkpoint: Checkpoint, relation: Relation, casts: Mapping[str, tuple[DType, ...]]
    ) -> None:
        self.checkpoint = checkpoint
        self.relation = relation
        self._casts = casts

    @property
    def tensors(self) -> Model:
        """The tensors by name (the model itself is that mapping)."""
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(self.relation.right)

    def __len__(self) -> int:
        return len(self.relation.right)

    def __getitem__(self, name: str) -> TensorInfo:
        spec = self.relation.right[name]
        d = dtype_named(spec.dtype)
        keys = {p.left.tensor for p in self.relation.pairs if p.right.tensor == name}
        paths = {e.path for k in keys for e in self.checkpoint.stored[k].extents}
        return TensorInfo(name, spec.shape, d, spec.numel * d.itemsize, tuple(sorted(paths)))

    def to(self, target: str = "hf", **options: Any) -> Model:
        """Return the same tensors under the target's names and dtypes; nothing is read.

        Args:
            target: ``hf``.
            **options: Fields of `ConvertOptions`, such as ``dtype``.
        """
        chosen = ConvertOptions(to=target, assets=False, **options)
        _check_target(chosen)
        config = _find_config(self.checkpoint, chosen)[0]
        named = _named(self.checkpoint, chosen, _family(chosen, config), config)
        return Model(self.checkpoint, named.relation, named.casts)

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """Read one tensor now, as a numpy array of its shape (``ml_dtypes`` for bfloat16).

        Raises:
            KeyError: if there is no such tensor.
            MismatchError: if replicas of it differ.
        """
        from ckptconv.dtypes import numpy_dtype
        from ckptconv.engine.fill import Filler
        from ckptconv.graph.plan import OutFile
        from ckptconv.storage.base import FileLayout, Placed
        from ckptconv.storage.files import SourceFiles

        info = self[name]
        layout = FileLayout(info.nbytes, (), (Placed(name, info.dtype, info.shape, 0),))
        file = OutFile(name, "safetensors", layout)
        one = _plan_of(self.checkpoint, self.relation, self._casts, (file,))
        with SourceFiles(self.checkpoint.files) as sources:
            data, _, _ = Filler(one, file, sources).fill(0, info.nbytes)
        return data.view(numpy_dtype(info.dtype)).reshape(info.shape)


def open(path: PathArg, *, weights: Weights | None = None, tag: str | None = None) -> Model:
    """Open any checkpoint; only metadata is read.

    Args:
        path: A run's folder, a tag folder, a Hugging Face folder, or a file inside one.
        weights: fp32 masters or the 16-bit weights the model ran with; None is the producer's default.
        tag: The DeepSpeed tag instead of the one in ``latest``.

    Raises:
        FormatError: if it is damaged or not a checkpoint.
        PlanError: if parts are missing or disagree.
    """
    checkpoint = open_checkpoint(Path(path), ReadOptions(weights, tag))
    return Model(checkpoint, checkpoint.relation, _casts(checkpoint, checkpoint.relation, {}))


def plan(source: PathArg, options: ConvertOptions | None = None, **fields: Any) -> Plan:
    """Plan a conversion from metadata alone; nothing is written.

    Args:
        source: The checkpoint.
        options: What to write.
        **fields: Fields of `ConvertOptions`, instead of ``options``.

    Raises:
        PlanError: if a tensor is unmapped, uncovered, doubled or of another shape than the config asks for.
    """
    chosen = replace(options or ConvertOptions(), **fields)
    _check_target(chosen)
    checkpoint = open_checkpoint(Path(source), ReadOptions(chosen.weights, chosen.tag))
    notes = list(checkpoint.notes)
    config, origin, config_folder, beside = _find_config(checkpoint, chosen)
    family = _family(chosen, config)
    named = _named(checkpoint, chosen, family, config)
    if family is not None and config is not None:
        notes += _compare(family, config, named)
    tensors = [(n, dtype_named(s.dtype), s.shape) for n, s in named.relation.right.items()]
    files, index = layout_weights(tensors, chosen.format, parse_size(chosen.max_shard_size))
    assets = [] if index is None else [index]
    steps = list(named.steps)
    if chosen.assets:
        assert config is not None and config_folder is not None
        if family is None:
            kind = config.get("model_type")
            notes.append(Note("info", f"no table for model_type {kind!r}: names and shapes pass unchecked"))
        more, config_steps, asset_notes = _assets(
            checkpoint, chosen, named, family, config, config_folder, origin, beside
        )
        assets += more
        steps += config_steps
        notes += asset_notes
    made = _plan_of(checkpoint, named.relation, named.casts, files)
    return replace(
        made,
        assets=tuple(assets),
        steps=tuple(steps),
        notes=tuple((n.level, n.text) for n in notes),
    )


def convert(
    source: PathArg,
    out: PathArg,
    *,
    workers: int = 0,
    max_memory: str | int = "64MiB",
    resume: bool = False,
    overwrite: bool = False,
    listen: Listener | None = None,
    **fields: Any,
) -> Report:
    """Convert a checkpoint.

    Args:
        source: The checkpoint.
        out: The output folder; new or empty unless ``overwrite`` or ``resume``.
        workers: Threads; 0 is one a core.
        max_memory: The most all buffers together may take.
        resume: Go on with an interrupted run.
        overwrite: Replace the model in ``out``.
        listen: Called with every event of the run, from any thread.
        **fields: Fields of `ConvertOptions`.

    Raises:
        CkptconvError: as `plan` does, or if reading or writing fails; ``out`` then holds no model.
    """
    memory = max_memory if isinstance(max_memory, int) else parse_size(max_memory)
    options = Options(workers=workers, max_memory=memory, resume=resume, overwrite=overwrite)
    return run(plan(source, **fields), Path(out), options, listen)


@dataclass(frozen=True, slots=True)
class _Named:
    """Tensors under their final names, with dtypes decided."""

    relation: Relation
    casts: Mapping[str, tuple[DType, ...]]
    aliases: Mapping[str, str]
    tied: bool | None
    steps: tuple[Step, ...]


def _check_target(options: ConvertOptions) -> None:
    if options.to != "hf":
        raise UsageError(f"cannot convert to {options.to!r}", hint="targets: hf")


def _named(
    checkpoint: Checkpoint,
    options: ConvertOptions,
    family: Family | None = None,
    config: Mapping[str, Any] | None = None,
) -> _Named:
    """Apply drops, renames, ties and the dtype."""
    relation, aliases = checkpoint.relation, dict(checkpoint.aliases)
    steps: list[Step] = []
    via = checkpoint.via
    if options.drop or options.rename is not None:
        rules = parse_renames(Path(options.rename).read_text(encoding="utf-8")) if options.rename else []
        # An alias may be dropped as well, and then only its name goes.
        gone = {a for a in aliases for d in options.drop if fnmatchcase(a, d)}
        drops = [
            d
            for d in options.drop
            if not any(fnmatchcase(a, d) for a in gone) or any(fnmatchcase(n, d) for n in relation.right)
        ]
        names, renamed = names_relation(relation.right, drops, rules)
        steps += [Step("drop", d.box.tensor, d.reason) for d in names.left_only]
        steps += [Step("rename", f"{old} -> {new}", "--rename") for old, new in renamed.items() if old != new]
        relation = relation.compose(names)
        aliases = {a: renamed[b] for a, b in aliases.items() if b in renamed and a not in gone}
        via = {renamed[n]: d for n, d in via.items() if n in renamed}
    if family is not None and (saved := family.saved(relation.right)) is not None:
        via = {p.right.tensor: via[p.left.tensor] for p in saved.pairs if p.left.tensor in via}
        steps += _saved_steps(saved)
        relation = relation.compose(saved)
    relation, aliases, tied, tie_steps = _tie(checkpoint, relation, aliases, family, config)
    steps += tie_steps
    steps += [Step("alias", f"{a} = {b}", "tied: written once") for a, b in aliases.items()]
    target = None if options.dtype == "keep" else dtype_named(options.dtype)
    wanted = {
        n: target or dtype_named(s.dtype)
        for n, s in relation.right.items()
        if dtype_named(s.dtype).kind == "float"
    }
    right = {n: replace(s, dtype=wanted[n].name) if n in wanted else s for n, s in relation.right.items()}
    relation = replace(relation, right=right)
    casts = _casts(checkpoint, relation, via)
    steps += _cast_steps(relation, casts)
    copies = Counter(p.right.tensor for p in relation.pairs if p.left_copy)
    steps += [Step("compare", n, f"{count} other copies must agree") for n, count in copies.items()]
    return _Named(relation, casts, aliases, tied, tuple(steps))


def _saved_steps(saved: Relation) -> list[Step]:
    parts: dict[str, list[str]] = {}
    for pair in saved.pairs:
        parts.setdefault(pair.left.tensor, []).append(pair.right.tensor)
    return [
        Step("rename", f"{old} -> {_some(new, 2)}", "as save_pretrained names it")
        for old, new in parts.items()
        if new != [old]
    ]


def _tie(
    checkpoint: Checkpoint,
    relation: Relation,
    aliases: dict[str, str],
    family: Family | None,
    config: Mapping[str, Any] | None,
) -> tuple[Relation, dict[str, str], bool | None, list[Step]]:
    """Write tied weights once; resolve names without data by the config's word.

    Raises:
        PlanError: if a name without data is not explained by tied weights.
    """
    embed = family.name_of("embed") if family else None
    head = family.name_of("head") if family else None
    says = family.tied(config) if family and config is not None else None
    unresolved = [n for n in checkpoint.unresolved if n not in aliases]
    if says and embed in relation.right and head in unresolved:
        aliases[str(head)] = str(embed)
        unresolved.remove(str(head))
    if unresolved:
        shown = ", ".join(unresolved[:5]) + (
            f" and {len(unresolved) - 5} more" if len(unresolved) > 5 else ""
        )
        raise PlanError(
            f"the checkpoint names {shown}, but holds no data for it",
            where=checkpoint.data,
            hint="deepspeed before 0.9.1 did not save frozen ZeRO-3 parameters, and before 0.9.2 did not say which are "
            "tied (give the model's --config); otherwise leave them out with --drop",
        )
    steps: list[Step] = []
    if says and embed in relation.right and head in relation.right:
        if relation.right[head].shape == relation.right[embed].shape:
            pairs = tuple(
                replace(p, right=replace(p.right, tensor=embed), left_copy=True)
                if p.right.tensor == head
                else p
                for p in relation.pairs
            )
            right = {n: s for n, s in relation.right.items() if n != head}
            relation = replace(relation, pairs=pairs, right=right)
            aliases[head] = embed
    tied = None
    if head is not None and embed is not None:
        tied = aliases.get(head) == embed if head in aliases else (False if head in relation.right else says)
    return relation, aliases, tied, steps


def _casts(
    checkpoint: Checkpoint, relation: Relation, via: Mapping[str, DType]
) -> dict[str, tuple[DType, ...]]:
    """Return the dtypes each tensor passes through, for those that are cast.

    Raises:
        PlanError: if parts of one tensor are stored in different dtypes, or a cast is not between floats.
    """
    stored: dict[str, str] = {}
    for pair in relation.pairs:
        if pair.left_copy:
            continue
        found = relation.left[pair.left.tensor].dtype
        if stored.setdefault(pair.right.tensor, found) != found:
            raise PlanError(
                f"parts of {pair.right.tensor} are stored as {stored[pair.right.tensor]} and {found}",
                where=checkpoint.data,
            )
    casts = {}
    for name, spec in relation.right.items():
        chain = [dtype_named(stored.get(name, spec.dtype))]
        for step in (via.get(name), dtype_named(spec.dtype)):
            if step is not None and step != chain[-1]:
                chain.append(step)
        if len(chain) > 1:
            if any(d.kind != "float" for d in chain):
                raise PlanError(f"{name} is stored as {chain[0]} and cannot become {chain[-1]}")
            casts[name] = tuple(chain)
    return casts


def _cast_steps(relation: Relation, casts: Mapping[str, tuple[DType, ...]]) -> list[Step]:
    steps = []
    for chain, count in Counter(casts.values()).items():
        exact = all(is_exact(a, b) for a, b in zip(chain, chain[1:], strict=False))
        how = "exact" if exact else "rounded to nearest, ties to even"
        steps.append(Step("cast", f"{count} tensors " + " -> ".join(d.name for d in chain), how))
    return steps


def _find_config(
    checkpoint: Checkpoint, options: ConvertOptions
) -> tuple[dict[str, Any] | None, str, Path | None, list[Path]]:
    """Find config.json; without assets, one that is given or there still serves the checks."""
    data = checkpoint.data if checkpoint.data.is_dir() else checkpoint.data.parent
    beside = list(dict.fromkeys((checkpoint.root, data)))
    folder, origin = find_assets(options.config, beside, flag="--config")
    if folder is None or not (folder / CONFIG).is_file():
        if options.assets:
            raise PlanError(
                "no config.json was found" + (f" in {origin}" if folder else " beside the checkpoint"),
                where=checkpoint.root,
                hint="give --config with a folder or hub id of the same architecture, or --no-assets for the weights alone",
            )
        return None, "", None, beside
    return read_config(folder), origin, folder, beside


def _family(options: ConvertOptions, config: Mapping[str, Any] | None) -> Family | None:
    if options.family is None:
        return find_family(config.get("model_type")) if config else None
    found = next((f for f in families() if f.name == options.family), None)
    if found is None:
        raise UsageError(
            f"no family {options.family!r}", hint="families: " + ", ".join(f.name for f in families())
        )
    return found


def _assets(
    checkpoint: Checkpoint,
    options: ConvertOptions,
    named: _Named,
    family: Family | None,
    config: Mapping[str, Any],
    config_folder: Path,
    origin: str,
    beside: Sequence[Path],
) -> tuple[list[AssetFile], list[Step], list[Note]]:
    """Gather config, generation config and tokenizer, checked against what is written."""
    notes: list[Note] = []
    tensors = named.relation.right
    written = Counter[str]()
    for name, spec in tensors.items():
        if name not in checkpoint.buffers and dtype_named(spec.dtype).kind == "float":
            written[spec.dtype] += spec.numel
    most = written.most_common(1)[0][0] if written else None
    tied = named.tied
    if tied is None and any(
        n.endswith(("embed_tokens.weight", "wte.weight")) for n in named.aliases.values()
    ):
        tied = True
    config_asset, steps = config_file(
        config, origin, dtype=most, tied=tied if tied != _tie_word(config, family) else None
    )
    assets = [config_asset]
    if (generation := generation_file(config_folder, config, origin)) is not None:
        assets.append(generation)
    folder, where = (config_folder, origin)
    if options.tokenizer is not None:
        folder, where = _must(find_assets(options.tokenizer, (), flag="--tokenizer"), options.tokenizer)
    elif not tokenizer_files(folder):
        folder, where = next(((b, str(b)) for b in beside if tokenizer_files(b)), (folder, where))
    tokenizer = collect_tokenizer(folder, where, config_folder)
    if not tokenizer:
        notes.append(
            Note("warning", "no tokenizer files were found; give --tokenizer with a folder or hub id")
        )
    return assets + tokenizer, steps, notes


def _compare(family: Family, config: Mapping[str, Any], named: _Named) -> list[Note]:
    """Check names and shapes against the architecture's; say what is missing and what is more.

    Raises:
        PlanError: if a shape or the number of layers contradicts the config.
    """
    shapes = {n: s.shape for n, s in named.relation.right.items()}
    findings = family.compare(config, shapes, named.aliases)
    notes = []
    if findings.missing:
        notes.append(
            Note(
                "warning",
                f"{len(findings.missing)} parameters of {family.name} are not in the checkpoint, so the model "
                f"is incomplete (saved with exclude_frozen_parameters?): {_some(findings.missing)}",
            )
        )
    if findings.unexpected:
        count = len(findings.unexpected)
        notes.append(
            Note("info", f"{count} names beyond {family.name} pass through: {_some(findings.unexpected)}")
        )
    return notes


def _tie_word(config: Mapping[str, Any], family: Family | None) -> bool | None:
    found = config.get("tie_word_embeddings")
    return family.tied(config) if family else found


def _must(found: tuple[Path | None, str], given: str) -> tuple[Path, str]:
    if found[0] is None or not tokenizer_files(found[0]):
        raise UsageError(f"--tokenizer: no tokenizer files in {given}")
    return found[0], found[1]


def _plan_of(
    checkpoint: Checkpoint,
    relation: Relation,
    casts: Mapping[str, tuple[DType, ...]],
    files: Any,
) -> Plan:
    used = {p.left.tensor for p in relation.pairs}
    return Plan(
        source=str(checkpoint.root),
        producer=checkpoint.producer,
        relation=relation,
        stored={k: s for k, s in checkpoint.stored.items() if k in used},
        casts=casts,
        files=files,
        inputs=checkpoint.files,
    )


def _some(names: Sequence[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
