"""What a model holds in memory is written under the names, and in the form, ``save_pretrained`` gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ckptconv.errors import PlanError
from ckptconv.families.saved import RELEASE, UNDO, correction, has_prefixes, rules_for, saved
from ckptconv.families.saved.rules import Rule, rule_of
from ckptconv.relations import Spec

FILE = Path(__file__).parents[2] / "ckptconv" / "families" / "saved" / "transformers.json"
LIST = json.loads(FILE.read_text(encoding="utf-8"))
CORRECTIONS = json.loads(FILE.with_name("corrections.json").read_text(encoding="utf-8"))
Array = NDArray[np.int64]
installed = pytest.mark.skipif(
    version("transformers") != RELEASE, reason=f"the list is of transformers {RELEASE}"
)


def held(**shapes: tuple[int, ...]) -> dict[str, Array]:
    """Return tensors with a different value everywhere; ``__`` in a name is a dot."""
    found, first = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        found[name.replace("__", ".")] = np.arange(first, first + size).reshape(shape)
        first += size
    return found


def specs(tensors: Mapping[str, Array]) -> dict[str, Spec]:
    return {n: Spec(t.shape, "BF16") for n, t in tensors.items()}


def stored(config: dict[str, Any], tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return what is written of tensors."""
    made = saved(config, specs(tensors))
    if made is None:
        return dict(tensors)
    relation, _ = made
    relation.check()
    out = {n: np.full(s.shape, -1) for n, s in relation.right.items()}
    for pair in relation.pairs:
        size, lefts, rights = pair.aligned()
        here, there = tensors[pair.left.tensor].reshape(-1)[pair.left.offset :], out[pair.right.tensor]
        view = as_strided(there.reshape(-1)[pair.right.offset :], size, [8 * s for s in rights])
        view[...] = as_strided(here, size, [8 * s for s in lefts])
    return out


# The list


@installed
def test_the_list_is_that_of_the_installed_release() -> None:
    import saved_names

    rules, like = saved_names.listed()
    assert (LIST["transformers"], LIST["rules"], LIST["like"]) == (RELEASE, rules, like)


@installed
@pytest.mark.parametrize("name", ["LlavaForConditionalGeneration", "LlavaModel", "Qwen2MoeForCausalLM"])
def test_what_classes_are_made_of_is_what_transformers_builds(name: str) -> None:
    import saved_names

    model, names, kept = saved_names.built(name), {*LIST["rules"], *LIST["like"]}, LIST["classes"]
    tree = {"parts": saved_names.children(model)}
    parts = [list(p.values()) for p in saved_names.parts_that_matter(name, tree, names, kept)]
    assert parts == kept.get(name, {"parts": []})["parts"]
    assert kept.get(name, {"prefix": model.base_model_prefix})["prefix"] == model.base_model_prefix


def test_every_rule_of_the_list_is_understood() -> None:
    for name, rules in LIST["rules"].items():
        for said in rules:
            rule = rule_of(said, ("",))
            assert (rule.prefix is not None) == ("prefix" in said)
            for one in (rule, rule.reversed()):
                one.match("no name that any rule is about", set())  # its patterns compile
            assert {op for op, _ in rule.ops} <= UNDO.keys(), name
            assert not (rule.ops and r"\1" in "".join(rule.reversed().words)), name


def test_what_is_like_another_is_listed() -> None:
    assert set(LIST["like"].values()) <= LIST["rules"].keys()
    assert not LIST["like"].keys() & LIST["rules"].keys()


@pytest.mark.parametrize("kind", CORRECTIONS)
def test_a_correction_is_of_rules_that_are_listed_in_its_release(kind: str) -> None:
    said, rules = CORRECTIONS[kind], LIST["rules"][kind]
    at = rules.index(said["listed"][0])
    assert rules[at : at + len(said["listed"])] == said["listed"]
    assert said["release"] == RELEASE, "is it still wrong in this release?"
    assert said["reason"] and said["source"]
    assert correction({"model_type": kind}) == said["reason"]


