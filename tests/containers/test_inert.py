"""Pickles are read as values, never run."""

from __future__ import annotations

import argparse
import collections
import enum
import functools
import io
import os
import pickle
import pickletools
import signal
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptconv.containers.torch import inert
from ckptconv.containers.torch.inert import Global, Limits, Record
from ckptconv.errors import FormatError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Colour(enum.Enum):
    RED = 1


class OddList(list):
    pass


class OddDict(dict):
    pass


class Plain:
    def __init__(self) -> None:
        self.a = 1


class Slotted:
    __slots__ = ("b",)


class WithKeywords:
    def __new__(cls, *, size: int = 0) -> WithKeywords:
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"size": 3}


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=40)
)
keys = st.text() | st.integers() | st.tuples(st.text(), st.integers()) | st.booleans()
values = st.recursive(
    scalars | st.binary().map(bytearray) | st.sets(st.integers()) | st.frozensets(st.text()),
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.tuples(inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@settings(deadline=None, max_examples=60)
@given(values, st.sampled_from(PROTOCOLS))
def test_plain_values_come_back_as_pickle_gives_them(value: object, protocol: int) -> None:
    assert inert.load(pickle.dumps(value, protocol)) == value


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_a_format_error(data: bytes) -> None:
    try:
        inert.load(b"\x80\x04" + data)
    except FormatError as error:
        assert len(str(error)) < 2000


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_of_the_library_become_plain_ones(protocol: int) -> None:
    ordered = collections.OrderedDict(a=1, b=[2])
    ordered._metadata = {"version": 1}
    default = collections.defaultdict(list, {"k": [1]})
    value = inert.load(pickle.dumps((ordered, default), protocol))
    assert value == ({"a": 1, "b": [2]}, {"k": [1]})
    assert [type(v) for v in value] == [dict, dict]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_become_records(protocol: int) -> None:
    record = inert.load(pickle.dumps(Plain(), protocol))
    assert isinstance(record, Record)
    assert record.cls == f"{__name__}.Plain"
    assert record.get("a") == 1
    assert record.get("missing", 7) == 7
    args = inert.load(pickle.dumps(argparse.Namespace(tp=2, name="x"), protocol))
    assert args.cls == "argparse.Namespace"
    assert args.get("tp") == 2


@pytest.mark.parametrize("protocol", range(2, 6))
def test_what_megatron_keeps_is_readable(protocol: int) -> None:
    saved = {
        "enum": Colour.RED,
        "signal": signal.SIGTERM,
        "partial": functools.partial(print, 1, end=""),
        "bytes": io.BytesIO(b"extra"),
        "array": np.arange(3, dtype=np.int64),
        "scalar": np.float64(2.5),
        "path": Path("a/b"),
        "counter": collections.Counter("aab"),
    }
    read = inert.load(pickle.dumps(saved, protocol))
    assert read["enum"].cls == f"{__name__}.Colour"
    assert read["enum"].args == (1,)
    assert read["signal"].cls == "signal.Signals"
    assert read["signal"].args == (int(signal.SIGTERM),)
    assert read["partial"].cls == "functools.partial"
    assert read["bytes"].cls == "_io.BytesIO"
    assert b"extra" in (*read["bytes"].args, *(read["bytes"].state or ()))
    assert read["array"].cls.startswith("numpy")
    assert read["scalar"].args[1] == struct.pack("<d", 2.5)
    assert read["counter"].cls == "collections.Counter"


@pytest.mark.parametrize("protocol", range(2, 6))
def test_subclasses_of_containers_keep_their_contents(protocol: int) -> None:
    slotted = Slotted()
    slotted.b = 5
    saved = [OddList([1, 2]), OddDict(x=1), slotted, WithKeywords()]
    items, entries, slots, keywords = inert.load(pickle.dumps(saved, protocol))
    assert items.items == [1, 2]
    assert entries.entries == {"x": 1}
    assert slots.get("b") == 5
    if protocol >= 4:
        assert keywords.kwargs == {"size": 3}


def test_shared_and_cyclic_values_stay_shared() -> None:
    shared = [1]
    cycle: list[object] = [shared, shared]
    cycle.append(cycle)
    read = inert.load(pickle.dumps(cycle))
    assert read[0] is read[1]
    assert read[2] is read


def test_persistent_ids_go_to_the_hook_and_are_refused_without_one() -> None:
    data = b"\x80\x02U\x03abcQ."
    assert inert.load(data, persistent=lambda pid: ("seen", pid)) == ("seen", "abc")
    with pytest.raises(FormatError, match="persistent id"):
        inert.load(data)


def test_hooks_replace_calls() -> None:
    data = b"\x80\x02cmy.mod\nmake\nK\x01K\x02\x86R."
    assert inert.load(data, hooks={"my.mod.make": sum}) == 3
    assert inert.load(data).args == (1, 2)


def test_load_at_stops_at_stop_and_reads_little_further(tmp_path: Path) -> None:
    path = tmp_path / "two"
    big = {f"k{i}": "v" * 100 for i in range(3000)}
    first, second = pickle.dumps(big, 2), pickle.dumps([1, 2], 2)
    path.write_bytes(b"head" + first + second + bytes(1 << 20))
    with path.open("rb") as file:
        value, end = inert.load_at(file, 4)
        assert (value, end) == (big, 4 + len(first))
        assert inert.load_at(file, end) == ([1, 2], end + len(second))
        assert file.tell() < path.stat().st_size // 2


# Nothing runs

_SHELL = "touch {0}"


def _hostile(command: bytes) -> dict[str, bytes]:
    text = b"X" + len(command).to_bytes(4, "little") + command
    return {
        "reduce": b"\x80\x02cos\nsystem\n" + text + b"\x85R.",
        "stack_global": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R.",
        "dotted": b"\x80\x04\x8c\x0bckptconv.os\x8c\x0fpath.sys.system\x93" + text + b"\x85R.",
        "inst": b"(" + text + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + text + b"o.",
        "newobj": b"\x80\x02cos\nsystem\n" + text + b"\x85\x81.",
        "newobj_ex": b"\x80\x04cos\nsystem\n" + text + b"\x85}\x92.",
        "build": b"\x80\x02c" + __name__.encode() + b"\nPlain\n)\x81}X\x0c\x00\x00\x00__setstate__"
        b"cos\nsystem\nsb" + text + b"b.",
        "nested": b"\x80\x02cbuiltins\neval\n(" + text + b"cos\nsystem\n" + text + b"\x85RtR.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\ncbuiltins\n__import__\nX\x08\x00\x00\x00__call__\x86R"
        b"X\x02\x00\x00\x00os\x85R.",
        "import": b"\x80\x02c__builtin__\n__import__\nX\x02\x00\x00\x00os\x85R.",
        "copyreg": b"\x80\x02ccopyreg\n__newobj__\ncos\nsystem\n" + text + b"\x86R.",
        "partial": b"\x80\x02cfunctools\npartial\ncos\nsystem\n" + text + b"\x86R)R.",
        "map": b"\x80\x02c__builtin__\nlist\nc__builtin__\nmap\ncos\nsystem\n" + text + b"\x85\x86R\x85R.",
        "defaultdict": b"\x80\x02ccollections\ndefaultdict\ncos\nsystem\n\x85R.",
        "codecs": b"\x80\x02c_codecs\nencode\n" + text + b"X\x04\x00\x00\x00zlib\x86R.",
    }


@pytest.mark.parametrize("case", sorted(_hostile(b"")))
def test_no_call_is_ever_made(case: str, tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    data = _hostile(_SHELL.format(sentinel).encode())[case]
    if case in ("reduce", "stack_global", "inst", "obj", "newobj", "newobj_ex", "nested", "import"):
        with pytest.raises(
            FormatError, match=r"calls '(os\.system|__builtin__\.__import__)'.*[Nn]othing .* was run"
        ):
            inert.load(data)
    else:
        assert type(inert.load(data)) in (Record, dict)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("module", "name", "harmful"),
    [
        ("posix", "system", True),
        ("os.path", "expandvars", True),
        ("code", "interact", True),
        ("builtins", "eval", True),
        ("torch.hub", "load", True),
        ("code.models", "Policy", False),
        ("myos", "system", False),
        ("builtins", "getattr", False),
        ("signal", "Signals", False),
        ("torch.serialization", "_get_layout", False),
    ],
)
def test_only_calls_that_do_harm_are_refused(module: str, name: str, harmful: bool) -> None:
    call = f"\x80\x02c{module}\n{name}\n(tR.".encode("latin-1")
    if harmful:
        with pytest.raises(FormatError, match="made to do harm"):
            inert.load(call)
    else:
        assert inert.load(call).cls == f"{module}.{name}"
    assert inert.load(f"\x80\x02c{module}\n{name}\n.".encode("latin-1")) == inert.Global(module, name)


def test_the_corpus_does_run_under_the_library(tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    pickle.loads(_hostile(_SHELL.format(sentinel).encode())["reduce"])
    assert sentinel.exists()
    os.unlink(sentinel)


# Damaged and hostile streams

REFUSED = {
    "empty": b"",
    "no stop": b"\x80\x02N",
    "stop on nothing": b"\x80\x02.",
    "unknown opcode": b"\x80\x02\xff.",
    "protocol 6": b"\x80\x06N.",
    "ext1": b"\x80\x02\x82\x01.",
    "ext2": b"\x80\x02\x83\x01\x00.",
    "ext4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "out of band": b"\x80\x05\x97.",
    "read only buffer": b"\x80\x05N\x98.",
    "underflow": b"\x80\x02\x86.....",
    "underflow of marks": b"\x80\x02Nt...",
    "append to nothing": b"\x80\x02(e....",
    "memo never stored": b"\x80\x02h\x05......",
    "bad utf-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "bad utf-8 global": b"c\xff\n\xfe\n.",
    "text of 2**63": b"\x80\x04\x8d" + (1 << 63).to_bytes(8, "little") + b"abc.",
    "bytes of 2**40": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"abc.",
    "bytearray of 2**62": b"\x80\x05\x96" + (1 << 62).to_bytes(8, "little") + b"abc.",
    "negative string": b"T\xff\xff\xff\xff.",
    "negative long": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "huge long": b"\x80\x02\x8b\x00\x00\x00\x10" + bytes(100) + b".",
    "huge decimal": b"I" + b"9" * 100_000 + b"\n.",
    "no integer": b"Iabc\n.",
    "no float": b"Fx\n.",
    "no quotes": b"Sabc\n.",
    "bad escape": b"S'\\x'\n.",
    "unhashable key": b"\x80\x02}]K\x01s.",
    "unhashable in a tuple": b"\x80\x02}]\x85K\x01s.",
    "unhashable element": b"\x80\x04\x8f(]\x90.",
    "odd pairs": b"\x80\x02}(K\x01u.",
    "keys on a list": b"\x80\x02]K\x01K\x01s.",
    "append to a dict": b"\x80\x02}K\x01a.",
    "add to a list": b"\x80\x04](K\x01\x90.",
    "call of text": b"\x80\x02U\x01a)R.",
    "call without tuple": b"\x80\x02ca\nb\n]R.",
    "state on a class": b"\x80\x02ca\nb\n}b.",
    "state on text": b"\x80\x02U\x01a}b.",
    "global of numbers": b"\x80\x04K\x01K\x02\x93.",
    "dict of no pairs": b"\x80\x02ccollections\nOrderedDict\n]K\x01a\x85R.",
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_damage_is_refused_by_name(case: str) -> None:
    with pytest.raises(FormatError) as info:
        inert.load(REFUSED[case], where="some/file")
    assert info.value.where == "some/file"
    assert "byte" in info.value.message
    assert len(info.value.message) < 500


def test_every_truncation_is_refused() -> None:
    saved = {"a": [1, 2.5, "x" * 300, b"y" * 300, (1, 2, 3, 4), {3}, 1 << 80, Plain(), None, True]}
    for protocol in PROTOCOLS:
        data = pickle.dumps(saved, protocol)
        for cut in range(len(data)):
            with pytest.raises(FormatError):
                inert.load(data[:cut])


def test_every_opcode_of_the_library_is_known() -> None:
    from ckptconv.containers.torch.pickleops import NAMES

    assert {ord(op.code): op.name for op in pickletools.opcodes} == NAMES


def _quick(data: bytes, **options: object) -> object:
    begin = time.perf_counter()
    try:
        return inert.load(data, **options)  # type: ignore[arg-type]
    except FormatError as error:
        return error
    finally:
        assert time.perf_counter() - begin < 5


def test_memo_bombs_cost_nothing() -> None:
    assert _quick(b"\x80\x02K\x01r\xff\xff\xff\xff.") == 1
    assert _quick(b"K\x01p" + b"9" * 30 + b"\n.") == 1


@pytest.mark.parametrize(
    "nest", [b"]" * 100_000 + b"a" * 99_999, b")" + b"\x85" * 100_000, b"(" * 100_000 + b"t" * 100_000]
)
def test_deep_nesting_is_read_without_recursion(nest: bytes) -> None:
    assert type(_quick(b"\x80\x02" + nest + b".")) in (list, tuple)


def test_deep_nesting_of_records_and_dicts() -> None:
    calls = b"ca\nb\nq\x00)R"
    for _ in range(3):
        calls += b"q\x020h\x00h\x02\x85R" * 20_000
    assert type(_quick(b"\x80\x02" + calls + b".")) is Record
    assert type(_quick(b"\x80\x02N" + b"q\x010}K\x01h\x01s" * 50_000 + b".")) is dict


@pytest.mark.parametrize("close", [b"\x85", b"q\x010h\x01h\x01\x86"])
def test_keys_that_are_deep_or_unfold_exponentially_are_refused(close: bytes) -> None:
    key = b"K\x01" + close * 10_000
    assert isinstance(_quick(b"\x80\x02}" + key + b"Ns."), FormatError)
    assert isinstance(_quick(b"\x80\x04\x8f(" + key + b"\x90."), FormatError)
    assert isinstance(_quick(b"\x80\x04(" + key + b"\x91."), FormatError)


def test_billion_laughs_stay_shared() -> None:
    laugh = b"\x80\x02]q\x00K\x01a0h\x00" + b"".join(
        b"]q" + bytes([i]) + b"(" + (b"h" + bytes([i - 1])) * 10 + b"e" for i in range(1, 200)
    )
    value = _quick(laugh + b".")
    assert type(value) is list
    assert value[0] is value[9]


def test_copies_through_calls_are_charged() -> None:
    once = b"(c__builtin__\nlist\nq\x00](" + b"K\x01" * 10_000 + b"e\x85q\x01R"
    error = _quick(b"\x80\x02" + once + b"h\x00h\x01R" * 5_000 + b"t.")
    assert isinstance(error, FormatError)
    assert "weigh" in error.message


def test_colliding_keys_cannot_stall() -> None:
    prime = (1 << 61) - 1
    keys = b"".join(b"\x8a\x0a" + (i * prime).to_bytes(10, "little") + b"N" for i in range(1, 20_000))
    assert isinstance(_quick(b"\x80\x02}(" + keys + b"u."), FormatError)


def _probing(bits: int) -> list[int]:
    """Return keys of distinct hashes that meet in a dict: its probes end on one cycle, i -> 5i + 1."""
    size = 1 << bits
    filled, at = [], 0
    for _ in range(size * 3 // 10):
        filled.append(at)
        at = (5 * at + 1) % size
    place = np.full(size, -1, dtype=np.int32)
    place[filled] = np.arange(len(filled))
    keys = np.arange(size, 1 << 24, dtype=np.int32)
    i, perturb = keys % size, keys.copy()
    meets = place[i] >= 0
    for _ in range(6):
        perturb >>= 5
        i = (i * 5 + perturb + 1) % size
        meets &= place[i] >= 0
    late = keys[meets & (place[i] < len(filled) // 3)]
    return filled + late[: size // 3].tolist()


def _long(key: int) -> bytes:
    return b"J" + struct.pack("<i", key)


def test_keys_that_meet_in_a_dict_s_table_cannot_stall() -> None:
    keys = [_long(k) for k in _probing(16)]
    tuples = [_long(k) + b"\x85" for k in range(1 << 24, (1 << 24) + 30_000)]
    assert len(keys) > 25_000
    for chosen in (keys, tuples):
        error = _quick(b"\x80\x02}(" + b"N".join(chosen) + b"Nu.")
        assert isinstance(error, FormatError) and "keys of a dict" in error.message
        assert isinstance(_quick(b"\x80\x04\x8f(" + b"".join(chosen) + b"\x90."), FormatError)


def test_ordinary_numbers_are_keys() -> None:
    vocabulary = {i: str(i) for i in range(150_000)}
    assert _quick(pickle.dumps(vocabulary)) == vocabulary
    addresses = [{140_000_000_000_000 + 64 * i: 1, -i: 2} for i in range(30_000)]
    assert _quick(pickle.dumps(addresses)) == addresses
    experts = {(layer, expert): 1 for layer in range(61) for expert in range(384)}
    assert _quick(pickle.dumps(experts)) == experts


FLOODS = {
    "lists": b"]", "dicts": b"}", "sets": b"\x8f", "marks": b"(", "tuples": b"N\x85", "one entry": b"}NNs",
    "one element": b"]Na", "records": b"h\x00)R", "records of one entry": b"h\x00)RNNs",
    "frozensets": b"(K\x01\x91", "names": b"ca\nb\n",
}  # fmt: skip


@pytest.mark.parametrize("flood", FLOODS)
def test_what_objects_weigh_is_bounded_by_the_pickle(flood: str) -> None:
    body = FLOODS[flood]
    data = b"\x80\x04ca\nb\nq\x00" + body * (400_000 // len(body)) + b"."
    tracemalloc.start()
    try:
        error = _quick(data, limits=Limits(weight=1 << 20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(error, FormatError) and "weigh more than 14 times" in error.message
    assert peak < 24 * len(data)


@pytest.mark.parametrize("flood", [b"]", b"\x8f", b"N", b"N0", b")\x85", b"K\x00", b"\x88"], ids=repr)
@pytest.mark.parametrize("ended", [True, False], ids=["whole", "cut"])
def test_a_large_flood_is_refused_soon(flood: bytes, ended: bool) -> None:
    data = b"\x80\x02" + flood * ((9 << 20) // len(flood)) + (b"." if ended else b"")
    begin = time.process_time()
    for read in (lambda: inert.load(data), lambda: inert.load_at(io.BytesIO(data), 0)):
        with pytest.raises(FormatError, match=r"little but empty values|objects weigh more"):
            read()
    assert time.process_time() - begin < 8


def test_a_tuple_of_a_million_numbers_is_read() -> None:
    data = pickle.dumps(tuple(range(300, 1_000_300)), 2)
    assert inert.load(data) == pickle.loads(data)


def test_the_weight_of_what_is_read_in_pieces_grows_with_it() -> None:
    data = pickle.dumps([[i] for i in range(30_000)], 2)
    for limits, fine in (
        (Limits(weight=1 << 10, growth=24), True),
        (Limits(weight=1 << 10, growth=2), False),
    ):
        try:
            value, _ = inert.load_at(io.BytesIO(data), 0, limits=limits)
            assert fine and value == pickle.loads(data)
        except FormatError:
            assert not fine


def test_the_size_is_bounded() -> None:
    assert isinstance(_quick(b"N" * 100 + b".", limits=Limits(size=100)), FormatError)


def test_globals_stay_names() -> None:
    value = inert.load(b"\x80\x02ctorch\nfloat16\n.")
    assert value == Global("torch", "float16")
    assert value.qualified == "torch.float16"
