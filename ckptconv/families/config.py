"""Build config.json from facts, and read the facts a config.json states."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ckptconv.errors import PlanError
from ckptconv.facts.computing import ARGUMENTS
from ckptconv.facts.value import Fact, Facts, computed
from ckptconv.families import Config, Family
from ckptconv.families.derived import DERIVED, known
from ckptconv.families.template import Template, usual

__all__ = [
    "against",
    "beside",
    "config_from",
    "consumed",
    "contradictions",
    "facts_of",
    "flat",
    "same",
    "template_of",
    "unconsumed",
    "unspoken",
]

# Of a family that does not say what its config.json states: all of it goes along with arguments.
_SILENT = Template("", {})
_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "pad"}
# What every config says of rotary embedding, whatever its family calls it.
_ROTARY = {
    "rope_theta": "rope_theta",
    "rope_scaling": "rope_scaling",
    "partial_rotary_factor": "partial_rotary",
}
# Fields that hold what others held in transformers 4.
_TOGETHER = {"rope_parameters": ("rope_theta", "rope_scaling", "partial_rotary_factor")}
# Fields that say nothing of the model, or are said for every family.
_NOTHING = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate")
# What the shapes of the weights tell, so that arguments that say otherwise are found by them.
_SHAPES = (
    *("vocab", "padded_vocab", "hidden", "layers", "inner", "experts", "expert_inner", "shared_inner"),
    *("q_rank", "kv_rank", "mtp", "positions", "linear_bias", "qkv_bias", "o_bias", "qk_norm", "embed_norm"),
    *("post_norm", "router_bias", "shared_gate", "tied", "dtype", "output_gate", "sinks"),
    "router_linear_bias",
)


def template_of(family: Family) -> Template:
    """Return the family's template.

    Raises:
        PlanError: if it has none.
    """
    if family.template is None:
        raise PlanError(
            f"no config.json can be built for the family {family.name}", hint="give the model's with --config"
        )
    return family.template


def config_from(facts: Facts, family: Family) -> tuple[dict[str, Any], dict[str, str]]:
    """Build a config.json.

    Rotary embedding and dtype are written under the keys every release of transformers reads
    (``rope_theta``, ``rope_scaling``, ``torch_dtype``).

    Args:
        facts: What is known of the model.
        family: Its architecture.

    Returns:
        The config, and for every key where its value came from.

    Raises:
        PlanError: if the architecture needs a value that is not known, or cannot say what the facts say.
    """
    given = _given(facts)
    if family.inside in given and family.language is not None:
        facts = {**facts, "hf_config": _with_language(facts, family.language, family.inside or "")}
        given = _given(facts)
    template = _SILENT if given and family.template is None else template_of(family)
    model_type = given.get("model_type", family.model_types[0])
    if why := against(facts, family, template) if not given else []:
        raise PlanError(
            f"this is no {family.name}: {'; '.join(why)}",
            hint="give another --family, or the model's config.json with --config",
        )
    values: dict[str, Any] = {"architectures": [template.architecture], "model_type": model_type}
    origins = dict.fromkeys(values, f"family {family.name}")
    lacking: list[str] = []
    for key, words in template.keys.items():
        found = _stated(facts, words, key) if key not in given else None
        if found is not None:
            values[key], origins[key] = found.value, found.origin
        elif key in given or any(key in keys and name in given for name, keys in _TOGETHER.items()):
            continue
        elif not words.endswith("?"):
            lacking.append(key)
        elif key in template.assumed:
            values[key], origins[key] = template.assumed[key], f"default of {model_type}"
    if lacking:
        raise PlanError(
            f"the arguments do not say {', '.join(lacking)} of config.json", hint=_hint(facts, lacking)
        )
    for key, literal in template.literals.items():
        values[key], origins[key] = literal, f"family {family.name}"
    for key, name in _IDS.items():
        fact = facts.get(name)
        # transformers' own defaults are those of one published model: none is better than a wrong one.
        values[key] = fact.value if fact else None
        origins[key] = fact.origin if fact else "not in the arguments"
    if (dtype := facts.get("dtype")) is not None:
        values["torch_dtype"], origins["torch_dtype"] = dtype.value, dtype.origin
    for name, keys in _TOGETHER.items():
        for key in keys if name in given else ():
            values.pop(key, None)
            origins.pop(key, None)
    return {**values, **given}, {**origins, **{key: f"{facts['hf_config'].origin}.{key}" for key in given}}


def _with_language(facts: Facts, family: Family, inside: str) -> Fact:
    """Return what goes along with arguments, with the language model's config complete."""
    found = facts["hf_config"]
    own = found.value[inside]
    if "num_hidden_layers" in own:
        return found
    said = {n: f for n, f in facts.items() if n not in ("hf_config", "model_type")}
    if why := against(said, family, template_of(family)):
        raise PlanError(
            f"its language model is no {family.name}: {'; '.join(why)}",
            hint="give the model's config.json with --config",
        )
    values, _ = config_from({**said, "hf_config": Fact(own, f"{found.origin}.{inside}")}, family)
    text = {k: v for k, v in values.items() if k != "architectures"}
    return Fact({**found.value, inside: text}, found.origin)


