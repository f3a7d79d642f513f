"""Verify a conversion: plan it again, prove the plan, compare every byte, and certify the result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from ckptconv.api.again import Sides, open_out, open_sides, plan_again
from ckptconv.api.average import Averaged, read_record
from ckptconv.api.average import plan_again as plan_average_again
from ckptconv.api.progress import following
from ckptconv.assets.find import CONFIG
from ckptconv.dtypes import DType
from ckptconv.engine.events import Listener
from ckptconv.engine.options import DEFAULT_MEMORY, Options
from ckptconv.errors import CkptconvError, UsageError
from ckptconv.families import Family, family_of
from ckptconv.places.files import SourceFiles
from ckptconv.places.places import PathArg, is_remote, place
from ckptconv.planning.decode import quantised, values_of
from ckptconv.planning.model import find_architecture
from ckptconv.planning.plan import plan_checkpoint
from ckptconv.planning.request import ConvertOptions
from ckptconv.plans.assemble import plan_of
from ckptconv.plans.casting import cast_chains, cast_steps
from ckptconv.plans.checkpoint import Checkpoint, settled
from ckptconv.plans.options import made as made_options
from ckptconv.plans.plan import AssetFile, Plan
from ckptconv.plans.request import Request
from ckptconv.relations import Relation
from ckptconv.verify import certificate
from ckptconv.verify.assets import check_assets
from ckptconv.verify.beside import certified, check_beside
from ckptconv.verify.compare import Comparer
from ckptconv.verify.held import differences, hold, planned, way_of, wholly_read
from ckptconv.verify.logits import run_model
from ckptconv.verify.proof import prove
from ckptconv.verify.result import Mismatch, Proof, Result

__all__ = ["verify_plan", "verify_roundtrip"]


def verify_roundtrip(
    source: PathArg,
    out: PathArg | None = None,
    options: ConvertOptions | None = None,
    *,
    certify: bool = False,
    sha256: bool = False,
    logits: bool = False,
    reference: PathArg | None = None,
    workers: int = 0,
    max_memory: int | str = DEFAULT_MEMORY,
    listen: Listener | None = None,
    progress: bool = False,
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
        sha256: With SHA-256 digests as well as XXH3, which cost nothing.
        logits: Run ``out`` with transformers as well.
        reference: A model whose logits are to be the same.
        workers: Threads; 0 is two a core, at most 8.
        max_memory: The most all buffers together may take, in bytes.
        listen: Called with every event, from any thread.
        progress: Show a bar.
        **fields: Fields of `ConvertOptions`, to set or to change in ``options``.

    Raises:
        CkptconvError: if either cannot be read, or the source not be planned. What differs is in the result.
    """
    with following(listen, "comparing", progress=progress) as tell:
        return _roundtrip(
            *(source, out, options),
            certify=certify,
            sha256=sha256,
            logits=logits,
            reference=reference,
            workers=workers,
            max_memory=max_memory,
            listen=tell,
            **fields,
        )


def _roundtrip(
    source: PathArg,
    out: PathArg | None,
    options: ConvertOptions | None,
    *,
    certify: bool,
    sha256: bool,
    logits: bool,
    reference: PathArg | None,
    workers: int,
    max_memory: int | str,
    listen: Listener | None,
    **fields: Any,
) -> Result:
    begin = perf_counter()
    given = {**(options.fields if options is not None else {}), **fields}
    given.pop("to", None)
    how = made_options(Options, {"workers": workers, "max_memory": max_memory})
    if out is None:
        if logits or reference is not None or certify:
            raise UsageError("--logits, --reference and a certificate need the folder that was written")
        sides = open_sides(place(source), None, given)
        return replace(_source_alone(sides, how, listen), seconds=perf_counter() - begin)
    if (record := read_record(out)) is not None:
        made = plan_average_again(_of_average(record, source, place(out), given))
        there, family, assets = open_out(place(out), {}), given.get("family"), made.assets
        way = way_of(made, there)
    else:
        sides = open_sides(place(source), place(out), given)
        assert sides.there is not None
        made, way, complete = plan_again(sides)
        there, family, assets = sides.there, sides.request.family, made.assets if complete else ()
    result = _compare(
        made,
        *(place(out), there, way, how, listen),
        certify=certify,
        sha256=sha256,
        family=family,
        assets=assets or None,
    )
    names = _compared(place(out), there, assets)
    return _finish(
        result, place(out), begin, names, certify=certify, sha256=sha256, logits=logits, reference=reference
    )


def _of_average(record: Averaged, source: PathArg, out: Path, given: Mapping[str, Any]) -> Averaged:
    """Return what an output is the average of, with the options given now.

    Raises:
        UsageError: if the source is none of what was averaged.
        CkptconvError: if one of these is not there any more.
    """
    path = place(source)
    if not any(place(s).resolve() == path.resolve() for s in record.sources):
        raise UsageError(
            f"this is an average, and {source} is none of its sources",
            where=out,
            hint=f"name one of {', '.join(record.sources)}",
        )
    for held in record.sources:
        if not place(held).exists():
            raise CkptconvError(
                f"a source of this average is not there any more: {held}",
                where=out,
                hint="put it back; ckptconv check OUT compares the files with their certificate alone",
            )
    return replace(record, fields={**record.fields, **{n: v for n, v in given.items() if v is not None}})


