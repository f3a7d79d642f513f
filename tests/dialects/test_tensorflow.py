"""Every class of transformers that had a TensorFlow form is named as its torch class names it."""

from __future__ import annotations

import pytest

from ckptconv.dialects.tensorflow.classes import class_of, scope_of
from ckptconv.dialects.tensorflow.inverse import variables_for
from ckptconv.dialects.tensorflow.names import stripped, torch_variable, unscoped
from ckptconv.dialects.tensorflow.saver import saved_variables
from ckptconv.dialects.tensorflow.special import Model, settle
from ckptconv.errors import FormatError, PlanError
from tensorflow_models import class_names

# The TF classes of these build only a part of what the torch classes have.
PARTIAL = {"IdeficsModel", "IdeficsForVisionText2Text", "Data2VecVisionForSemanticSegmentation"}
# Statistics TensorFlow does not keep.
COUNTER = ".num_batches_tracked"


@pytest.mark.parametrize("name", sorted(class_names()))
def test_every_class_has_the_names_and_shapes_of_torch(name: str) -> None:
    case = class_names()[name]
    rows = {unscoped(n): torch_variable(unscoped(n), tuple(shape)) for n, shape in case["tf"]}
    if name in PARTIAL:
        with pytest.raises(PlanError, match="did not save"):
            settle(rows, Model(case["model_type"], name))
        return
    written, left = settle(rows, Model(case["model_type"], name))
    found = {v.name: list(v.shape) for v in written.values()}
    wanted = {n: s for n, s in case["torch"].items() if not n.endswith(COUNTER)}
    assert found == wanted
    assert len(written) == len(found)
    assert all(item.copy_of is None or item.copy_of in found for item in left.values())


@pytest.mark.parametrize("name", sorted(class_names()))
def test_the_scope_of_the_variables_tells_the_class(name: str) -> None:
    scopes = {n.partition("/")[0] for n, _ in class_names()[name]["tf"] if n.startswith("tf")}
    assert {class_of(s) for s in scopes} == {(class_names()[name]["model_type"], name)}
    assert class_of(f"{scope_of(name)}_3")[1] == name


@pytest.mark.parametrize(
    "name, bare",
    [
        ("model.shared/model.shared/embeddings:0", "model.shared/embeddings:0"),
        ("bert/encoder/layer_._0/output/dense/kernel:0", "bert/encoder/layer_._0/output/dense/kernel:0"),
        ("final_logits_bias:0", "final_logits_bias:0"),
    ],
)
def test_the_scope_that_safetensors_keep_is_taken_off(name: str, bare: str) -> None:
    assert stripped(name) == bare


@pytest.mark.parametrize(
    "name",
    ["", "/", "a b/kernel:0", "bert/\x1b[2J/kernel:0", "\u202ebert/kernel:0", "x" * 2000, "../../kernel:0"],
)
def test_names_that_tensorflow_does_not_give_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match="not a name TensorFlow gives"):
        torch_variable(name, (2, 3))


def test_a_kernel_no_rule_turns_is_refused() -> None:
    with pytest.raises(FormatError, match="5 dimensions"):
        torch_variable("a/kernel:0", (1, 2, 3, 4, 5))


def test_heads_of_googles_own_scripts() -> None:
    body = {"bert/pooler/dense/kernel": (4, 4), "bert/embeddings/word_embeddings": (7, 4)}
    written, left, model = saved_variables(
        {**body, "output_weights": (3, 4), "output_bias": (3,), "global_step": ()}, "bert", ""
    )
    assert model.architecture == "BertForSequenceClassification"
    assert {v.name: v.shape for v in written.values()} == {
        "bert.pooler.dense.weight": (4, 4),
        "bert.embeddings.word_embeddings.weight": (7, 4),
        "classifier.weight": (3, 4),
        "classifier.bias": (3,),
    }
    assert list(left) == ["global_step"]
    written, left, model = saved_variables(
        {**body, "cls/squad/output_weights": (2, 4), "cls/squad/output_bias": (2,)}, "bert", ""
    )
    assert model.architecture == "BertForQuestionAnswering"
    assert {v.name for v in written.values()} == {
        "bert.embeddings.word_embeddings.weight", "qa_outputs.weight", "qa_outputs.bias"
    }  # fmt: skip
    assert "pooler" in left["bert/pooler/dense/kernel"].why


def test_a_model_without_a_head_loses_its_own_level() -> None:
    written, _, model = saved_variables({"bert/embeddings/word_embeddings": (7, 4)}, "bert", "")
    assert model.architecture == "BertModel"
    assert [v.name for v in written.values()] == ["embeddings.word_embeddings.weight"]


def test_a_variable_of_no_known_model_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match="loss/my_head"):
        saved_variables({"bert/embeddings/word_embeddings": (7, 4), "loss/my_head": (2,)}, "bert", "")


@pytest.mark.parametrize("name", sorted(set(class_names()) - PARTIAL))
def test_every_class_is_written_with_the_variables_it_saves(name: str) -> None:
    case = class_names()[name]
    model = Model(case["model_type"], name)
    placements, homeless = variables_for(model, {n: tuple(s) for n, s in case["torch"].items()})
    found = {p.name: list(p.shape) for p in placements}
    wanted = dict(case["tf"])
    extra = {n: s for n, s in found.items() if wanted.get(n) != s}
    lacking = {n for n in wanted if n not in found}
    assert not extra
    # What torch has not: a pooler nobody reads, sinusoids, indices of 32 bits.
    unread = ("mpnet/pooler", "embed_positions", "relative_position_index", "attention_bias_idxs")
    assert all(any(word in n for word in unread) for n in lacking), lacking
    counted = (COUNTER, "position_ids", "relative_position_index", "attention_bias_idxs")
    assert all(n.endswith(counted) for n in homeless), homeless


def test_a_class_without_a_tensorflow_form_is_named() -> None:
    with pytest.raises(PlanError, match="LlamaForCausalLM had no TensorFlow form"):
        variables_for(Model("llama", "LlamaForCausalLM"), {"lm_head.weight": (2, 3)})
    with pytest.raises(PlanError, match="BertForPreTraining"):
        variables_for(Model("bert", "BertForDancing"), {})
