"""Put relations side by side, and stamp out those that are alike but for the names of their tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ckptconv.errors import PlanError
from ckptconv.relations.box import Box, as_box
from ckptconv.relations.pair import NEXT, Drop, Pair, Spec, as_pair, spec_text

__all__ = ["Gathering", "Stamp"]


class Stamp:
    """Hold a relation of few tensors without their names.

    The tensors of a model's layers and experts are packed and cut alike: one of them is worked out.
    """

    def __init__(
        self,
        left: Mapping[str, Spec],
        right: Mapping[str, Spec],
        pairs: Iterable[Pair],
        left_only: Iterable[Drop] = (),
        right_only: Iterable[Drop] = (),
        *,
        lefts: Sequence[str],
        rights: Sequence[str],
    ) -> None:
        """Take a relation apart.

        Args:
            left: Its left tensors.
            right: Its right tensors.
            pairs: Its pairs.
            left_only: Its drops on the left.
            right_only: Its drops on the right.
            lefts: The names of the left tensors in the order in which others will be given.
            rights: Those of the right.
        """
        at, to = ({name: i for i, name in enumerate(names)} for names in (lefts, rights))
        self.left = [(at[name], spec) for name, spec in left.items()]
        self.right = [(to[name], spec) for name, spec in right.items()]
        self.pairs = [
            (at[a.tensor], a[1:], to[b.tensor], b[1:], one_copy, other_copy)
            for a, b, one_copy, other_copy in pairs
        ]
        self.left_only = [(at[box.tensor], box[1:], reason) for box, reason in left_only]
        self.right_only = [(to[box.tensor], box[1:], reason) for box, reason in right_only]
        self.has_drops = bool(self.left_only or self.right_only)


class Gathering:
    """Collect relations.

    Attributes:
        left: The tensors of the left side.
        right: The tensors of the right side.
        pairs: Which elements are the same.
        left_only: Drops on the left.
        right_only: Drops on the right.
    """

    def __init__(self) -> None:
        self.left: dict[str, Spec] = {}
        self.right: dict[str, Spec] = {}
        self.pairs: list[Pair] = []
        self.left_only: list[Drop] = []
        self.right_only: list[Drop] = []

    def add(
        self,
        left: Mapping[str, Spec],
        right: Mapping[str, Spec],
        pairs: Iterable[Pair],
        left_only: Iterable[Drop] = (),
        right_only: Iterable[Drop] = (),
    ) -> None:
        """Add a relation.

        Raises:
            PlanError: if a tensor has another shape or type than in one before.
        """
        for specs, more in ((self.left, left), (self.right, right)):
            for name, spec in more.items():
                if specs.setdefault(name, spec) != spec:
                    raise _differs(name, specs[name], spec)
        self.pairs += pairs
        self.left_only += left_only
        self.right_only += right_only

    def stamp(self, stamp: Stamp, lefts: Sequence[str], rights: Sequence[str]) -> None:
        """Add a relation that is like another but for its tensors' names.

        Raises:
            PlanError: if a tensor has another shape or type than in one before.
        """
        for specs, names, more in ((self.left, lefts, stamp.left), (self.right, rights, stamp.right)):
            for i, spec in more:
                if specs.setdefault(names[i], spec) != spec:
                    raise _differs(names[i], specs[names[i]], spec)
        for i, here, j, there, one, other in stamp.pairs:
            self.pairs.append(as_pair((as_box((lefts[i], *here)), as_box((rights[j], *there)), one, other)))
        if not stamp.has_drops:
            return
        self.left_only += [Drop(Box(lefts[i], *box), reason) for i, box, reason in stamp.left_only]
        self.right_only += [Drop(Box(rights[i], *box), reason) for i, box, reason in stamp.right_only]


def _differs(name: str, one: Spec, two: Spec) -> PlanError:
    return PlanError(f"{name} is {spec_text(one)} and {spec_text(two)}", hint=NEXT)