def verify_plan(
    made: Plan,
    source: PathArg | None,
    out: PathArg,
    fields: Mapping[str, Any],
    how: Options,
    listen: Listener | None = None,
) -> Result:
    """Compare what was just written with its plan, padding included, and certify it if nothing differs.

    An output whose reader sees other tensors than its writer is compared as `verify_roundtrip` does.

    Args:
        made: The plan.
        source: The checkpoint; None where there are several.
        out: The folder it was written to.
        fields: The options of the conversion, as they were given.
        how: Threads and memory.
        listen: Called with every event, from any thread.
    """
    begin = perf_counter()
    names = [*(f.name for f in made.files), *(a.name for a in made.assets)]
    written = made.assets
    given = {n: v for n, v in fields.items() if n != "to"}
    strategy = given.get("strategy") if fields.get("to") == "mindformers" else None
    there = open_out(place(out), {"strategy": strategy} if strategy is not None else {})
    way = way_of(made, there)
    if source is not None and planned(made).keys() - way.right.keys():
        sides = open_sides(place(source), place(out), given)
        made, way, _ = plan_again(replace(sides, there=there))
    family = given.get("family")
    result = _compare(made, place(out), there, way, how, listen, certify=True, family=family, assets=written)
    return _finish(result, place(out), begin, names, certify=True)


def _compare(
    made: Plan,
    out: Path,
    there: Checkpoint,
    way: Relation,
    how: Options,
    listen: Listener | None,
    *,
    certify: bool,
    sha256: bool = False,
    family: str | None,
    assets: Sequence[AssetFile] | None,
) -> Result:
    proof, wrong = prove(
        [made.relation, *([way] if way is not there.relation else [])], made.casts, made.terms
    )
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
            sha256=sha256,
        )
        wrong += comparer.run()
        sources.check()
        outputs.check()
    folder = out if out.is_dir() else out.parent
    if there.producer == "huggingface":
        named = Request(family=family)
        given = find_architecture(there, named, needed=False).family if family is not None else None
        held_as = values_of(quantised(there), there.relation.right) or there.relation.right
        more, said = check_assets(folder, held_as, aliases=there.aliases, family=given)
        wrong += more
        notes += said
        if assets is not None and folder == out:
            weights = _weights(folder, there)
            known = given or _family(assets)
            more, said = check_beside(folder, assets, weights, known)
            wrong += more
            notes += said
    return _result(made, held.plan, proof, wrong, notes, str(out), comparer)


def _weights(folder: Path, there: Checkpoint) -> list[str]:
    """Return the files of weights that were read, relative to their folder."""
    inside = [Path(os.path.relpath(stamp.path, folder)).as_posix() for stamp in there.files]
    return [name for name in inside if not name.startswith("../")]


def _compared(out: Path, there: Checkpoint, assets: Sequence[AssetFile]) -> list[str] | None:
    """Return the files of an output that were compared; None for one that is no model's folder."""
    if there.producer != "huggingface" or not out.is_dir() or is_remote(out):
        return None
    return certified(out, _weights(out, there), assets)


def _family(assets: Sequence[AssetFile]) -> Family | None:
    config: dict[str, object] = next((json.loads(a.content) for a in assets if a.name == CONFIG), {})
    return family_of(config)


def _source_alone(sides: Sides, how: Options, listen: Listener | None) -> Result:
    """Prove the round trip from metadata, then read everything and compare the copies."""
    checkpoint, request = settled(sides.source), sides.request
    notes: list[tuple[str, str]] = []
    if checkpoint.table is None or find_architecture(checkpoint, request, needed=False).config is not None:
        made = plan_checkpoint(checkpoint, request)
    else:
        text = "no config.json: what is proved is the way to whole tensors, not to Hugging Face's names"
        notes.append(("info", text))
        relation = checkpoint.relation
        said = [(n.level, n.text) for n in checkpoint.notes]
        made = plan_of(checkpoint, relation, cast_chains(checkpoint, relation, checkpoint.via), notes=said)
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
        names=tuple(planned(made) if made.files else made.relation.right),
        origin=made.origin,
    )


def _finish(
    result: Result,
    out: Path,
    begin: float,
    names: Sequence[str] | None,
    *,
    certify: bool,
    sha256: bool = False,
    logits: bool = False,
    reference: PathArg | None = None,
) -> Result:
    """Run the model and write the certificate, where that is asked for."""
    folder = out if out.is_dir() else out.parent
    if logits or reference is not None:
        ran, wrong = run_model(folder, None if reference is None else place(reference))
        result = replace(result, logits=ran, mismatches=(*result.mismatches, *wrong))
    result = replace(result, seconds=perf_counter() - begin)
    if certify and result.ok:
        certificate.write(folder, result, names=names, sha256=sha256)
    return result
