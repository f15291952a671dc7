"""Problems of a data set, counted by kind, so that a report stays short however large the set is."""

from __future__ import annotations

from dataclasses import dataclass, field

_NAMED = 5


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem and what is done about it."""

    what: str
    """What is wrong with one case, in the singular."""
    done: str
    """What became of the cases."""


@dataclass(slots=True)
class _Tally:
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Problems:
    """Counts cases by kind and remembers the first few of each."""

    def __init__(self) -> None:
        """Starts with no problems."""
        self._tallies: dict[Kind, _Tally] = {}

    def add(self, kind: Kind, example: str) -> None:
        """Counts one case, described by `example`."""
        tally = self._tallies.setdefault(kind, _Tally())
        tally.count += 1
        if len(tally.examples) < _NAMED:
            tally.examples.append(example)

    def count(self, kind: Kind) -> int:
        """Number of cases of `kind` so far."""
        tally = self._tallies.get(kind)
        return tally.count if tally else 0

    def lines(self) -> tuple[str, ...]:
        """One line per kind, in the order of first appearance: what, how many, what was done, examples."""
        return tuple(
            f"{kind.what}: {tally.count}, {kind.done} ({'; '.join(tally.examples)}"
            f"{'; ...' if tally.count > _NAMED else ''})"
            for kind, tally in self._tallies.items()
        )