def _given(facts: Facts) -> Mapping[str, Any]:
    """Return what goes along with arguments of a config.json, for lack of words."""
    found = facts.get("hf_config")
    return found.value if found is not None else {}


def against(facts: Facts, family: Family, template: Template, stated: Collection[str] = ()) -> list[str]:
    """Say which facts are not what the family computes, or cannot be said in its config.json.

    Args:
        facts: What is known of the model.
        family: Its architecture.
        template: What its config.json states.
        stated: Keys of config.json that something beside the facts states.
    """
    fixed = {**template.fixed, **({"zero_centered": True} if family.zero_centered else {})}
    found = [
        f"{name} is {fact.value} ({fact.origin}), not {value}"
        for name, value in fixed.items()
        if (fact := known(facts, name)) is not None and not same(name, fact.value, value)
    ]
    found += unconsumed(template, facts)
    why = None if "head_dim" in stated else unspoken(template, facts)
    return [*found, why] if why else found


def beside(config: Config, facts: Facts, family: Family, gaps: Sequence[str]) -> dict[str, Any]:
    """Return what goes along with arguments because they have no word for it: ``hf_config``, or nothing.

    These are the fields of config.json that cannot be built from what the arguments say, and ``model_type``.

    Args:
        config: The content of config.json.
        facts: What the arguments say of the same model.
        family: Its architecture.
        gaps: What they cannot say, as far as is known.
    """
    if family.template is not None and not (gaps or family.template.carried):
        return {}
    return {"hf_config": _left_unsaid(config, facts, family)}


def _left_unsaid(config: Config, facts: Facts, family: Family) -> dict[str, Any]:
    plain, template = flat(config), family.template or _SILENT
    said: dict[str, Any] = {"architectures": [template.architecture], **template.literals}
    for key, words in template.keys.items():
        try:
            found = _stated(facts, words, key)
        except PlanError:  # they disagree, or follow from others in another way
            continue
        if found is not None:
            said[key] = found.value
    missing = object()
    equal = {
        key for key, value in said.items() if plain.get(key, template.assumed.get(key, missing)) == value
    }
    rest = {k: v for k, v in config.items() if k not in equal and k not in _NOTHING and k not in _TOGETHER}
    for name, keys in _TOGETHER.items():
        value = config.get(name)
        nested = isinstance(value, Mapping) and any(isinstance(part, Mapping) for part in value.values())
        if value is not None and (nested or not equal >= {key for key in keys if key in plain}):
            rest[name] = value
    return {**rest, "model_type": config.get("model_type")}


# What a model does not do unless something says so; the words of templates that have not all of Llama's.
_UNUSUAL: Mapping[str, Any] = {
    "window": None,
    "window_skip": None,
    "query_pre_attn_scalar": None,
    "attn_softcap": None,
    "logit_softcap": None,
    "activation_clamp": None,
    "gate_offset": 0.0,
    "sinks": False,
    "output_gate": False,
    "multipliers": False,
    "embed_scaled": False,
    **dict.fromkeys((a.names[0] for a in ARGUMENTS if not a.facts), None),
}
_STATED = {fact for a in ARGUMENTS for fact in a.facts}


