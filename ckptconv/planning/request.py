"""Turn what a user gives, by flags or as keywords, into a checked request; each option goes to its owner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ckptconv.errors import UsageError
from ckptconv.plans.options import SOURCE, checked, declared, flag_of, made, near
from ckptconv.plans.request import Request
from ckptconv.readers.reader import Parallel, options_of
from ckptconv.readers.registry import READERS
from ckptconv.writers.registry import WRITERS
from ckptconv.writers.writer import Writer

__all__ = ["ConvertOptions", "about_source", "find_writer", "request_of"]

# One idea, three words for it.
_ALSO: Final = {"iteration": "step", "tag": "step"}


class ConvertOptions:
    """Hold what a conversion is to write, checked; keywords are those of `ckptconv.convert`.

    Attributes:
        fields: What was given.

    Raises:
        UsageError: as `request_of` does.
    """

    def __init__(self, **fields: Any) -> None:
        request_of(fields)
        self.fields: Mapping[str, Any] = dict(fields)

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in self.fields.items())
        return f"ConvertOptions({given})"


def find_writer(name: object) -> Writer:
    """Return the writer of a target.

    Raises:
        UsageError: if there is none of this name.
    """
    found = WRITERS.find(name) if isinstance(name, str) else None
    if found is None:
        close = near(str(name), WRITERS.names)
        raise UsageError(
            f"cannot convert to {name!r}",
            hint=(f"did you mean {close[0]}? " if close else "") + f"targets: {', '.join(WRITERS.names)}",
        )
    return found


def request_of(fields: Mapping[str, Any]) -> Request:
    """Give every option to its owner: the request itself, the target's writer, or the source's reader.

    A name that the writer owns is the target's; with ``source_`` before it, it is the source's. Parallel
    sizes may also be given together, as ``sizes`` and ``source_sizes``. What is None or empty is not given.

    Raises:
        UsageError: naming an option that no one owns or that says nothing to this target, and the nearest
            right one; or a value that is not right.
    """
    given = _flat(fields)
    writer = find_writer(given.pop("to", "hf"))
    common, writing = declared(Request), declared(writer.options)
    shared: dict[str, Any] = {}
    own: dict[str, Any] = {}
    reading: dict[str, Any] = {}
    for name, value in given.items():
        if name in common:
            shared[name] = value
        elif name in writing:
            own[name] = value
        else:
            reading |= _of_source(name, value, writer)
    request = made(
        Request, {**shared, "to": writer.name, "reading": reading, "writing": made(writer.options, own)}
    )
    if request.lora is not None and request.lora not in writer.lora:
        raise UsageError(
            f"--lora {request.lora} does not go with --to {writer.name}",
            hint="write a Hugging Face model first (--to hf), and convert that",
        )
    if request.adapter is not None and "merge" not in writer.lora:
        raise UsageError(
            f"LoRA adapters are not merged on the way to {writer.name}",
            hint="merge them into a Hugging Face model first (--to hf), and convert that",
        )
    return request


def about_source(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said about a checkpoint that is only read, by the names of its reader's options.

    Raises:
        UsageError: naming what no reader owns, or a value that is not right.
    """
    found: dict[str, Any] = {}
    for name, value in _flat(fields).items():
        found |= _of_source(name, value, None)
    return found


# Switches that say something where they are off.
_OFF: Final = ("assets", "extend_ep")


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given, by one name each."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        empty = value is None or (isinstance(value, (Mapping, list, tuple)) and not value)
        if empty or (value is False and name.removeprefix(SOURCE) not in _OFF):
            continue
        if name in ("sizes", SOURCE + "sizes"):
            prefix = name.removesuffix("sizes")
            if not isinstance(value, Mapping):
                raise UsageError(f"{name} is not {value!r}", hint="give parallel sizes by name: {'tp': 2}")
            for size, number in value.items():
                if size not in declared(Parallel):
                    close = near(str(size), [*declared(Parallel)])
                    hint = f"did you mean {close[0]}?" if close else ""
                    raise UsageError(
                        f"there is no parallel size {size!r}",
                        hint=f"{hint} sizes: {', '.join(declared(Parallel))}".strip(),
                    )
                flat[prefix + size] = number
            continue
        source = name.startswith(SOURCE)
        bare = name.removeprefix(SOURCE)
        name = (SOURCE if source else "") + _ALSO.get(bare, bare)
        if name in flat and flat[name] != value:
            words = ", ".join(["step", *_ALSO])
            raise UsageError(f"{words} are one option, and two values were given", hint="give one")
        flat[name] = value
    return flat


def _of_source(name: str, value: object, writer: Writer | None) -> dict[str, Any]:
    """Check an option of readers, and return it by its name there."""
    bare = name.removeprefix(SOURCE)
    kinds = [o for r in READERS for n, o in options_of(r).items() if n == bare]
    if kinds:
        return {bare: checked(bare, kinds[0], value)}
    raise _unknown(name, writer)


def _unknown(name: str, writer: Writer | None) -> UsageError:
    """Say who would understand an option, and which is the nearest right one."""
    targets = {w.name: declared(w.options) for w in WRITERS}
    common = declared(Request)
    right = dict(common if writer is not None else {})
    right |= targets[writer.name] if writer is not None else {}
    for reader in READERS:
        for n, o in options_of(reader).items():
            right.setdefault(n, o)
    close = [flag_of(n, right[n]) for n in near(name, list(right))]
    did = f"; did you mean {' or '.join(close)}?" if close else ""
    others = [t for t, options in targets.items() if name in options]
    if others:
        flag = flag_of(name, targets[others[0]][name])
        what = f"--to {writer.name}" if writer is not None else "a source"
        return UsageError(
            f"{flag} says nothing to {what}", hint=f"leave it out: it is for --to {' and '.join(others)}{did}"
        )
    if name in common:
        return UsageError(
            f"{flag_of(name, common[name])} says nothing here", hint=f"it is for conversions{did}"
        )
    return UsageError(
        f"there is no option {name!r}", hint=f"{did.removeprefix('; ') or 'see ckptconv convert --help-all'}"
    )
