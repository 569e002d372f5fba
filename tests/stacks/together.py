"""Settings of a table's rows put together, so that a few syntheses show them all."""

from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

Settings = dict[str, Any]
Template = dict[str, Any]


def merged(one: Settings, other: Settings) -> Settings | None:
    """Return both, or None where they say different things of the same key."""
    found = dict(one)
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            value = merged(found[key], value)
            if value is None:
                return None
        elif key in found and found[key] != value:
            return None
        found[key] = value
    return found


class Together:
    """The templates of a table's rows, each made when it is first asked for.

    Args:
        rows: What each row gives.
        synthesize: From settings to a template.
        apart: Rows that say what holds without the others' settings.
        kind: Only rows of the same kind are put together.
    """

    def __init__(
        self,
        rows: Mapping[str, Settings],
        synthesize: Callable[[Settings], Template],
        *,
        apart: Collection[str] = (),
        kind: Callable[[Settings], Hashable] = lambda given: None,
    ) -> None:
        self._synthesize = synthesize
        self._made: dict[int, Template] = {}
        self._packs: list[tuple[Hashable, Settings]] = []
        self._place: dict[str, int] = {}
        for name, given in rows.items():
            own = name if name in apart else ("of the kind", kind(given))
            self._place[name] = self._put(own, given)

    def _put(self, own: Hashable, given: Settings) -> int:
        for place, (kind, settings) in enumerate(self._packs):
            if kind == own and (both := merged(settings, given)) is not None:
                self._packs[place] = (kind, both)
                return place
        self._packs.append((own, given))
        return len(self._packs) - 1

    def __getitem__(self, row: str) -> Template:
        place = self._place[row]
        if place not in self._made:
            self._made[place] = self._synthesize(self._packs[place][1])
        return dict(self._made[place])
