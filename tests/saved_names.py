#!/usr/bin/env python3
"""Take down what names transformers writes, from the release that is installed.

    python tests/saved_names.py          writes ckptconv/families/saved/transformers.json
    python tests/saved_names.py --check  says what differs, exit 1 if something does

transformers lists, by class or by ``model_type``, how names and tensors of files become those of a model
(``conversion_mapping.py``), and looks every model inside a model up in it as well. So beside the list goes
which models a class is made of: every class of the auto mappings is built once, without memory, in three
minutes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.update(TRANSFORMERS_VERBOSITY="critical", HF_HUB_OFFLINE="1")

import torch
import transformers
from transformers import conversion_mapping, core_model_loading
from transformers.models.auto import modeling_auto

FILE = Path(__file__).parents[1] / "ckptconv" / "families" / "saved" / "transformers.json"
LEGACY = "legacy"  # names older than transformers 4: read, never written
Json = dict[str, Any]


def operation(op: Any) -> list[Any]:
    """Return an operation as its name, and its attributes where they are not the defaults."""
    plain = {k: v for k, v in vars(op).items() if isinstance(v, int | str | list | tuple | None)}
    try:
        default: Json = vars(type(op)())
    except TypeError:
        default = {}
    said = {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in plain.items()
        if k not in default or default[k] != v
    }
    return [type(op).__name__, said] if said else [type(op).__name__]


def rule(transform: Any) -> Json:
    """Return a transform as data, with its patterns as they were written."""
    if isinstance(transform, core_model_loading.PrefixChange):
        words = {
            "add": transform.prefix_to_add,
            "remove": transform.prefix_to_remove,
            "in": transform.model_prefix,
        }
        return {"prefix": {k: v for k, v in words.items() if v}}
    found: Json = {"from": transform._original_source_patterns, "to": transform._original_target_patterns}
    if isinstance(transform, core_model_loading.WeightConverter):
        found["ops"] = [operation(op) for op in transform.operations]
    elif isinstance(transform, core_model_loading.GroupWeightRename):
        found["group"] = True
    elif isinstance(transform, core_model_loading.Inkling2IndexOffsetWeightRename):
        found["offset"] = transform.offset
    elif type(transform) is not core_model_loading.WeightRenaming:
        raise TypeError(f"{type(transform).__name__}: a transform this script does not know")
    return found


def listed() -> tuple[dict[str, list[Json]], dict[str, str]]:
    """Return the rules by class or model type, and the names whose rules are another's."""
    mapping = conversion_mapping._build_checkpoint_conversion_mapping()
    made = {name: [rule(t) for t in transforms] for name, transforms in mapping.items() if name != LEGACY}
    rules: dict[str, list[Json]] = {}
    like: dict[str, str] = {}
    firsts: dict[str, str] = {}
    base = conversion_mapping._MODEL_TO_CONVERSION_PATTERN
    for name in sorted(made, key=lambda n: (n in base, n)):
        first = firsts.setdefault(json.dumps(made[name]), name)
        if first == name:
            rules[name] = made[name]
        else:
            like[name] = first
    return rules, like


def mapped(mapping: Any) -> dict[str, str]:
    """Return a class for each model type of an auto mapping."""
    return {k: v if isinstance(v, str) else v[0] for k, v in mapping.items()}


