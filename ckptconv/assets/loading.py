"""Ask transformers which names a model has, without its weights: on the meta device, in a process of its own.

The names are those of the release that is installed. The process is apart so that nothing heavy is loaded
here, and what a config makes transformers do ends with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final

from ckptconv.records import dataclass

__all__ = ["Loading", "ask", "load_on_meta"]

_SECONDS: Final = 120

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Loading:
    """Say how names and shapes would load.

    Attributes:
        parameters: How many parameters the model has.
        missing: Those that would be random.
        unexpected: Names it would not use.
        mismatched: Names whose shape is not the parameter's.
    """

    parameters: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


def ask(config: Mapping[str, Any], variants: Sequence[Shapes]) -> list[Loading] | None:
    """Return how each of several namings of tensors would load into the model of a config.

    Returns:
        One for each variant; None where transformers is not installed, or does not have the model.
    """
    if config.get("auto_map") or config.get("quantization_config") or not config.get("model_type"):
        return None
    if find_spec("transformers") is None or find_spec("torch") is None:
        return None
    if not _is_proportionate(config, max(map(len, variants), default=0)):
        return None
    asked = {"config": dict(config), "variants": [{n: list(s) for n, s in v.items()} for v in variants]}
    try:
        ran = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(asked).encode(),
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
        said = json.loads(ran.stdout.splitlines()[-1])
        return [Loading(one["parameters"], *(tuple(one[k]) for k in _KINDS)) for one in said]
    except (OSError, ValueError, LookupError, TypeError, subprocess.SubprocessError):
        return None


def _is_proportionate(config: Mapping[str, Any], tensors: int) -> bool:
    """Whether a config asks for no more layers and experts than tensors are there to fill them."""
    from ckptconv.errors import FormatError, PlanError  # not where a process of its own asks transformers
    from ckptconv.facts.typed import typed_config
    from ckptconv.families import dims

    for part in (config, *(v for v in config.values() if isinstance(v, Mapping))):
        try:
            sizes = dims(typed_config(part, None))
        except FormatError:  # what its keys hold is for transformers to judge
            continue
        except PlanError:
            return False
        if max(sizes.get("layers", 0), sizes.get("experts", 0)) > tensors:
            return False
    return True


_KINDS: Final = ("missing", "unexpected", "mismatched")


def load_on_meta(config: Mapping[str, Any], variants: Sequence[Shapes]) -> list[dict[str, Any]]:
    """Match names and shapes with a model on the meta device, in this process; it imports transformers.

    What ``from_pretrained`` does, with tensors that have a shape and no data (transformers 5.23,
    ``modeling_utils.py``, ``_load_pretrained_model``; ``core_model_loading.py``).
    """
    import torch
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    values = {k: _floats(v) for k, v in config.items() if k not in ("dtype", "torch_dtype")}
    known = transformers.CONFIG_MAPPING[values["model_type"]].from_dict(values)
    names = values.get("architectures") or []
    made = getattr(transformers, names[0]) if names else transformers.AutoModelForCausalLM.from_config
    found = []
    for shapes in variants:
        with torch.device("meta"):
            model = made(known)
            tensors = {n: torch.empty(tuple(s)) for n, s in shapes.items()}
            how = LoadStateDictConfig(
                device_map={"": "meta"},
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                weight_mapping=get_model_conversion_mapping(model),
            )
            info, _ = convert_and_load_state_dict_in_model(model, tensors, how, None)
            model._adjust_missing_and_unexpected_keys(info)
        own = {*getattr(model, "all_tied_weights_keys", {}), *(n for n, _ in model.named_buffers())}
        wrong = [k[0] if isinstance(k, tuple) else k for k in info.mismatched_keys]
        found.append(
            {
                "parameters": sum(1 for _ in model.named_parameters()),
                "missing": sorted(set(info.missing_keys) - own),
                "unexpected": sorted(set(info.unexpected_keys) - own),
                "mismatched": sorted(wrong),
            }
        )
    return found


def _floats(value: Any) -> Any:
    """Read what JSON has no number for, as transformers writes it (5.23, ``configuration_utils.py``)."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"} and isinstance(value["__float__"], str):
            return float(value["__float__"])
        return {k: _floats(v) for k, v in value.items()}
    return [_floats(v) for v in value] if isinstance(value, list) else value


def _main() -> None:
    asked = json.load(sys.stdin)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    found = load_on_meta(asked["config"], asked["variants"])
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    _main()
