"""Trees of any values are written as torch.save writes them, and read back as they were."""

from __future__ import annotations

import argparse
import enum
import io
import math
import pickletools
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch import inert
from ckptconv.containers.torch.inert import Global, Record
from ckptconv.containers.torch.namespaces import namespace
from ckptconv.containers.torch.torchbin import TensorRef, layout, layout_tree, seal
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.containers.torch.torchpickle import MAX_DEPTH, Alike, dump
from ckptconv.dtypes import BY_NAME
from ckptconv.errors import FormatError, PlanError


class ModelType(enum.Enum):
    encoder_or_decoder = 1


class Outer:
    class Inner:
        def __init__(self, a: int) -> None:
            self.a = a


class WithKeywords:
    def __new__(cls, *, size: int) -> WithKeywords:
        made = super().__new__(cls)
        made.size = size
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"size": self.size}


class Counted(dict[str, int]):
    pass


class Stack(list[int]):
    pass


class Setter:
    def __reduce__(self) -> tuple[Any, ...]:
        return Setter, (), {"a": 1}, None, None, set_state


def set_state(target: Setter, state: dict[str, int]) -> None:
    vars(target).update(state)


def ref(name: str, dtype: str = "float32", *shape: int) -> TensorRef:
    return TensorRef(name, BY_NAME[dtype], shape)


