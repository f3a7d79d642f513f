"""Training arguments are read as simple values, without the classes they were made of."""

from __future__ import annotations

import argparse
import enum
import pickle
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from ckptconv.containers.torch import inert
from ckptconv.containers.torch.inert import Global, Record
from ckptconv.containers.torch.namespaces import EnumValue, namespace, plain
from ckptconv.errors import FormatError


class Backend(enum.Enum):
    flash = 3
    named = "unfused"


class Level(enum.IntEnum):
    low = 1


def read(value: object, protocol: int = 2) -> object:
    return plain(inert.load(pickle.dumps(value, protocol)))


@pytest.mark.parametrize("protocol", range(6))
def test_arguments_become_simple_values(protocol: int) -> None:
    args = argparse.Namespace(
        tp=2, lr=1e-5, name="x", flag=False, none=None, sizes=[1, (2.5, "a")], more={"k": [torch.float32]},
        params_dtype=torch.bfloat16, backend=Backend.flash, other=Backend.named, level=Level.low,
        inner=types.SimpleNamespace(a=torch.float16), ordered=OrderedDict(b=1),
    )  # fmt: skip
    found = read(args, protocol)
    assert found == {
        "tp": 2, "lr": 1e-5, "name": "x", "flag": False, "none": None, "sizes": [1, (2.5, "a")],
        "more": {"k": ["float32"]}, "params_dtype": "bfloat16",
        "backend": EnumValue(f"{__name__}.Backend", 3),
        "other": EnumValue(f"{__name__}.Backend", "unfused"),
        "level": EnumValue(f"{__name__}.Level", 1),
        "inner": {"a": "float16"}, "ordered": {"b": 1},
    }  # fmt: skip
    assert type(found["flag"]) is bool
    assert type(found["tp"]) is int


def test_other_objects_are_left_as_they_are() -> None:
    args = argparse.Namespace(device=torch.device("cpu"), path=Path("a"), array=np.arange(2), cls=Backend)
    found = read(args)
    kinds = {k: type(v) for k, v in found.items()}
    assert kinds == {"device": Record, "path": Record, "array": Record, "cls": Global}


def test_a_namespace_round_trips() -> None:
    values = {"tp": 2, "sizes": [1]}
    assert plain(namespace(values)) == values
    assert plain(namespace({})) == {}
    assert read(argparse.Namespace()) == {}


def test_values_that_are_no_namespace() -> None:
    assert plain({"a": [Global("torch", "int8")]}) == {"a": ["int8"]}
    assert plain(Global("other", "int8")) == Global("other", "int8")
    assert plain(7) == 7


def test_shared_values_are_walked_once_and_cycles_refused() -> None:
    shared: object = [1]
    for _ in range(80):
        shared = [shared, shared]
    found = plain(namespace({"a": shared}))
    assert found["a"][0] is found["a"][1]
    cycle: list[object] = []
    cycle += [cycle, cycle]
    with pytest.raises(FormatError, match="hold themselves"):
        plain(cycle)
    deep: object = 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(FormatError, match="100 levels"):
        plain(deep)
