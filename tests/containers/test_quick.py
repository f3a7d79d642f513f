"""Large pickles are read by CPython's own unpickler as values, never run, or left to `inert`."""

from __future__ import annotations

import collections
import gc
import pickle
import pickletools
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptconv.containers.dcp import metadata
from ckptconv.containers.torch import inert, quick, tokens
from ckptconv.containers.torch.inert import Global, Limits, Record
from ckptconv.containers.torch.quick import PAD, Thing
from ckptconv.errors import CkptconvError, FormatError

LIMITS = Limits(weight=1 << 28)


class Plain:
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


class Other(Plain):
    pass


def _load(data: bytes, **options: Any) -> object:
    begin = time.perf_counter()
    try:
        return quick.load(data + bytes(PAD), limits=options.pop("limits", LIMITS), **options)
    finally:
        assert time.perf_counter() - begin < 5


def _as_slow(value: object) -> object:
    """Return what `inert` makes of the same pickle, dicts as pairs."""
    if isinstance(value, Thing):
        return (value.stands_for().qualified, tuple(map(_as_slow, value)))
    if isinstance(value, type):
        assert issubclass(value, Thing)
        return value.stands_for()
    if type(value) is list:
        return [_as_slow(x) for x in value]
    return tuple(map(_as_slow, value)) if type(value) is tuple else value


def _flat(value: object) -> object:
    """Write what `inert` makes of a pickle as `quick` does."""
    if type(value) is Record:
        return (value.cls, () if value.state is None else (_flat(value.state),))
    if type(value) is dict:
        pairs = [(_flat(k), _flat(v)) for k, v in value.items()]
        return pairs if len(pairs) == 1 else [x for pair in pairs for x in pair]
    if type(value) is list:
        return [_flat(x) for x in value]
    return tuple(map(_flat, value)) if type(value) is tuple else value


scalars = (
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.floats(allow_nan=False) | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.tuples(inner, inner)
        | st.builds(lambda a, b: Plain(a=a, b=b), inner, inner)
        | st.builds(lambda x: [x, x], inner)
    ),
    max_leaves=30,
)