def write(root: object, path: Path, data: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """Write a tree with the data given by name, or random data; return the data."""
    plan = layout_tree(root)
    random = Random(0)
    if data is None:
        data = {p.name: random.randbytes(p.nbytes) for p in plan.tensors}
    out = bytearray(plan.size)
    pieces = [*plan.fixed, *((p.offset, data[p.name]) for p in plan.tensors)]
    for at, piece in (*pieces, *seal(plan, [crc32(data[p.name]) for p in plan.tensors])):
        out[at : at + len(piece)] = piece
    assert len(out) == plan.size
    path.write_bytes(out)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    return data


def pickle_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
        return archive.read(name)


def to_refs(value: Any, data: dict[str, bytes], done: dict[int, Any]) -> Any:
    """Replace located tensors by references, and copy containers with their sharing."""
    if id(value) in done:
        return done[id(value)][1]

    def go(inner: Any) -> Any:
        return to_refs(inner, data, done)

    made = value
    match value:
        case FileTensor():
            name = str(value.storage)
            with open(value.path, "rb") as file:
                file.seek(value.offset)
                data[name] = file.read(value.nbytes)
            made = TensorRef(name, value.dtype, value.shape)
        case defaultdict():
            made = defaultdict(value.default_factory, {k: go(v) for k, v in value.items()})
        case OrderedDict():
            made = OrderedDict((k, go(v)) for k, v in value.items())
            vars(made).update(go(vars(value)))
        case dict():
            made = {go(k): go(v) for k, v in value.items()}
        case list():
            made = [go(v) for v in value]
        case tuple() if value:
            made = tuple(go(v) for v in value)
        case Record():
            made = Record(value.cls, go(value.args), go(value.kwargs), go(value.state), go(value.items),
                          go(value.entries), value.form, value.module)  # fmt: skip
    done[id(value)] = (value, made)
    return made


def check_rewritten(source: Path, out: Path) -> None:
    """Write a file again and compare the structure."""
    data: dict[str, bytes] = {}
    read = open_torch(source, exact=True).root
    write(to_refs(read, data, {}), out, data)
    check_same(read, open_torch(out, exact=True).root)


def check_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    match a:
        case FileTensor():
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
        case Record():
            assert (a.cls, a.form, a.callee) == (b.cls, b.form, b.callee)
            for name in ("args", "kwargs", "state", "items", "entries"):
                check_same(getattr(a, name), getattr(b, name))
        case dict():
            check_same(list(a), list(b))
            check_same(list(a.values()), list(b.values()))
            if type(a) is OrderedDict:
                check_same(vars(a), vars(b))
            if type(a) is defaultdict:
                assert a.default_factory is b.default_factory
        case list() | tuple():
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                check_same(x, y)
        case float():
            assert a == b or (math.isnan(a) and math.isnan(b))
        case _:
            assert a == b


def megatron() -> dict[str, Any]:
    """Make what a model_optim_rng.pt of Megatron-LM holds."""
    model = OrderedDict[str, Any](
        weight=torch.arange(6.0).reshape(2, 3), bf16=torch.ones(2, dtype=torch.bfloat16), none=None
    )
    model["l._extra_state"] = torch.empty(0, dtype=torch.uint8)
    model["l.old._extra_state"] = io.BytesIO(b"te1")
    model["l.old._extra_state"].seek(0, io.SEEK_END)
    model["tied"] = model["weight"]
    model["tied_too"] = model["weight"].detach()
    model._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    args = argparse.Namespace(
        tp=2, lr=1e-4, seed=-1, big=1 << 70, name="é", flag=True, none=None, sizes=[1, 2], pair=(1, "a"),
        model_type=ModelType.encoder_or_decoder, params_dtype=torch.bfloat16, path=Path("to/file"), empty={},
        device=torch.device("cpu"), scalar=np.float64(2.5), bytes=b"\xff\0", nothing=b"", cplx=1 - 2j,
        names={"one"}, frozen=frozenset({3}), shape=torch.Size((2, 3)), array=bytearray(b"xy"),
        kind=ModelType,
    )  # fmt: skip
    rng = [{"np_rng_state": ("MT19937", np.arange(5, dtype=np.uint32), 7, 0, 0.0), "cuda": torch.zeros(3)}]
    nested = defaultdict(dict, {"decoder": {"w": torch.tensor(3.0)}})
    optimizer = {"state": {0: {"step": 1}}, "param_groups": []}
    return {"args": args, "checkpoint_version": 3.0, "iteration": 5, "model": model, "rng_state": rng,
            "again": args, "nested": nested, "optimizer": optimizer}  # fmt: skip


def test_what_megatron_saves_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    source, out = tmp_path / "source.pt", tmp_path / "out.pt"
    torch.save(megatron(), source)
    check_rewritten(source, out)
    assert pickle_of(out) == pickle_of(source)
    loaded = torch.load(out, weights_only=False)
    assert loaded["args"] is loaded["again"]
    truth = megatron()
    assert loaded["args"] == truth["args"]
    assert loaded["model"]._metadata == truth["model"]._metadata
    assert loaded["model"]["tied"] is loaded["model"]["weight"]
    assert loaded["model"]["tied_too"].data_ptr() == loaded["model"]["weight"].data_ptr()
    assert loaded["model"]["weight"].equal(truth["model"]["weight"])
    assert loaded["model"]["l.old._extra_state"].getvalue() == b"te1"
    assert loaded["nested"].default_factory is dict
    assert (loaded["rng_state"][0]["np_rng_state"][1] == np.arange(5)).all()


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("zipped", [True, False])
def test_every_protocol_and_container_is_read_and_written_as_protocol_2(
    tmp_path: Path, protocol: int, zipped: bool
) -> None:
    source, out = tmp_path / "source.pt", tmp_path / "out.pt"
    inner = Outer.Inner(3)
    saved = {**megatron(), "inner": inner, "kw": WithKeywords(size=4), "c": Counted(a=1), "s": Stack([1, 2])}
    torch.save(saved, source, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    data: dict[str, bytes] = {}
    root = to_refs(open_torch(source, exact=True).root, data, {})
    write(root, out, data)
    assert pickle_of(out)[:2] == b"\x80\2"
    assert max(op.proto for op, _, _ in pickletools.genops(pickle_of(out))) <= 2
    loaded = torch.load(out, weights_only=False)
    assert loaded["args"] == saved["args"]
    assert (type(loaded["inner"]), loaded["inner"].a) == (Outer.Inner, 3)
    assert loaded["kw"].size == 4
    assert (type(loaded["c"]), loaded["c"]) == (Counted, {"a": 1})
    assert (type(loaded["s"]), loaded["s"]) == (Stack, [1, 2])
    assert loaded["model"]["bf16"].equal(saved["model"]["bf16"])
    check_rewritten(out, tmp_path / "again.pt")
    assert pickle_of(tmp_path / "again.pt") == pickle_of(out)


def test_new_trees_load_safely(tmp_path: Path) -> None:
    path = tmp_path / "f.pt"
    tree = {n: ref(f"t.{n}", n, 2, 3) for n in BY_NAME}
    root = {
        "model": OrderedDict(tree),
        "nested": {"a": [ref("scalar", "bool"), (ref("empty", "int64", 0, 4),)]},
        "tied": (ref("t.int8", "int8", 2, 3), tree["int8"]),
        "plain": [None, True, -5, 1 << 40, 1.5, "text", (1, 2, 3, 4), Global("torch", "bfloat16")],
    }
    data = write(root, path)
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        for name in BY_NAME:
            tensor = loaded["model"][name]
            assert (tensor.dtype, tensor.shape) == (getattr(torch, name), (2, 3))
            assert tensor.view(torch.uint8).numpy().tobytes() == data[f"t.{name}"]
        scalar, (empty,) = loaded["nested"]["a"]
        assert (scalar.dtype, scalar.shape) == (torch.bool, ())
        assert (empty.dtype, empty.shape) == (torch.int64, (0, 4))
        assert loaded["tied"][1] is loaded["model"]["int8"]
        assert loaded["tied"][0].data_ptr() == loaded["model"]["int8"].data_ptr()
        assert loaded["plain"] == [None, True, -5, 1 << 40, 1.5, "text", (1, 2, 3, 4), torch.bfloat16]
        assert type(loaded["model"]) is OrderedDict
        assert type(loaded["nested"]) is dict


def test_a_new_namespace_loads(tmp_path: Path) -> None:
    path = tmp_path / "f.pt"
    kind = Record(f"{__name__}.ModelType", (1,))
    root = {"args": namespace({"tp": 2, "model_type": kind, "dtype": Global("torch", "float16")})}
    write({**root, "none": namespace({})}, path)
    loaded = torch.load(path, weights_only=False)
    assert loaded["args"] == argparse.Namespace(
        tp=2, model_type=ModelType.encoder_or_decoder, dtype=torch.float16
    )
    assert loaded["none"] == argparse.Namespace()


def test_the_flat_layout_is_a_tree() -> None:
    specs = [(f"w{i}", BY_NAME["float16"], (i, 2)) for i in range(5)]
    assert layout(specs) == layout_tree(OrderedDict((s[0], TensorRef(*s)) for s in specs))


# Random trees

KEYS = st.one_of(
    st.text(max_size=5), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text())
)
VALUES = st.one_of(
    KEYS,
    st.integers(-(1 << 2100), 1 << 2100),
    st.floats(),
    st.text(),
    st.binary(max_size=300),
    st.complex_numbers(allow_nan=False),
    st.builds(bytearray, st.binary(max_size=5)),
    st.sets(st.integers() | st.text(max_size=3), max_size=4),
    st.frozensets(st.binary(max_size=3), max_size=4),
    st.tuples(st.sampled_from(sorted(BY_NAME)), st.lists(st.integers(0, 4), max_size=5)).map(
        lambda t: ref(f"{t[0]}{t[1]}", t[0], *t[1])
    ),
)
TREES = st.recursive(
    VALUES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.lists(inner, max_size=6).map(tuple),
        st.dictionaries(KEYS, inner, max_size=6),
        st.dictionaries(KEYS, inner, max_size=6).map(OrderedDict),
        st.dictionaries(KEYS, inner, max_size=6).map(lambda d: defaultdict(list, d)),
        inner.map(lambda v: [v, v]),
    ),
    max_leaves=30,
)


