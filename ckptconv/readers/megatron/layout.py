"""Find out how a checkpoint of ranks is laid out: parallel sizes, experts, the order of its chunks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ckptconv.containers.torch.rankfile import RankFile
from ckptconv.errors import PlanError
from ckptconv.parallel import Grid, Rank
from ckptconv.plans.checkpoint import Note
from ckptconv.readers.megatron.find import Run
from ckptconv.readers.megatron.options import MegatronOptions

__all__ = ["grid_of"]


def grid_of(run: Run, files: Mapping[str, RankFile], options: MegatronOptions, notes: list[Note]) -> Grid:
    """Find the parallel sizes out; flags check them, and fill in what the arguments do not say.

    Args:
        run: The iteration.
        files: What the files of its ranks say, by folder.
        options: What the user says.
        notes: Where to add what a user should know.

    Raises:
        PlanError: if flags say otherwise than the arguments, or neither say what must be known.
    """
    given, first = options.sizes, next(iter(files.values()))
    args = first.arguments
    numbered = Grid.numbers(list(files))
    said: dict[str, int] = {}
    for size, names in {
        "tp": ("tensor_model_parallel_size", "model_parallel_size"),
        "pp": ("pipeline_model_parallel_size",),
        "ep": ("expert_model_parallel_size",),
        "etp": ("expert_tensor_parallel_size",),
    }.items():
        value = next((args[n] for n in names if isinstance(args.get(n), int)), None)
        if value is not None:
            said[size] = value
    if args and "tp" in said:
        said = {"pp": 1, "ep": 1, **said}
    for size, value in given.items():
        if size != "vpp" and said.get(size, value) != value:
            raise PlanError(
                f"the checkpoint says {size} {said[size]}, --{size} says {value}",
                where=run.data,
                hint="leave the flag out: the checkpoint knows",
            )
    sizes = {**{k: v for k, v in given.items() if k != "vpp"}, **said}
    if "tp" not in sizes or "pp" not in sizes or "ep" not in sizes:
        guess = _guess(numbered, files, sizes)
        sizes = {**guess, **sizes}
        notes.append(
            Note(
                "guess",
                "the checkpoint holds no parallel sizes; from the folders' names: "
                + ", ".join(f"{k} {v}" for k, v in sizes.items()),
            )
        )
    vpp = len(first.chunks)
    if given.get("vpp", vpp) != vpp:
        raise PlanError(
            f"the checkpoint holds {vpp} virtual chunks a stage, --vpp says {given['vpp']}", where=run.data
        )
    extended = _is_extended(run, files, options, sizes)
    etp = 1 if extended else sizes.get("etp") or sizes["tp"]
    plain = Grid(sizes["tp"], sizes["pp"], vpp, sizes["ep"], etp, extended)
    return replace(plain, dualpipe=True) if _is_folded(plain, files) else plain


# Experts of a rank in one tensor, whose shape is the same whether they are cut or spread.
_TOGETHER: Final = re.compile(r"(?:.*\.)?mlp\.experts\.weight[12]")
_LAST: Final = re.compile(r"(?:.*\.)?(?:final_layernorm|final_norm|output_layer)\.weight")


def _is_extended(
    run: Run, files: Mapping[str, RankFile], options: MegatronOptions, sizes: Mapping[str, int]
) -> bool:
    """Whether whole experts are spread over tensor and expert ranks (MindSpeed's ``moe_tp_extend_ep``).

    Raises:
        PlanError: if neither arguments nor flags tell, and nothing in the files does.
    """
    first = next(iter(files.values()))
    args, said = first.arguments, options.extend_ep
    if args:
        known = bool(args.get("moe_tp_extend_ep"))
        if said is not None and said != known:
            raise PlanError(
                f"the checkpoint says moe_tp_extend_ep {known}, the flag says {said}",
                where=run.data,
                hint="leave the flag out: the checkpoint knows",
            )
    elif said is None and sizes["tp"] > 1 and "etp" not in sizes and _holds(files, _TOGETHER):
        raise PlanError(
            "nothing here tells whether tensor parallel ranks hold slices of experts, or whole ones",
            where=run.data,
            hint="give --moe-tp-extend-ep if the weights were made with it (MindSpeed-LLM), else "
            "--no-moe-tp-extend-ep: the experts would be wrong otherwise",
        )
    else:
        known = bool(said)
    return known and sizes["ep"] * sizes["tp"] > 1


def _holds(files: Mapping[str, RankFile], pattern: re.Pattern[str]) -> bool:
    own = (f for f in files.values() if f.like is None)
    return any(pattern.fullmatch(n) for f in own for tensors in f.chunks.values() for n in tensors)


def _is_folded(grid: Grid, files: Mapping[str, RankFile]) -> bool:
    """Whether the model ends on the stage it began on: MindSpeed's ``dualpipev``.

    Its last norm and head are in the first stage's second chunk then, elsewhere in the last stage's.
    """
    if grid.vpp != 2 or grid.pp == 1:
        return False
    ends = {
        stage
        for stage in (0, grid.pp - 1)
        if (file := files.get(grid.folder(Rank(0, stage, 0)))) is not None
        and any(_LAST.fullmatch(name) for name in file.chunks[1])
    }
    if len(ends) != 1:  # it is not to be told
        return any(f.arguments.get("schedules_method") == "dualpipev" for f in files.values())
    return 0 in ends


def _guess(
    numbered: Mapping[str, tuple[int, ...]], files: Mapping[str, RankFile], known: Mapping[str, int]
) -> dict[str, int]:
    """Read the sizes off the folders' names; a single further number is the expert's if all embed."""
    counts = [
        max(n[i] for n in numbered.values() if len(n) > i) + 1
        for i in range(max(map(len, numbered.values())))
    ]
    if len(counts) == 3:
        return {"tp": counts[0], "pp": counts[1], "ep": counts[2]}
    if len(counts) == 1:
        return {"tp": counts[0], "pp": 1, "ep": 1}
    embeds = [any("word_embeddings" in n for c in f.chunks.values() for n in c) for f in files.values()]
    expert = all(embeds) if "ep" not in known and "pp" not in known else known.get("ep", 1) > 1
    return {"tp": counts[0], "pp": 1 if expert else counts[1], "ep": counts[1] if expert else 1}
