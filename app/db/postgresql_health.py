"""PostgreSQL's own figures, for ``flask doctor``: connections, standbys, and rows that nobody vacuums."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

COMMANDS_CONNECTIONS = 4
"""Kept for commands, such as this one and a ``psql``."""

FREE_CONNECTIONS = 3
"""With fewer, processes are being refused, or will be soon."""

DEAD_ROWS = 20_000
DEAD_SHARE = 0.05
"""A table with more dead rows than this and this share of its living ones waits for a vacuum that does not come."""

LARGE_INDEX_BYTES = 32_000_000
SPARSE_ENTRY_BYTES = 500
"""An index that is so large, and takes so much for each of its entries, is mostly empty. Ours need less than 150."""

OLD_TRANSACTION_SECONDS = 300
"""A transaction that is open for so long keeps dead rows, though it need not be the reason."""

CONNECTIONS = text(
    """
    SELECT least(
            current_setting('max_connections')::int
                - current_setting('superuser_reserved_connections')::int
                - coalesce(current_setting('reserved_connections', true)::int, 0),
            nullif((SELECT datconnlimit FROM pg_database WHERE datname = current_database()), -1),
            nullif((SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user), -1)
        ) AS allowed,
        count(*) FILTER (WHERE NOT ours) AS others,
        count(*) FILTER (WHERE ours) AS ours,
        count(DISTINCT application_name) FILTER (WHERE ours AND application_name <> :me) AS processes
    FROM (
        SELECT *, datname IS NOT DISTINCT FROM current_database() AND application_name LIKE :like AS ours
        FROM pg_stat_activity
        WHERE datid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
    ) AS connections
    """
)

UNGUARDED_STANDBYS = text(
    """
    SELECT count(*) FROM pg_stat_replication
    WHERE pid NOT IN (SELECT active_pid FROM pg_replication_slots WHERE slot_type = 'logical' AND active_pid > 0)
    AND current_setting('synchronous_standby_names') = ''
    """
)

UNVACUUMED = text(
    """
    SELECT relname, n_live_tup, n_dead_tup, greatest(last_autovacuum, last_vacuum) AS vacuumed_at
    FROM pg_stat_user_tables
    WHERE schemaname = current_schema() AND n_dead_tup > :most + :share * n_live_tup
    ORDER BY n_dead_tup DESC
    """
)

OLDEST_TRANSACTION = text(
    """
    SELECT pid, application_name, extract(epoch FROM now() - xact_start)::float AS seconds FROM pg_stat_activity
    WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    ORDER BY age(backend_xmin) DESC LIMIT 1
    """
)

SPARSE_INDEXES = text(
    """
    SELECT relname, bytes, entries FROM (
        SELECT class.relname, pg_relation_size(class.oid) AS bytes,
            CASE WHEN index.indpred IS NULL THEN greatest(class.reltuples, stat.n_live_tup) ELSE class.reltuples END
            ::bigint AS entries
        FROM pg_stat_user_tables AS stat
        JOIN pg_index AS index ON index.indrelid = stat.relid
        JOIN pg_class AS class ON class.oid = index.indexrelid
        WHERE stat.schemaname = current_schema() AND greatest(stat.last_vacuum, stat.last_autovacuum) IS NOT NULL
    ) AS indexes
    WHERE bytes > greatest(:large, :sparse * entries)
    """
)
"""How many entries a partial index has is only known from the last vacuum."""


@dataclass(frozen=True, slots=True)
class Connections:
    """The server's connections, and what this service may open of them."""

    allowed: int
    """By the server, to a role that is no superuser."""
    others: int
    """In use by what is not this service."""
    ours: int
    processes: int
    """Of this service, on all machines, connected now; this one is not counted."""
    each: int
    """How many a process opens at most, a listener's included."""

    @property
    def wanted(self) -> int:
        """If every process opened all that it may."""
        return self.processes * self.each + COMMANDS_CONNECTIONS

    @property
    def room(self) -> int:
        return max(0, self.allowed - self.others)

    @property
    def are_nearly_used_up(self) -> bool:
        return self.ours + self.others > self.allowed - FREE_CONNECTIONS

    def __str__(self) -> str:
        return (
            f"{self.ours} of ours and {self.others} of others are open, {self.allowed} are allowed; {self.processes} "
            f"processes may open {self.each} each (DATABASE_POOL_SIZE, and one that listens), commands "
            f"{COMMANDS_CONNECTIONS}: {self.wanted} in all"
        )

    @property
    def cure(self) -> str | None:
        """None where all that may be opened can be."""
        if self.wanted <= self.room:
            return None
        fits = (self.room - COMMANDS_CONNECTIONS) // max(1, self.processes) - 1
        lower = f"lower DATABASE_POOL_SIZE to {fits}, " if fits >= 4 else ""
        return f"{lower}raise the server's max_connections by {self.wanted - self.room}, or put PgBouncer before it"


def connections(session: Session, me: str, prefix: str, pool_size: int) -> Connections:
    """``me`` is this process's application_name, ``prefix`` how those of this service begin."""
    row = session.execute(CONNECTIONS, {"me": me, "like": f"{prefix} %"}).one()
    return Connections(row.allowed, row.others, row.ours, row.processes, each=pool_size + 1)


def notes(session: Session) -> Iterator[str]:
    """Present and coming dangers to the promises, each with its cure."""
    if session.scalar(UNGUARDED_STANDBYS):
        yield (
            "a standby follows this server, and no commit waits for it: a failover can lose the orders of the last "
            "moment before it; set synchronous_standby_names"
        )
    unvacuumed = session.execute(UNVACUUMED, {"most": DEAD_ROWS, "share": DEAD_SHARE}).all()
    reason = _what_keeps_dead_rows(session) if unvacuumed else ""
    for row in unvacuumed:
        last = f"last vacuumed at {row.vacuumed_at:%Y-%m-%d %H:%M} UTC" if row.vacuumed_at else "never vacuumed"
        rows = f"{row.n_dead_tup:,} dead rows beside {row.n_live_tup:,} living ones"
        yield f"the table {row.relname} has {rows}, {last}, so claims get slower; {reason}"
    sparse: dict[str, Any] = {"large": LARGE_INDEX_BYTES, "sparse": SPARSE_ENTRY_BYTES}
    for row in session.execute(SPARSE_INDEXES, sparse):
        yield (
            f"the index {row.relname} takes {row.bytes // 1_000_000:,} MB for {row.entries:,} entries; "
            f"REINDEX INDEX CONCURRENTLY {row.relname}"
        )


def _what_keeps_dead_rows(session: Session) -> str:
    oldest = session.execute(OLDEST_TRANSACTION).one_or_none()
    if oldest is not None and oldest.seconds > OLD_TRANSACTION_SECONDS:
        who = f"process {oldest.pid} ({oldest.application_name or 'without a name'})"
        return (
            f"{who} has had a transaction open for {oldest.seconds / 60:.0f} minutes, and no vacuum removes what it "
            f"may still see: end it, SELECT pg_terminate_backend({oldest.pid})"
        )
    return "see that autovacuum is on and keeps up (autovacuum_vacuum_cost_limit), and VACUUM the table now"