def check_loaded(tree: Any, loaded: Any, data: dict[str, bytes]) -> None:
    if isinstance(tree, TensorRef):
        assert isinstance(loaded, torch.Tensor)
        assert (str(loaded.dtype), tuple(loaded.shape)) == (f"torch.{tree.dtype}", tree.shape)
        flat = loaded.contiguous().flatten()
        assert (flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"") == data[tree.name]
        return
    assert type(tree) is type(loaded)
    if isinstance(tree, dict):
        assert list(tree) == list(loaded)
        for a, b in zip(tree.values(), loaded.values(), strict=True):
            check_loaded(a, b, data)
    elif isinstance(tree, (list, tuple)):
        assert len(tree) == len(loaded)
        for a, b in zip(tree, loaded, strict=True):
            check_loaded(a, b, data)
    else:
        assert tree == loaded or (math.isnan(tree) and math.isnan(loaded))


@settings(max_examples=150, deadline=None)
def made_of(kind: str, name: str, sizes: object) -> Record:
    """A record that holds one object twice, as the metadata of a tensor does."""
    inner = Record("a.Encoding", (kind,), module="a")
    return Record("a.B", state={"of": (inner, name, inner), "at": sizes}, form="new", module="a")


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_what_is_alike_is_written_as_if_each_were_worked_out(count: int) -> None:
    """Also where some was met before, or is met again after it."""
    names, kinds = [f"layer {i}" for i in range(count)], ("some", "others")
    sizes = [(i, 0, i * i * 999, 1)[: i % 5] for i in range(count)]

    def tree(how: Callable[..., object]) -> object:
        every = [how(kinds[i % 2], names[i], sizes[i]) for i in range(count)]
        later = [how(kinds[0], names[i], -(1 << i)) for i in range(count)]
        return {"before": names[::2], "every": every, "after": [names, sizes, *kinds, {"at": later}]}

    alike = dump(tree(lambda kind, *varying: Alike(made_of, (kind,), varying)))[0]
    plain = dump(tree(made_of))[0]
    assert alike == plain


