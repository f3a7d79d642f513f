"""Verify a conversion: plan it again, prove the plan, compare every byte, and certify the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from ckptconv.api import PathArg, plan
from ckptconv.architecture import find_architecture
from ckptconv.dtypes import DType
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.engine.events import Listener
from ckptconv.engine.options import DEFAULT_MEMORY, Options
from ckptconv.errors import UsageError
from ckptconv.graph import Plan, Relation
from ckptconv.naming import cast_chains, cast_steps
from ckptconv.options import ConvertOptions
from ckptconv.readers.base import Checkpoint, ReadOptions
from ckptconv.readers.registry import open_checkpoint
from ckptconv.storage.files import SourceFiles
from ckptconv.verify import certificate
from ckptconv.verify.assets import check_assets
from ckptconv.verify.compare import Comparer
from ckptconv.verify.held import differences, hold, planned, way_of, wholly_read
from ckptconv.verify.logits import run_model
from ckptconv.verify.proof import prove
from ckptconv.verify.result import Mismatch, Proof, Result

__all__ = ["verify_plan", "verify_roundtrip"]

_DTYPES = ("float32", "bfloat16", "float16")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")


def verify_roundtrip(
    source: PathArg,
    out: PathArg | None = None,
    options: ConvertOptions | None = None,
    *,
    certify: bool = False,
    logits: bool = False,
    reference: PathArg | None = None,
    workers: int = 0,
    max_memory: int = DEFAULT_MEMORY,
    listen: Listener | None = None,
    **fields: Any,
) -> Result:
    """Compare what a checkpoint was converted to with the checkpoint, element by element.

    Every value of the output is computed again from the source, through casts and sums, and compared bit by
    bit; copies in the source are compared with one another. What the output is, and in which dtype, is found
    out from it. Without an output it is proved that the source survives the round trip, and its copies are
    compared.

    Args:
        source: The checkpoint.
        out: What it was converted to, a folder or a file.
        options: The options of the conversion; those of the target are found out from ``out``.
        certify: Write a certificate into ``out`` if nothing differs.
        logits: Run ``out`` with transformers as well.
        reference: A model whose logits are to be the same.
        workers: Threads; 0 is one a core.
        max_memory: The most all buffers together may take, in bytes.
        listen: Called with every event, from any thread.
        **fields: Fields of `ConvertOptions`, to set or to change in ``options``.

    Raises:
        CkptconvError: if either cannot be read, or the source not be planned. What differs is in the result.
    """
    begin = perf_counter()
    chosen = replace(options or ConvertOptions(), **fields)
    how = Options(workers, max_memory)
    if out is None:
        if logits or reference is not None or certify:
            raise UsageError("--logits, --reference and a certificate need the folder that was written")
        return replace(_source_alone(Path(source), chosen, how, listen), seconds=perf_counter() - begin)
    there = _open_out(Path(out))
    made, way = _plan_again(source, there, chosen)
    result = _compare(made, Path(out), there, way, how, listen, certify=certify, family=chosen)
    return _finish(result, Path(out), begin, certify=certify, logits=logits, reference=reference)


def verify_plan(
    made: Plan,
    source: PathArg,
    out: PathArg,
    options: ConvertOptions,
    how: Options,
    listen: Listener | None = None,
) -> Result:
    """Compare what was just written with its plan, padding included, and certify it if nothing differs.

    An output whose reader sees other tensors than its writer is compared as `verify_roundtrip` does.

    Args:
        made: The plan.
        source: The checkpoint.
        out: The folder it was written to.
        options: The options of the conversion.
        how: Threads and memory.
        listen: Called with every event, from any thread.
    """
    begin = perf_counter()
    there = _open_out(Path(out))
    way = way_of(made, there)
    if planned(made).keys() - way.right.keys():
        made, way = _plan_again(source, there, options)
    result = _compare(made, Path(out), there, way, how, listen, certify=True, family=options)
    return _finish(result, Path(out), begin, certify=True, logits=False, reference=None)


def _open_out(path: Path) -> Checkpoint:
    if (
        path.is_dir()
        and not any(path.glob("model*.safetensors"))
        and not any(path.glob("pytorch_model*.bin"))
    ):
        path = next((path / n for n in _ADAPTERS if (path / n).is_file()), path)
    return open_checkpoint(path, ReadOptions())


def _plan_again(source: PathArg, there: Checkpoint, options: ConvertOptions) -> tuple[Plan, Relation]:
    """Plan the conversion to what an output is; return also how the output relates to that plan."""
    options = replace(options, to="hf", assets=False, sizes={}, like=None)
    if there.data.name in _ADAPTERS:
        options = replace(options, lora="adapter")
    way = there.relation if there.table is None else _by_slots(source, there, options)
    made = plan(source, options)
    if options.dtype != "keep":
        return made, way
    wrong = {m.tensor for m in differences(planned(made), way.right) if m.kind == "dtype"}
    found = Counter(dtype for n in wrong if (dtype := way.right[n].dtype) in _DTYPES)
    if there.table is None:
        found = Counter(dict(found.most_common(1)))
    cast = {d: plan(source, replace(options, dtype=d)) for d in found}  # type: ignore[arg-type]
    if len(cast) == 1:
        (whole,) = cast.values()
        if there.table is None or not differences(planned(whole), way.right):
            return whole, way
    return _with_casts(made, {n: cast[d] for n in wrong if (d := way.right[n].dtype) in cast}), way


def _with_casts(made: Plan, others: Mapping[str, Plan]) -> Plan:
    """Return a plan with the types that other plans give some tensors: ranks may hold several."""
    if not others:
        return made
    right = {n: others[n].relation.right[n] if n in others else s for n, s in made.relation.right.items()}
    casts = {n: c for n, c in made.casts.items() if n not in others}
    casts |= {n: p.casts[n] for n, p in others.items() if n in p.casts}
    files = []
    for file in made.files:
        tensors = tuple(replace(t, dtype=dtype_named(right[t.name].dtype)) for t in file.layout.tensors)
        files.append(replace(file, layout=replace(file.layout, tensors=tensors)))
    return replace(made, relation=replace(made.relation, right=right), casts=casts, files=tuple(files))


def _by_slots(source: PathArg, there: Checkpoint, options: ConvertOptions) -> Relation:
    """Relate an output under a framework's own names to Hugging Face's, as if it were converted itself."""
    config = options.config
    if config is None:
        known = find_architecture(_open_source(Path(source), options), options, needed=False).config
        config = str(known.folder) if known is not None and known.folder is not None else None
    back = plan(there.data, ConvertOptions(config=config, family=options.family, assets=False))
    if back.terms:
        raise UsageError(
            f"{there.producer} adds something to {next(iter(back.terms))}: the two cannot be compared",
            hint="convert it to Hugging Face's format, and verify that",
        )
    return back.relation


def _open_source(path: Path, options: ConvertOptions) -> Checkpoint:
    reading = ReadOptions(
        options.weights, options.tag, iteration=options.iteration, sizes=options.source_sizes
    )
    return open_checkpoint(path, reading)


def _compare(
    made: Plan,
    out: Path,
    there: Checkpoint,
    way: Relation,
    how: Options,
    listen: Listener | None,
    *,
    certify: bool,
    family: ConvertOptions,
) -> Result:
    proof, wrong = prove([made.relation, *([way] if there.table is not None else [])], made.casts, made.terms)
    wrong += differences(planned(made), way.right)
    held = hold(made, there, way, {m.tensor for m in wrong if m.kind in ("shape", "dtype")})
    notes = [*made.notes]
    with SourceFiles(made.inputs) as sources, SourceFiles(there.files) as outputs:
        comparer = Comparer(
            held.plan,
            sources,
            outputs,
            how,
            listen or (lambda event: None),
            padding=held.padding,
            names=held.names,
            digests=certify,
        )
        wrong += comparer.run()
        sources.check()
        outputs.check()
    folder = out if out.is_dir() else out.parent
    if there.producer == "huggingface":
        named = ConvertOptions(family=family.family)
        given = find_architecture(there, named, needed=False).family if family.family is not None else None
        more, said = check_assets(folder, there.relation.right, aliases=there.aliases, family=given)
        wrong += more
        notes += said
    return _result(made, held.plan, proof, wrong, notes, str(out), comparer)


def _source_alone(source: Path, options: ConvertOptions, how: Options, listen: Listener | None) -> Result:
    """Prove the round trip from metadata, then read everything and compare the copies."""
    checkpoint = _open_source(source, options)
    notes: list[tuple[str, str]] = []
    options = replace(options, to="hf", assets=False)
    if checkpoint.table is None or find_architecture(checkpoint, options, needed=False).config is not None:
        made = plan(source, options)
    else:
        notes.append(
            (
                "info",
                "no config.json: what is proved is the way to whole tensors, not to Hugging Face's names",
            )
        )
        relation = checkpoint.relation
        made = Plan(
            source=str(checkpoint.root),
            producer=checkpoint.producer,
            relation=relation,
            stored=checkpoint.stored,
            casts=cast_chains(checkpoint, relation, checkpoint.via),
            files=(),
            inputs=checkpoint.files,
            notes=tuple((n.level, n.text) for n in checkpoint.notes),
        )
    proof, wrong = prove([made.relation], made.casts, made.terms)
    reading = wholly_read(made)
    with SourceFiles(made.inputs) as sources:
        comparer = Comparer(reading, sources, None, how, listen or (lambda event: None))
        wrong += comparer.run()
        sources.check()
    return _result(made, reading, proof, wrong, [*made.notes, *notes], None, comparer)


def _result(
    made: Plan,
    compared: Plan,
    proof: Proof,
    wrong: list[Mismatch],
    notes: list[tuple[str, str]],
    out: str | None,
    comparer: Comparer,
) -> Result:
    tensors = [t for f in compared.files for t in f.layout.tensors]
    copies = [p for p in compared.relation.pairs if p.left_copy]
    names = {t.name for t in tensors}
    casts: Mapping[str, tuple[DType, ...]] = {n: c for n, c in compared.casts.items() if n in names}
    return Result(
        source=made.source,
        out=out,
        plan=made.digest(),
        proof=proof,
        tensors=len(tensors),
        bytes=sum(t.nbytes for t in tensors),
        replicas=len({p.left.tensor for p in copies}),
        replica_bytes=sum(p.left.numel * made.stored[p.left.tensor].dtype.itemsize for p in copies),
        casts=tuple(f"{s.what} ({s.why})" for s in cast_steps(casts)),
        mismatches=tuple(wrong),
        notes=tuple(dict.fromkeys(notes)),
        files=comparer.files,
    )


def _finish(
    result: Result,
    out: Path,
    begin: float,
    *,
    certify: bool,
    logits: bool,
    reference: PathArg | None,
) -> Result:
    """Run the model and write the certificate, where that is asked for."""
    folder = out if out.is_dir() else out.parent
    if logits or reference is not None:
        ran, wrong = run_model(folder, None if reference is None else Path(reference))
        result = replace(result, logits=ran, mismatches=(*result.mismatches, *wrong))
    result = replace(result, seconds=perf_counter() - begin)
    if certify and result.ok:
        certificate.write(folder, result)
    return result