def unconsumed(template: Template | None, facts: Facts) -> list[str]:
    """Say which facts change what a model computes, and are none that the architecture computes.

    Args:
        template: What its config states; None for only those that none can.
        facts: What is known of the model.
    """
    used = consumed(template) if template is not None else set(_STATED)
    return [
        f"{name} is {facts[name].value} ({facts[name].origin}), which it does not compute"
        for name, usual in _UNUSUAL.items()
        if name in facts and name not in used and facts[name].value != usual
    ]


def consumed(template: Template) -> set[str]:
    """Return the facts that a config states, or that its class computes in one way only."""
    words = {word for words in template.keys.values() for word in words.rstrip("?").split()}
    return {*template.fixed, *words, *(fact for word in words for fact in DERIVED.get(word, ((), None))[0])}


def unspoken(template: Template, facts: Facts) -> str | None:
    """Say what the facts are that the architecture's config has no key for, if there is such a thing."""
    hidden, heads, size = facts.get("hidden"), facts.get("heads"), facts.get("head_dim")
    if hidden is None or heads is None or size is None or "head_dim" in template.keys.values():
        return None
    if size.value * heads.value == hidden.value:
        return None
    return f"a head is {size.value} wide ({size.origin}), not {hidden.value} / {heads.value}"


def _hint(facts: Facts, lacking: list[str]) -> str:
    if all(key.endswith("vocab_size") for key in lacking):
        return "give the size of the vocabulary without padding with --vocab-size, or the model's --config"
    path = facts.get("hf_path")
    made = f"; the weights were converted from {path.value}" if path else ""
    return f"give the model's config.json with --config{made}"


def _stated(facts: Facts, words: str, key: str) -> Fact | None:
    """Return the value of the facts a key states; they must agree."""
    found = [(w, f) for w in words.rstrip("?").split() if (f := known(facts, w)) is not None]
    if not found:
        return None
    first = found[0][1]
    if any(f.value != first.value for _, f in found):
        said = ", ".join(f"{w} is {f.value} ({f.origin})" for w, f in found)
        raise PlanError(
            f"{key} cannot say both: {said}", hint="give another --family or the model's --config"
        )
    return Fact(first.value, ", ".join(dict.fromkeys(f.origin for _, f in found)))


def facts_of(config: Config, family: Family) -> dict[str, Fact]:
    """Return the facts a config.json states, in its keys or by its architecture.

    What a family without a template states is taken from the keys most decoders have, and from its slots.
    """
    template = family.template or usual({s for e in family.entries if not e.optional for s in e.slots})
    config = family.own(config)
    plain = flat(config)
    found = {k: Fact(v, f"family {family.name}") for k, v in template.fixed.items()}
    if family.zero_centered:
        found["zero_centered"] = Fact(True, f"family {family.name}")
    sizes = {k: v for k, v in family.dims(config).items() if k not in ("q_norm", "k_norm")}
    found |= {k: Fact(v, f"config.{k}") for k, v in sizes.items()}
    known_sizes = dict(found)
    for key, words in template.keys.items():
        value, origin = plain.get(key), f"config.{key}"
        if key not in plain:
            if key not in template.assumed:
                continue
            value, origin = template.assumed[key], f"default of {family.model_types[0]}"
        for word in words.rstrip("?").split():
            if word not in known_sizes or word in template.fixed:
                found[word] = Fact(value, origin)
    for key, name in _ROTARY.items():
        if key in plain and name not in found:
            found[name] = Fact(plain[key], f"config.{key}")
    latent = "kv_rank" in found
    if latent:
        found.pop("head_dim", None)
        found.setdefault("q_rank", Fact(None, "config.q_lora_rank"))
    layers = [words for layer, words in family.words(config).layers.items() if layer.startswith("layers.")]
    if any("gdn" in words for words in layers):
        found["delta_layers"] = Fact(["gdn" in words for words in layers], "config.layer_types")
    if found.get("experts") is not None and layers:
        every = ["moe" in words for words in layers]
        found["moe_layers"] = Fact(every, "config.first_k_dense_replace, config.mlp_only_layers")
    else:
        for name in ("expert_inner", "shared_inner"):
            found.pop(name, None)
    found |= _window(plain, found)
    if (none := found.get("no_bias")) is not None:
        found["linear_bias"] = Fact(not none.value, none.origin)
    if (rotary := found.get("rotary_layers")) is not None and isinstance(rotary.value, list):
        without = [int(not layer) for layer in rotary.value]
        found["no_rope_freq"] = Fact(without if any(without) else None, rotary.origin)
    if (ratio := found.get("rope_ratio")) is not None and ratio.value is not None:
        found["rope_theta"] = Fact(10000 * ratio.value, ratio.origin)
    if (turned := found.get("rotary_dim")) is not None and "head_dim" in found:
        found["partial_rotary"] = computed(turned.value / found["head_dim"].value, turned, found["head_dim"])
    for name in ("n_group", "topk_group"):
        if name in found and found[name].value is None:
            found[name] = Fact(1, found[name].origin)
    for key, name in _IDS.items():
        if isinstance(plain.get(key), int):
            found[name] = Fact(plain[key], f"config.{key}")
    if plain.get("torch_dtype"):
        found["dtype"] = Fact(str(plain["torch_dtype"]).removeprefix("torch."), "config.torch_dtype")
    return {name: fact for name, fact in found.items() if name not in DERIVED}