@given(TREES)
def test_random_trees_load_equal(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    path = tmp_path_factory.mktemp("tree") / "f.pt"
    data = write(tree, path)
    check_loaded(tree, torch.load(path, weights_only=False), data)
    # The same objects saved by torch have the same pickle, but for sets, whose order torch leaves open.
    tensors: dict[str, torch.Tensor] = {}
    truth = io.BytesIO()
    torch.save(with_tensors(tree, tensors, {}), truth)
    path.with_name("truth.pt").write_bytes(truth.getvalue())
    assert len(pickle_of(path)) == len(pickle_of(path.with_name("truth.pt")))


def with_tensors(tree: Any, tensors: dict[str, torch.Tensor], done: dict[int, Any]) -> Any:
    """Put tensors where references are; one name is one storage."""
    if id(tree) in done:
        return done[id(tree)][1]
    made = tree
    if isinstance(tree, TensorRef):
        first = tensors.setdefault(tree.name, torch.zeros(tree.shape).to(getattr(torch, tree.dtype.name)))
        made = first.view(tree.shape)
    elif isinstance(tree, defaultdict):
        made = defaultdict(list, {k: with_tensors(v, tensors, done) for k, v in tree.items()})
    elif isinstance(tree, dict):
        made = type(tree)((k, with_tensors(v, tensors, done)) for k, v in tree.items())
    elif isinstance(tree, list) or (isinstance(tree, tuple) and tree):
        made = type(tree)(with_tensors(v, tensors, done) for v in tree)
    done[id(tree)] = (tree, made)
    return made


@given(st.integers(-(1 << 4000), 1 << 4000))
def test_integers_are_as_the_library_writes_them(value: int) -> None:
    truth = io.BytesIO()
    torch.save(value, truth)
    with zipfile.ZipFile(truth) as archive:
        assert dump(value)[0] == archive.read("archive/data.pkl")


# What cannot be written


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def test_nesting_is_bounded(tmp_path: Path) -> None:
    write(nested(MAX_DEPTH), tmp_path / "f.pt")
    assert torch.load(tmp_path / "f.pt", weights_only=True) == nested(MAX_DEPTH)
    with pytest.raises(PlanError, match="more than 200 levels"):
        dump(nested(MAX_DEPTH + 1))


def test_cycles_are_refused_and_sharing_is_linear(tmp_path: Path) -> None:
    cycle: dict[str, object] = {}
    cycle["a"] = {"b": [cycle]}
    with pytest.raises(PlanError, match=r"cannot write at \['a'\]\['b'\]: a dict that holds itself"):
        dump(cycle)
    loop = Record("a.B")
    loop.state = {"self": loop}
    with pytest.raises(PlanError, match="holds itself"):
        dump(loop)
    shared: object = (1,)
    for _ in range(MAX_DEPTH - 1):
        shared = (shared, shared)
    assert len(dump(shared)[0]) < 5000


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.float64(1.0), "numpy.float64"),
        (torch.ones(1), "torch.Tensor"),
        (print, "builtin_function_or_method"),
        (Counted(a=1), "Counted"),
        (defaultdict(lambda: 1), "factory"),
        (FileTensor(BY_NAME["int8"], (), (), "f", 0, (0, 1)), "another file"),
        ([ref("a", "int8", 2), ref("a", "int8", 3)], "as int8"),
        ([ref("a", "int8", 2), ref("a", "uint8", 2)], "as uint8"),
        (Global("os", "system"), "do harm"),
        (Record("subprocess.Popen", ("ls",)), "do harm"),
        (Global("a\nb", "c"), "none can have"),
        (Global("a", "b.\ud800"), "none can have"),
        (Global("", "c"), "none can have"),
        (Record("a.B", ([],), form="reconstruct"), "protocol 0 or 1"),
    ],
)
def test_what_cannot_be_written_is_refused_with_its_place(value: object, said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        layout_tree({"model": [{7: value}]})
    assert "['model'][7]" in caught.value.message
    assert caught.value.hint


def test_names_with_injected_lines_never_reach_a_pickle() -> None:
    """A name of protocol 4 may hold a line break, which ends the name in protocol 2."""
    hostile = b"\x80\4\x8c\x01a\x8c\x12b\ncos\nsystem\nX\0\0\0\0\x93."
    name = inert.load(hostile)
    assert type(name) is Global
    with pytest.raises(PlanError, match="none can have"):
        dump(name)


def test_sets_are_written_alike_in_every_process() -> None:
    names = [f"n{i:02}" for i in range(50)]
    assert [a for _, a, _ in pickletools.genops(dump(set(names))[0]) if a in names] == sorted(names)


# Reading exactly


def test_exact_reading_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    path = tmp_path / "f.pt"
    torch.save({"a": Setter()}, path)
    assert open_torch(path).root["a"].cls == f"{__name__}.Setter"
    with pytest.raises(FormatError, match="result is not used"):
        open_torch(path, exact=True)
    dumped = dump([Record("collections.OrderedDict", state={"items": 3})])[0]
    with pytest.raises(FormatError, match="would hide"):
        inert.load(dumped, exact=True)
    with pytest.raises(FormatError, match="given to a list"):
        inert.load(b"\x80\2]}b.", exact=True)
    assert inert.load(b"\x80\2]}b.") == []


def test_exact_reading_keeps_parameters(tmp_path: Path) -> None:
    source, out = tmp_path / "source.pt", tmp_path / "out.pt"
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, source)
    assert type(open_torch(source).root["w"]) is FileTensor
    check_rewritten(source, out)
    loaded = torch.load(out, weights_only=True)["w"]
    assert isinstance(loaded, torch.nn.Parameter)
    assert loaded.requires_grad


def test_defaultdicts_of_other_factories_stay_records(tmp_path: Path) -> None:
    source, out = tmp_path / "source.pt", tmp_path / "out.pt"
    torch.save(defaultdict(Counted, {"a": 1}), source)
    read = open_torch(source, exact=True).root
    assert (read.cls, read.entries) == ("collections.defaultdict", {"a": 1})
    check_rewritten(source, out)
    assert torch.load(out, weights_only=False).default_factory is Counted
