"""Dataclasses that are compiled when they are used are those of the standard library in all else."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from dataclasses import FrozenInstanceError, field

import pytest

from ckptconv.records import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """A point."""

    x: int
    y: int = 0
    names: list[str] = field(default_factory=list, compare=False)


@dataclass(frozen=True, slots=True)
class Named(Point):
    """A point with a name."""

    name: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("no name")

    def __repr__(self) -> str:
        return f"<{self.name}>"


@dataclass(slots=True)
class Count:
    """What changes."""

    of: int = 0


@dataclass(frozen=True, eq=False)
class Alone:
    """Equal to itself alone."""

    x: int
    twice: int = field(init=False)
    none: tuple[int, ...] = field(init=False, default=())
    more: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.x)


def test_values_are_compared_hashed_and_shown() -> None:
    assert Point(1) == Point(1, 0, ["other"]) != Point(2)
    assert {Point(1), Point(1)} == {Point(1)}
    assert repr(Point(1)) == "Point(x=1, y=0, names=[])"
    assert Point(1) != (1, 0)
    assert Alone(1) != Alone(1)
    assert repr(Alone(1)).endswith("Alone(x=1, twice=2, none=(), more=[])")
    with pytest.raises(TypeError):
        Alone(1, 2)  # type: ignore[call-arg]
    assert len({Alone(1), Alone(1)}) == 2


def test_hashing_comes_first() -> None:
    @dataclass(frozen=True, slots=True)
    class Fresh:
        x: int

    unmade = object.__new__(Fresh)
    object.__setattr__(unmade, "x", 3)
    assert hash(unmade) == hash(Fresh(3))


def test_frozen_ones_do_not_change() -> None:
    for name in ("x", "more"):
        with pytest.raises(FrozenInstanceError):
            setattr(Point(1), name, 2)
    with pytest.raises(FrozenInstanceError):
        del Point(1).x
    count = Count()
    count.of += 1
    assert count == Count(1)
    with pytest.raises(TypeError):
        hash(count)


def test_they_derive_from_one_another_and_from_the_standard_ones() -> None:
    named = Named(1, name="a")
    assert (named.x, repr(named)) == (1, "<a>")
    assert named != Point(1)
    with pytest.raises(ValueError, match="no name"):
        Named(1)
    with pytest.raises(TypeError):
        Named(1, 2, [], "a")  # type: ignore[misc]

    @dataclasses.dataclass(frozen=True, slots=True)
    class Standard(Point):
        z: int = 5

    @dataclass(frozen=True, slots=True)
    class Ours(Standard):
        w: int = 6

    assert repr(Ours(1)).endswith("Ours(x=1, y=0, names=[], z=5, w=6)")
    with pytest.raises(FrozenInstanceError):
        Ours(1).z = 2  # type: ignore[misc]
    with pytest.raises(TypeError, match="frozen"):
        dataclass()(type("Thawed", (Point,), {}))


def test_tools_know_them() -> None:
    assert dataclasses.replace(Point(1), y=2) == Point(1, 2)
    assert dataclasses.asdict(Named(1, name="a")) == {"x": 1, "y": 0, "names": [], "name": "a"}
    assert list(inspect.signature(Point).parameters) == ["x", "y", "names"]
    assert pickle.loads(pickle.dumps(Named(1, name="a"))) == Named(1, name="a")
    assert copy.deepcopy(Point(1, names=["a"])).names == ["a"]
    match Point(3, 4):
        case Point(x, y):
            assert (x, y) == (3, 4)