AUTO = {
    "AutoModel": mapped(modeling_auto.MODEL_MAPPING_NAMES),
    "AutoModelForCausalLM": mapped(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "AutoModelForImageTextToText": mapped(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    "AutoBackbone": mapped(modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES),
}


def classes() -> list[str]:
    """Return the names of all models."""
    maps = [
        v for k, v in vars(modeling_auto).items() if k.startswith("MODEL") and k.endswith("MAPPING_NAMES")
    ]
    names = {n for m in maps for found in m.values() for n in ([found] if isinstance(found, str) else found)}
    inner = {name for name in listed()[0] if name[0].isupper()}
    return sorted(n for n in names | inner if hasattr(transformers, n))


# What some configs leave open and their models cannot be built without.
OPEN = dict(
    head_dim=16, num_key_value_heads=2, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16,
    indexer_budget=64, indexer_compress_ratio=4, prediction_length=8, shared_expert_intermediate_size=16,
)  # fmt: skip


# What the defaults of some have wrong, by the config's class.
WRONG: dict[str, Json] = {
    "AyaVisionConfig": {"vision_config.num_attention_heads": 16},
    "DbrxConfig": {"attn_config.rope_theta": 10000.0},
    "Qwen3OmniMoeConfig": {"enable_audio_output": False},
}


def completed(config: Any) -> Any:
    """Set what a config and its parts leave open."""
    for name, value in OPEN.items():
        if getattr(config, name, None) is None:
            setattr(config, name, value)
    for name in getattr(config, "sub_configs", {}):
        if (part := getattr(config, name, None)) is not None:
            completed(part)
    return config


def righted(config: Any) -> Any:
    """Set what the defaults have wrong."""
    for path, value in WRONG.get(type(config).__name__, {}).items():
        *parts, name = path.split(".")
        setattr(functools.reduce(getattr, parts, config), name, value)
    return config


def built(name: str) -> Any:
    """Build a model of a class, without memory; None if that does not work here."""
    made = getattr(transformers, name)
    for finish in (righted, completed):
        try:
            with torch.device("meta"):
                return made._from_config(finish(made.config_class()))
        except Exception as e:
            said = f"{type(e).__name__}: {' '.join(str(e).split())[:100]}"
    print(f"{name} is not built: {said}", file=sys.stderr)
    return None


def part_of(config: Any, child: Any) -> tuple[str | None, bool]:
    """Return the field of a config that is a child's, '' for itself; and whether any type may be there."""
    if child is config:
        return "", False
    parts = getattr(config, "sub_configs", {})
    here = {name: part for name in parts if (part := getattr(config, name, None)) is not None}
    same = [n for n, part in here.items() if part is child] + [
        n for n, part in here.items() if type(part) is type(child)
    ]
    if same:
        return same[0], parts[same[0]] is transformers.AutoConfig
    for name, part in here.items():
        inside, auto = part_of(part, child)
        if inside is not None:
            return f"{name}.{inside}".rstrip("."), auto
    return None, False


def kind_of(name: str, model_type: str) -> str | None:
    """Return the auto class that makes this class for this model type."""
    return next((auto for auto, made in AUTO.items() if made.get(model_type) == name), None)


def children(model: Any) -> list[Json]:
    """Return the models right inside a model, in its order."""
    found: list[Json] = []
    inside: list[str] = []
    for path, module in model.named_modules():
        if path == "" or not isinstance(module, transformers.PreTrainedModel):
            continue
        if any(path.startswith(f"{p}.") for p in inside):
            continue
        inside.append(path)
        name, kind = type(module).__name__, module.config.model_type
        part, auto = part_of(model.config, module.config)
        made = kind_of(name, kind) if auto else None
        found.append({"at": path, "class": name, "type": kind, "part": part, "auto": made})
    return found


def trees() -> tuple[dict[str, Json], set[str]]:
    """Return prefix and inner models of every class, and the classes that can be built."""
    found: dict[str, Json] = {}
    waiting = classes()
    done: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in done or (model := built(name)) is None:
            continue
        done.add(name)
        found[name] = {"prefix": model.base_model_prefix, "parts": children(model)}
        inner = {type(m).__name__ for m in model.modules() if isinstance(m, transformers.PreTrainedModel)}
        waiting += sorted(n for n in inner - done if hasattr(transformers, n))
    return found, done


def parts_that_matter(name: str, tree: Json, names: set[str], kept: Json) -> list[Json]:
    """Keep of a class the models inside it where a rule can apply that is not the class's own."""
    return [
        p
        for p in tree["parts"]
        if p["class"] in names
        or p["class"] in kept
        or p["auto"]
        or (p["type"] in names and (p["part"] != "" or name in names))
    ]


def matters(found: dict[str, Json], names: set[str]) -> dict[str, Json]:
    """Keep the classes, and of them the parts, where a rule can apply."""
    kept: dict[str, Json] = {}
    while True:
        here = {
            name: {"prefix": tree["prefix"], "parts": parts}
            for name, tree in found.items()
            if (parts := parts_that_matter(name, tree, names, kept))
        }
        if here == kept:
            return kept
        kept = here


def heads() -> dict[str, str]:
    """Return for each model type the class that is meant where config.json names none."""
    found: dict[str, str] = {}
    for mapping in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
        modeling_auto.MODEL_MAPPING_NAMES,
    ):
        found = {**mapped(mapping), **found}
    return found


def taken_down() -> Json:
    """Return all of the file."""
    rules, like = listed()
    names = {*rules, *like}
    found, _ = trees()
    kept = matters(found, names)
    known = names | kept.keys()
    auto = {kind: {t: c for t, c in made.items() if c in known} for kind, made in AUTO.items()}
    return {
        "transformers": transformers.__version__,
        "rules": rules,
        "like": like,
        "classes": {
            n: {"prefix": t["prefix"], "parts": [list(p.values()) for p in t["parts"]]}
            for n, t in kept.items()
        },
        "auto": auto,
        "types": {c: t for t, c in heads().items() if t in names},
        "heads": {t: c for t, c in heads().items() if c in known},
    }


def text_of(value: Json) -> str:
    """Write a line for each rule, so that a new release is read as a difference."""

    def block(items: dict[str, Any]) -> str:
        lines = []
        for name, item in sorted(items.items()):
            if isinstance(item, list) and item and isinstance(item[0], dict):
                inner = ",\n".join(f"   {json.dumps(i)}" for i in item)
                lines.append(f"  {json.dumps(name)}: [\n{inner}]")
            else:
                lines.append(f"  {json.dumps(name)}: {json.dumps(item)}")
        return "{\n" + ",\n".join(lines) + "}"

    parts = [
        f" {json.dumps(name)}: {block(part) if isinstance(part, dict) else json.dumps(part)}"
        for name, part in value.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare the file with the installed release")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    text = text_of(taken_down())
    if not options.check:
        FILE.write_text(text, encoding="utf-8")
        return 0
    old, new = json.loads(FILE.read_text(encoding="utf-8")), json.loads(text)
    differ = [
        f"{part}: {name}"
        for part in new
        if isinstance(new[part], dict)
        for name in sorted({*old[part], *new[part]})
        if old[part].get(name) != new[part].get(name)
    ]
    print("\n".join(differ) or "nothing differs")
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main())