# What is written


def test_experts_are_written_one_by_one() -> None:
    at = "model.layers.1.mlp"
    tensors = held(
        model__layers__1__mlp__experts__gate_up_proj=(3, 4, 5),
        model__layers__1__mlp__experts__down_proj=(3, 5, 2),
        model__layers__1__mlp__gate__weight=(3, 5),
    )
    fused, down = tensors[f"{at}.experts.gate_up_proj"], tensors[f"{at}.experts.down_proj"]
    written = stored({"model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"]}, tensors)
    expected = {f"{at}.gate.weight": tensors[f"{at}.gate.weight"]}
    for e in range(3):
        expected[f"{at}.experts.{e}.gate_proj.weight"] = fused[e, :2]
        expected[f"{at}.experts.{e}.up_proj.weight"] = fused[e, 2:]
        expected[f"{at}.experts.{e}.down_proj.weight"] = down[e]
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[n], expected[n]) for n in expected)


def test_a_model_inside_a_model_has_the_names_of_both() -> None:
    config = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {"model_type": "mixtral"},
        "vision_config": {"model_type": "clip_vision_model"},
    }
    tensors = held(
        lm_head__weight=(2, 2),
        model__language_model__layers__0__mlp__gate__weight=(2, 2),
        model__language_model__layers__0__mlp__experts__down_proj=(2, 2, 3),
        model__vision_tower__encoder__layers__0__mlp__fc1__weight=(2, 2),
    )
    assert stored(config, tensors).keys() == {
        "language_model.lm_head.weight",
        "language_model.model.layers.0.block_sparse_moe.gate.weight",
        "language_model.model.layers.0.block_sparse_moe.experts.0.w2.weight",
        "language_model.model.layers.0.block_sparse_moe.experts.1.w2.weight",
        "vision_tower.encoder.layers.0.mlp.fc1.weight",
    }


def test_a_prefix_is_that_of_the_files_training_began_with() -> None:
    config = {"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}}
    held = {
        f"model.{n}": Spec((2, 2), "F32") for n in ("vision_tower.encoder.w", "language_model.norm.weight")
    }
    for like, name in (
        (
            ["vision_tower.vision_model.encoder.w", "language_model.lm_head.weight"],
            "vision_tower.vision_model.",
        ),
        (["vision_tower.encoder.w"], "vision_tower."),
        ([], "vision_tower."),
    ):
        made = saved(config, held, like=like)
        assert made is not None
        assert made[0].right.keys() == {f"{name}encoder.w", "language_model.model.norm.weight"}
    assert has_prefixes(config)
    assert not has_prefixes({"model_type": "qwen3_moe"})


def test_without_a_class_the_type_says_which_model_it_is() -> None:
    tensors = held(model__language_model__norm__weight=(2,), lm_head__weight=(2, 2))
    assert stored({"model_type": "llava"}, tensors).keys() == {
        "language_model.model.norm.weight",
        "language_model.lm_head.weight",
    }


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("LlavaForConditionalGeneration", [f"language_model.{n}.weight" for n in ("model.norm", "lm_head")]),
        ("MixtralForCausalLM", ["model.layers.0.block_sparse_moe.experts.0.w1.weight", "lm_head.weight"]),
        ("KimiK25ForConditionalGeneration", [f"vision_tower.encoder.blocks.0.norm{i}.bias" for i in (0, 1)]),
        ("LlamaForCausalLM", ["model.norm.weight"]),
    ],
)  # fmt: skip
def test_names_of_files_are_left(kind: str, names: list[str]) -> None:
    types = {"LlavaForConditionalGeneration": "llava", "KimiK25ForConditionalGeneration": "kimi_k25"}
    config = {
        "model_type": types.get(kind, kind.removesuffix("ForCausalLM").lower()),
        "architectures": [kind],
    }
    assert saved(config, {n: Spec((2, 2), "F32") for n in names}) is None


