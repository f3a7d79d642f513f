"""Open the files of a tag and hand out their contents by rank, checked for completeness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.inert import Record
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.errors import FormatError, PlanError
from ckptconv.readers.deepspeed.experts import is_expert
from ckptconv.readers.deepspeed.find import TagFiles
from ckptconv.readers.deepspeed.renamed import renames
from ckptconv.records import dataclass

__all__ = ["ModelRank", "as_dict", "load", "open_ranks", "shape_of", "value"]

Dict = dict[Any, Any]


def load(path: Path) -> Dict:
    """Read the structure of a torch file whose root is a dict."""
    root = open_torch(path).root
    if not isinstance(root, dict):
        raise FormatError(f"expected a dict, found {type(root).__name__}", where=path)
    return root


def as_dict(x: object) -> Dict:
    """Return ``x`` if it is a dict, else an empty one."""
    return x if isinstance(x, dict) else {}


def value(x: Any) -> Any:
    """Unwrap an enum member, which pickles as its class called with its value."""
    return x.args[0] if isinstance(x, Record) and x.args else x


def shape_of(x: Any) -> tuple[int, ...]:
    """Return a shape stored as ``torch.Size`` or, in MoE files, as a plain tuple."""
    if isinstance(x, (tuple, list)) and all(isinstance(n, int) and n >= 0 for n in x):
        return tuple(x)
    raise FormatError(f"not a shape: {x!r}")


@dataclass(slots=True)
class ModelRank:
    """Hold what the files say about one model-parallel rank.

    Attributes:
        mp: The rank within (pipeline x tensor parallel), pipeline-major.
        head: The model states of data-parallel rank 0.
        head_path: Its file.
        fragments: ``frozen_param_fragments`` of each data-parallel rank (stage 3 with frozen parameters).
        optim: The ZeRO optimizer states by data-parallel rank.
        optim_paths: Their files.
        renames: Names of parameters to those the module saves them under (`renamed`).
    """

    mp: int
    head: Dict
    head_path: Path
    fragments: list[Mapping[str, FileTensor]] = field(default_factory=list)
    optim: list[Dict] = field(default_factory=list)
    optim_paths: list[Path] = field(default_factory=list)
    renames: Mapping[str, str] = field(default_factory=dict)

    @property
    def sharded(self) -> bool:
        """Whether the model states hold placeholders only (stage 3); its files name data-parallel ranks."""
        return self.head_path.name.startswith("zero_pp_rank_")

    @property
    def stage(self) -> int:
        """ZeRO stage as the partitions show it; ``ds_config`` may say otherwise (BF16_Optimizer)."""
        if not self.optim:
            return 0
        said = value(self.optim[0].get("zero_stage"))
        if isinstance(said, int):
            return said
        return 3 if "fp32_flat_groups" in self.optim[0] else 1

    @property
    def module(self) -> Mapping[str, Any] | None:
        """The module's state dict, or None for a pipeline, whose layers have files of their own."""
        module = self.head.get("module")
        return module if isinstance(module, dict) else None

    def param_shapes(self) -> list[dict[str, tuple[int, ...]]] | None:
        """Shapes of the trainable parameters by optimizer group (stage 3: sub-group), in partition order.

        0.3.14 to 0.5.x keep them in the optimizer file; before 0.5.4 all groups are in one dict.
        """
        found = self.head.get("param_shapes")
        if found is None and self.optim:
            found = self.optim[0].get("param_shapes")
        if found is None:
            return None
        groups = found if isinstance(found, list) else [found]
        return [{self.saved(k): shape_of(v) for k, v in as_dict(g).items()} for g in groups]

    def saved(self, name: object) -> str:
        """Return the name the module saves a parameter under."""
        return self.renames.get(str(name), str(name))

    def frozen_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Shapes of the frozen parameters; None where the files do not say which are (stage 1, 0.9.0)."""
        found = self.head.get("frozen_param_shapes")
        if not isinstance(found, dict):
            return None
        return {self.saved(k): shape_of(v) for k, v in found.items()}

    def unsaved(self) -> list[str]:
        """Trainable parameters that the module does not save, so that there is nothing but their masters.

        What is a pipeline's or an expert's (AutoEP's too) has files of its own.
        """
        module = self.module
        if module is None or self.sharded or self.head.get("ds_autoep_layers"):
            return []
        there = {*map(str, module), *self.shared()}
        return [
            name
            for group in self.param_shapes() or []
            for name in group
            if name not in there and not is_expert(name)
        ]

    def shared(self) -> dict[str, str]:
        """Names that share another's data, as the files say (0.9.2)."""
        found = as_dict(self.head.get("shared_params"))
        named = {self.saved(a): self.saved(b) for a, b in found.items()}
        return {a: b for a, b in named.items() if a != b}

    def param_names(self) -> set[str]:
        """Names of the trainable parameters: those with shapes, else those the partitions' slices name."""
        shapes = self.param_shapes()
        if shapes is not None:
            return {name for group in shapes for name in group}
        return {name for state in self.optim for name in _fragment_names(state)}


def _fragment_names(state: Mapping[str, Any]) -> Iterator[str]:
    for group in state.get("param_slice_mappings") or []:
        yield from (str(name) for name in as_dict(group))


def open_ranks(files: TagFiles, *, optimizer: bool) -> list[ModelRank]:
    """Open the states of every model-parallel rank.

    Args:
        files: The sorted files.
        optimizer: Whether the masters are wanted; the optimizer files are not opened otherwise, except for
            stage 3, where nothing else holds the weights.

    Raises:
        PlanError: if a rank's file is missing or ranks are of different steps.
    """
    if not files.model:
        raise PlanError(
            "the model states are missing; there are only optimizer states",
            where=next(files.all()).parent,
            hint="copy the *_model_states.pt files of the same save",
        )
    ranks = []
    for mp in sorted(files.model):
        model = files.model[mp]
        if 0 not in model:
            raise PlanError(
                f"the model states of data-parallel rank 0 are missing (mp_rank_{mp:02d})",
                where=next(iter(model.values())).parent,
                hint="copy the *_model_states.pt files of every rank",
            )
        rank = ModelRank(mp, load(model[0]), model[0])
        _rename(rank)
        # Only the partitions name a pipeline's tied parameters where the model states name no shapes.
        nameless = rank.module is None and rank.param_shapes() is None and bool(files.optim)
        if files.universal is None and (optimizer or rank.sharded or nameless or rank.unsaved()):
            _open_optim(rank, files)
            if rank.head.get("param_shapes") is None:  # they may be in the optimizer's file
                _rename(rank)
        if rank.sharded:
            _open_fragments(rank, model)
        ranks.append(rank)
    _check_ranks(ranks)
    _same_step(ranks)
    return ranks


def _rename(rank: ModelRank) -> None:
    """Learn under which names the module saves its parameters."""
    if rank.module is None:
        return
    rank.renames = {}
    named = {n: s for group in rank.param_shapes() or [] for n, s in group.items()}
    named = {n: s for n, s in named.items() if not is_expert(n)} | (rank.frozen_shapes() or {})
    shared = rank.shared()
    named |= {a: named[b] for a, b in shared.items() if b in named}
    others = {*shared, *(str(b) for b in rank.head.get("buffer_names") or ())}
    module = {str(k): t for k, t in rank.module.items() if isinstance(t, FileTensor)}
    rank.renames = renames(module, named, others)


def _open_optim(rank: ModelRank, files: TagFiles) -> None:
    """Open the partitions of all data-parallel ranks; none at all may be right for stage 0."""
    optim = files.optim.get(rank.mp, {})
    folder = rank.head_path.parent
    if not optim:
        unsaved = rank.unsaved()
        if files.optim or rank.sharded or unsaved:
            raise PlanError(
                f"the optimizer states of mp_rank_{rank.mp:02d} are missing",
                where=folder,
                hint="copy the *_optim_states.pt files of every rank"
                + ("" if rank.sharded or unsaved else ", or take the 16-bit weights (--weights model)"),
            )
        return
    first = _optimizer_state(optim[min(optim)])
    found = first.get("partition_count")
    counts = found if isinstance(found, list) else [found]
    # dp_world_size left sequence-parallel ranks out in some releases; the partitions count them.
    world = max([c for c in (*counts, rank.head.get("dp_world_size")) if isinstance(c, int)], default=0)
    count = world or max(optim) + 1
    missing = next((dp for dp in range(count) if dp not in optim), None)
    if missing is not None:
        raise PlanError(
            f"the optimizer states of data-parallel rank {missing} are missing "
            f"(mp_rank_{rank.mp:02d}, {len(optim)} of {count} ranks found)",
            where=folder,
            hint="copy the *_optim_states.pt files of every rank",
        )
    if max(optim) >= count:
        raise PlanError(
            f"{optim[max(optim)].name} is beyond the {count} data-parallel ranks of this save",
            where=folder,
            hint="files of another run share this folder; move them away",
        )
    for dp in range(count):
        rank.optim.append(_optimizer_state(optim[dp]))
        rank.optim_paths.append(optim[dp])


def _optimizer_state(path: Path) -> Dict:
    root = load(path)
    state = root.get("optimizer_state_dict")
    if not isinstance(state, dict):
        raise FormatError("no 'optimizer_state_dict' in the optimizer states", where=path)
    for key in ("param_shapes", "ds_version"):  # shapes are here from 0.3.14 to 0.5.x
        if key in root and key not in state:
            state[key] = root[key]
    return state


def _open_fragments(rank: ModelRank, model: Mapping[int, Path]) -> None:
    """Check the other ranks' model states of stage 3, and take their slices of the frozen parameters."""
    count = len(rank.optim) or int(rank.head.get("dp_world_size") or 0) or max(model) + 1
    for dp in range(count):
        if dp not in model:
            raise PlanError(
                f"the model states of data-parallel rank {dp} are missing "
                f"(mp_rank_{rank.mp:02d}, {len(model)} of {count} ranks found)",
                where=rank.head_path.parent,
                hint="copy the zero_pp_rank_*_model_states.pt files of every rank",
            )
    if not as_dict(rank.head.get("frozen_param_shapes")):
        return  # the other ranks hold nothing but placeholders
    for dp in range(count):
        head = rank.head if dp == 0 else load(model[dp])
        if head.get("global_steps") != rank.head.get("global_steps"):
            raise PlanError(
                f"data-parallel rank {dp} was saved at step {head.get('global_steps')}, "
                f"rank 0 at step {rank.head.get('global_steps')}",
                where=model[dp],
                hint="the files are of different saves; copy one whole save",
            )
        rank.fragments.append(as_dict(head.get("frozen_param_fragments")))


def _same_step(ranks: list[ModelRank]) -> None:
    """Compare the steps the ranks' files name: model states by number, optimizer states by what they hold."""
    first = ranks[0].head.get("global_steps")
    for rank in ranks[1:]:
        if rank.head.get("global_steps") != first:
            raise PlanError(
                f"mp_rank_{rank.mp:02d} was saved at step {rank.head.get('global_steps')}, "
                f"mp_rank_{ranks[0].mp:02d} at step {first}",
                where=rank.head_path,
                hint="the files are of different saves; copy one whole save",
            )


def steps_of(state: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the step counters of a rank's torch optimizer: ints, or tensors that hold one."""
    inner = state.get("optimizer_state_dict", state.get("base_optimizer_state"))
    for entry in as_dict(as_dict(inner).get("state")).values():
        if "step" in as_dict(entry):
            yield entry["step"]


def _check_ranks(ranks: list[ModelRank]) -> None:
    """Check that all model-parallel ranks are there: the file says how many they were."""
    found = {rank.mp for rank in ranks}
    world = ranks[0].head.get("mp_world_size")
    count = max([max(found) + 1, *([world] if isinstance(world, int) else [])])
    missing = next((rank for rank in range(count) if rank not in found), None)
    if missing is not None:
        raise PlanError(
            f"model-parallel rank {missing} is missing "
            f"(mp_rank_{missing:02d}, {len(found)} of {count} ranks found)",
            where=ranks[0].head_path.parent,
            hint="copy the files of every rank",
        )
