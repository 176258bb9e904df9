"""What a protocol is, and those that there are: each is a file in `protocols/`, found by being there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from results.layout import Role, declare_roles
from results.records import Record
from results.tables import Table, TableOptions
from sweep.plan import Run, SweepConfig


@dataclass(frozen=True)
class FollowUp:
    """What a protocol runs when its own runs are there, by what came out.

    Attributes:
        protocol: the one that the further runs are of; its table shows them.
        runs: makes them from what the runs share and the records.
        cost: what the protocol's own runs cost, said before they start.
    """

    protocol: str
    runs: Callable[[SweepConfig, Sequence[Record]], list[Run]]
    cost: Callable[[SweepConfig, Sequence[Run]], str]


@dataclass(frozen=True)
class Protocol:
    """A way to train and test.

    Attributes:
        name: on the command lines.
        plan: makes the runs of trainers on data sets, for one number of shots.
        table: makes the table of records.
        roles: what its runs can be, and where they lie; roles of other protocols may be among them.
        datasets: those that it has unless others are named, as in the papers' tables.
        shots: training images per class there.
        seeds: seeds there (for APEX's own protocols, those of its paper).
        follow: what is run by what came out.
        tables: makes the tables of all records of a tree, by name; by default `table`, under the protocol's name.
        own: chooses its own runs among all records of a tree; by default those of its roles.
    """

    name: str
    plan: Callable[[SweepConfig, Sequence[str], Sequence[str]], list[Run]]
    table: Callable[[Sequence[Record], TableOptions], Table]
    roles: Mapping[str, Role]
    datasets: tuple[str, ...]
    shots: tuple[int, ...] = (16,)
    seeds: str = "1"
    follow: FollowUp | None = None
    tables: Callable[[Sequence[Record], TableOptions], dict[str, Table]] | None = field(default=None)
    own: Callable[[Sequence[Record]], list[Record]] | None = None

    @property
    def summary(self) -> str:
        """What it does, in a line: the first of its plan's docstring."""
        return (self.plan.__doc__ or "").strip().partition("\n")[0]

    @property
    def has_source(self) -> bool:
        """Whether it tests on other data sets than it trains on."""
        return any(role.has_source for role in self.roles.values())

    @property
    def has_variant(self) -> bool:
        """Whether its directories have a level for a variant."""
        return any(role.has_variant for role in self.roles.values())

    def records_of(self, records: Sequence[Record]) -> list[Record]:
        """The runs of the protocol among all records of a tree."""
        return self.own(records) if self.own else [record for record in records if record.place.role in self.roles]

    def tables_of(self, records: Sequence[Record], options: TableOptions) -> dict[str, Table]:
        """The tables of all records of a tree, by names for their files."""
        return self.tables(records, options) if self.tables else {self.name: self.table(records, options)}


PROTOCOLS: dict[str, Protocol] = {}


def register(protocol: Protocol) -> Protocol:
    """Make a protocol and its roles known by its name; ValueError if another one has it, or has a role's name."""
    declare_roles(protocol.roles)
    if PROTOCOLS.setdefault(protocol.name, protocol) is not protocol:
        raise ValueError(f"two protocols are called {protocol.name!r}")
    return protocol