def test_names_without_data_are_named_alike() -> None:
    config = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    made = saved(
        config, {"model.language_model.embed_tokens.weight": Spec((2, 2), "F32")}, ["lm_head.weight"]
    )
    assert made is not None
    assert made[1]["lm_head.weight"] == "language_model.lm_head.weight"


def test_rows_of_each_head_are_turned_as_they_were_published() -> None:
    config = {"model_type": "kimi_k25", "vision_config": {"num_attention_heads": 2}}
    at = "model.vision_tower.layers.0.attn"
    tensors = held(**{f"{at}.{part}_proj.weight".replace(".", "__"): (8, 1) for part in "qkv"})
    fused = stored(config, tensors)["vision_tower.encoder.blocks.0.wqkv.weight"]
    turned = [0, 2, 1, 3, 4, 6, 5, 7]
    parts = [tensors[f"{at}.{part}_proj.weight"] for part in "qkv"]
    assert np.array_equal(fused, np.concatenate([parts[0][turned], parts[1][turned], parts[2]]))


_KIMI = {  # in memory; as published; as transformers 5.23 saves them
    "model.language_model.layers.1.mlp.up_proj.weight": (
        "language_model.model.layers.1.mlp.up_proj.weight",
        "language_model.model.blocks.1.mlp.up_proj.weight",
    ),
    "model.vision_tower.layers.0.norm1.weight": ("vision_tower.encoder.blocks.0.norm0.weight",) * 2,
    "model.vision_tower.final_layernorm.bias": ("vision_tower.encoder.final_layernorm.bias",) * 2,
    "model.vision_tower.patch_embed.proj.weight": (
        "vision_tower.patch_embed.proj.weight",
        "vision_tower.encoder.patch_embed.proj.weight",
    ),
    "model.mm_projector.pre_norm.weight": (
        "mm_projector.pre_norm.weight",
        "model.mm_projector.pre_norm.weight",
    ),
    "model.mm_projector.in_proj.bias": ("mm_projector.proj.0.bias",) * 2,
    "lm_head.weight": ("language_model.lm_head.weight",) * 2,
}  # fmt: skip


def test_what_a_release_has_wrong_is_written_as_published() -> None:
    published = {name for name, _ in _KIMI.values()}
    for names in (_KIMI, [erring for _, erring in _KIMI.values()]):
        made = saved({"model_type": "kimi_k25"}, {n: Spec((2, 2), "F32") for n in names})
        assert made is not None and made[0].right.keys() == published
    assert saved({"model_type": "kimi_k25"}, {n: Spec((2, 2), "F32") for n in published}) is None


def test_shapes_that_do_not_fit_are_refused_by_name() -> None:
    config = {"model_type": "kimi_k25", "vision_config": {"num_attention_heads": 3}}
    at = "model.vision_tower.layers.0.attn"
    with pytest.raises(PlanError, match=r"layers\.0\.attn\.q_proj.*no 3 heads"):
        saved(config, {f"{at}.{part}_proj.weight": Spec((8, 1), "F32") for part in "qkv"})


def test_two_tensors_of_one_name_are_refused() -> None:
    config = {"model_type": "mixtral"}
    names = [
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.1.mlp.gate.weight",
    ]
    with pytest.raises(PlanError, match=r"two tensors would be saved as model\.layers\.0\.block_sparse_moe"):
        saved(config, {n: Spec((2, 2), "F32") for n in names})


def test_unknown_types_are_left() -> None:
    assert rules_for({"model_type": "mine"}) == []
    assert rules_for({}) == []
    assert saved({}, {"a": Spec((1,), "F32")}) is None


def test_a_group_applies_only_where_its_first_name_is() -> None:
    rule = Rule((r"norm0", r"norm1"), ("norm1", "norm2"), group=True)
    active: set[int] = set()
    assert rule.match("a.norm1", active) is None
    first = rule.match("a.norm0", active)
    second = rule.match("a.norm1", active)
    assert first is not None and second is not None
    assert (first.name, second.name) == ("a.norm1", "a.norm2")