def _window(config: Config, found: Facts) -> dict[str, Fact]:
    """Return the sliding window, and which layers have it, where not all do."""
    on, window = found.get("has_window"), found.get("window")
    if window is None or window.value is None or (on is not None and not on.value):
        return {"window": Fact(None, on.origin)} if on is not None else {}
    kinds = config.get("layer_types")
    if not isinstance(kinds, list) and on is not None:
        first = config.get("max_window_layers")
        layers = found["layers"].value if "layers" in found else 0
        kinds = (
            [("full" if i < first else "sliding") for i in range(layers)] if isinstance(first, int) else None
        )
    if not isinstance(kinds, list):
        return {}
    full = [i + 1 for i, kind in enumerate(kinds) if not kind.startswith("sliding")]
    origin = "config.layer_types"
    if len(full) == len(kinds):
        return {"window": Fact(None, origin)}
    step = full[0] if full else None
    if step is None or full == list(range(step, len(kinds) + 1, step)):
        return {"window_skip": Fact(step, origin)}
    return {"window_skip": Fact([k.startswith("sliding") for k in kinds], origin)}


def flat(config: Config) -> dict[str, Any]:
    """Return a config with rotary embedding and dtype under the keys of transformers 4."""
    flat = dict(config)
    rope = flat.get("rope_parameters")
    if isinstance(rope, Mapping):
        left = dict(rope)
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in left:
                flat[key] = left.pop(key)
        flat["rope_scaling"] = left
    scaling = flat.get("rope_scaling")
    if isinstance(scaling, Mapping):
        left = dict(scaling)
        kind = left.pop("type", None)
        left.setdefault("rope_type", kind)
        flat["rope_scaling"] = None if left["rope_type"] in (None, "default") else left
    else:
        flat["rope_scaling"] = None
    flat["torch_dtype"] = flat.get("torch_dtype") or flat.get("dtype")
    return flat


def same(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a fact compute the same."""
    if name == "activation" and one in _TANH and other in _TANH:
        return True
    return bool(one == other)


def contradictions(facts: Facts, config: Config, family: Family) -> list[str]:
    """Say where arguments and a config.json disagree on what the shapes of weights cannot tell.

    Args:
        facts: What the arguments say.
        config: The content of the config.json.
        family: Its architecture.

    Returns:
        A message each, with both values and where they come from.
    """
    if family.template is None:
        return []
    said = facts_of(config, family)
    alone = set(_SHAPES)
    if given := _given(facts):  # what arguments cannot say, they say wrongly
        beside = {w for key, words in family.template.keys.items() if key in given for w in words.split()}
        alone |= (
            {w.rstrip("?") for w in beside} | family.template.fixed.keys() | {"rope_theta", "rope_scaling"}
        )
    return [
        f"{name}: {fact.origin} says {fact.value}, {said[name].origin} says {said[name].value}"
        for name, fact in facts.items()
        if name in said and name not in alone and not same(name, fact.value, said[name].value)
    ]