@settings(max_examples=150)
@given(values, st.sampled_from((2, 3, 4, 5)))
def test_what_is_read_is_what_inert_reads(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    found = _load(data)
    assert found is not None or inert.load(data) is None
    assert _as_slow(found) == _flat(inert.load(data))


def test_many_objects_and_batches() -> None:
    value = [Plain(i=i, name=f"n{i}", shape=torch.Size((i, 70_000 + i))) for i in range(5001)]
    whole = {"objects": value, "again": value[:10], **{f"k{i}": i for i in range(2001)}}
    for protocol in (2, 4):
        data = pickle.dumps(whole, protocol)
        assert _as_slow(_load(data)) == _flat(inert.load(data))


def test_an_ordered_dict_is_a_thing() -> None:
    found = _load(pickle.dumps(collections.OrderedDict(a=1, b=2)))
    assert isinstance(found, Thing) and found.stands_for() == Global("collections", "OrderedDict")
    assert list(quick.pairs(found)) == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("last", [True, False])
def test_a_list_is_left_out(protocol: int, last: bool) -> None:
    shared = Plain(inside=1)
    plans = [Other(items=[Plain(i=i, j=f"{i}")] * 2) for i in range(2500)]
    root: dict[str, object] = {"plans": plans, "other": [shared, shared]} if not last else {
        "other": [shared, shared], "plans": plans
    }  # fmt: skip
    found = _load(pickle.dumps(root, protocol), without=b"plans")
    held = dict(quick.pairs(found)) if found is not None else {}  # type: ignore[arg-type]
    # What was stored in it may be recalled after it, so that it stays.
    assert len(held["plans"]) <= 1 if last else len(held["plans"]) == 2500
    assert _as_slow(held["other"][0]) == _flat(inert.load(pickle.dumps(shared, protocol)))


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_parts_it_is_gone_through_in_do_not_show(protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [Other(items=[Plain(i=i, j=f"{i}")]) for i in range(2500)]
    root = {"other": [Plain(n=i, shape=torch.Size((i, 9)), one=1) for i in range(300)], "plans": plans}
    data = pickle.dumps(root, protocol)
    found = []
    for part in (1 << 18, 4096, 97, 7):
        monkeypatch.setattr(quick, "_PART", part)
        found.append([_as_slow(_load(data)), _as_slow(_load(data, without=b"plans"))])
    assert all(one == found[0] for one in found) and found[0][0] == _flat(inert.load(data))


def test_what_was_left_out_is_not_recalled() -> None:
    one = Plain(a=1)
    data = pickle.dumps({"plans": [one, [1, 2]], "other": one}, 2)
    assert _as_slow(_load(data, without=b"plans")) == _flat(inert.load(data))


@pytest.mark.parametrize("block", [32, 100, 1 << 14])
def test_instructions_are_found_exactly(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_BLOCK", block)
    rng = random.Random(block)
    text = "ubX\x00c\n\x8c(Jr."
    values = [Plain(**{rng.choice(text) * rng.randrange(1, 300): rng.randrange(1 << 40)}) for _ in range(400)]
    for protocol in (2, 4):
        data = pickle.dumps(values, protocol)
        raw = data + bytes(PAD)
        found = tokens.starts(raw, np.frombuffer(raw, np.uint8), len(data))
        if found is not None:
            assert np.flatnonzero(found).tolist() == [at for _, _, at in pickletools.genops(data)]
        else:
            assert block < 1000


# Nothing runs, nothing stalls, nothing grows


def _hostile() -> dict[str, bytes]:
    deep = b"K\x01" + b"\x85" * 200_000
    doubled = b"K\x01\x94" + b"".join(b"h%c\x86\x94" % i for i in range(60))
    numbers = b"".join(b"J" + (i << 17).to_bytes(4, "little") + b"N" for i in range(1, 30_000 // 2))
    return {
        "call": b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.",
        "name alone": b"\x80\x02cos\nsystem\n.",
        "by number": b"\x80\x02\x82\x01.",
        "instance": b"\x80\x02(X\x04\0\0\0trueios\nsystem\n.",
        "object": b"\x80\x02(cos\nsystem\nX\x04\0\0\0trueo.",
        "memo": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
        "text memo": b"\x80\x02K\x01p999999999\n.",
        "frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f].",
        "bytes": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "persistent": b"\x80\x02NQ.",
        "deep key": b"\x80\x02}" + deep + b"Ns.",
        "doubled key": b"\x80\x04}" + doubled + b"Ns.",
        "numbers": b"\x80\x02}(" + numbers + b"u.",
        "set": b"\x80\x04\x8f(K\x01\x90.",
        "lists": b"\x80\x02" + b"]" * 3_000_000 + b".",
        "objects": b"\x80\x02ca\nb\nq\0" + b"h\0)\x81" * 2_000_000 + b".",
        "classes": b"\x80\x02" + b"".join(b"ca\nb%d\n0" % i for i in range(1000)) + b".",
        "state of a class": b"\x80\x02ca\nb\nN}X\x01\0\0\0aNs\x86b.",
        "state of a size": b"\x80\x02ctorch\nSize\nN}X\x01\0\0\0aNs\x86b.",
        "copies": b"\x80\x02ctorch\nSize\nq\0](" + b"K\x01" * 1000 + b"e\x85q\1R" + b"h\0h\1R" * 1000 + b".",
        "state of states": b"\x80\x02ca\nb\n)\x81](" + b"K\x01" * 1000 + b"eq\1b" + b"h\1b" * 100_000 + b".",
        "arguments": b"\x80\x02ca\nb\nK\x01\x85\x81.",
        "two ends": b"\x80\x02N.N.",
        "after the end": b"\x80\x02N.NN",
        "none": b"",
    }


@pytest.mark.parametrize("case", sorted(_hostile()))
def test_what_could_do_harm_is_not_read_here_or_is_inert(case: str) -> None:
    data = _hostile()[case]
    found = _load(data, limits=Limits(weight=1 << 24))
    kept = {"deep key", "doubled key", "frame", "numbers", "state of states"}
    assert (found is not None) == (case in kept)
    if found is not None:
        assert type(found) in (list, tuple) or isinstance(found, Thing)


def test_a_name_is_looked_up_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"\x80\x02cno.such.module\nThing\n)\x81}X\x01\0\0\0aK\x01sb."
    found = _load(data)
    assert isinstance(found, Thing) and found.stands_for() == Global("no.such.module", "Thing")
    assert list(quick.pairs(found[0])) == [("a", 1)]


def test_the_collector_is_as_it_was() -> None:
    assert gc.isenabled()
    _load(pickle.dumps([1]))
    _load(b"\x80\x02NQ.")
    assert gc.isenabled()


# Metadata


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dcp")
    state = {f"layers.{i}.w": torch.ones(3, i + 1) for i in range(5)} | {
        "step": 3,
        "nested": {"a": torch.ones(2)},
    }
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder / ".metadata"


def _both(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    told: list[object] = []
    for large in (1 << 60, 0):
        monkeypatch.setattr(metadata, "_LARGE", large)
        try:
            told.append(metadata.read_metadata(path))
        except CkptconvError as error:
            told.append((type(error), error.message, error.hint))
    return told


@pytest.mark.filterwarnings("ignore")
def test_metadata_say_the_same_in_both_ways(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    read = quick.load

    def counted(*args: Any, **options: Any) -> object:
        calls.append(read(*args, **options))
        return calls[-1]

    monkeypatch.setattr(quick, "load", counted)
    slow, fast = _both(small, monkeypatch)
    assert slow == fast and isinstance(slow, metadata.Told) and len(slow.tensors) == 6
    assert len(calls) == 1 and calls[0] is not None


@pytest.mark.filterwarnings("ignore")
def test_damage_is_told_the_same_in_both_ways(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small.read_bytes()
    rng = random.Random(0)
    path = tmp_path / ".metadata"
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 5))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))]))
        slow, fast = _both(path, monkeypatch)
        refused += not isinstance(slow, metadata.Told)
        if isinstance(slow, metadata.Told) or isinstance(fast, metadata.Told):
            assert slow == fast
    assert refused > 50


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("field", ["offsets", "sizes", "size", "offset", "length", "fqn", "chunks"])
@pytest.mark.parametrize(
    "nest", [b"\x85" * 300_000, b"".join(b"q%ch%c\x86" % (i, i) for i in range(100, 180))]
)
def test_deep_values_are_refused_before_they_are_hashed(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, nest: bytes
) -> None:
    """Put a tuple of tuples in the place of a field, where it is first named, and under a field's name."""
    root = pickle.loads(small.read_bytes())
    at = pickle.dumps(root, 2).index(name := b"X" + len(field).to_bytes(4, "little") + field.encode())
    data = pickle.dumps(root, 2)
    end = at + len(name)
    end += {ord("q"): 2, ord("r"): 5}[data[end]]
    path = tmp_path / ".metadata"
    for changed in (
        data[:end] + b"K\x01" + nest + b"u}(" + data[end:],
        data[:end] + b"K\x01" + nest + b"N" + data[end:],
        data[:at] + b"K\x01" + nest + b"N" + data[at:],
        data[:end] + b"K\x01" + nest + b"K\x01" + nest + data[end:],
    ):
        path.write_bytes(changed)
        slow, fast = _both(path, monkeypatch)
        assert slow == fast and not isinstance(slow, metadata.Told)


def test_a_key_without_a_value() -> None:
    with pytest.raises(ValueError, match="without a value"):
        list(quick.pairs(["a", 1, "b"]))
    with pytest.raises(FormatError):
        inert.load(b"\x80\x02}(K\x01u.")
