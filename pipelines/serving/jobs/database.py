"""The service's database, SQLite or PostgreSQL: operations retry while it is away, and time out when it hangs."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import tenacity
from sqlalchemy.exc import DBAPIError, TimeoutError

CONNECTIONS = 10  # largest number that a process holds
HANGING_S = 5.0  # a database that does not respond for this long counts as unavailable
# Seconds since 1970, by the database's clock. statement_timestamp() advances within a transaction, unlike now(), but
# not within a statement, unlike clock_timestamp(), with which no index could be searched.
POSTGRES_NOW = "extract(epoch from statement_timestamp())::float8"
SQLITE_NOW = "((julianday('now') - 2440587.5) * 86400.0)"
READ_ONLY = "25006"  # SQLSTATE of a write in a transaction that only reads
Result = TypeVar("Result")
UNAVAILABLE = (DBAPIError, TimeoutError)  # the second: all connections are busy


class Database:
    """A SQLAlchemy engine; its methods may be called from any thread.

    now: the time as SQL, seconds since 1970. Leases need one clock, and those of ingresses and replicas differ.
    patience: seconds to retry while the database is unavailable; then one of UNAVAILABLE is raised.
    """

    def __init__(self, url: str, patience: float) -> None:
        self.patience = patience
        self.is_sqlite = url.startswith("sqlite")
        if self.is_sqlite and (path := sa.make_url(url).database):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.now: sa.ColumnElement[float] = sa.literal_column(SQLITE_NOW if self.is_sqlite else POSTGRES_NOW, sa.Float)
        # No pool_pre_ping, because it has no time limit: a broken connection is replaced at its first error.
        of_server: dict[str, Any] = {"pool_size": CONNECTIONS, "max_overflow": 0, "pool_timeout": HANGING_S}
        # read-write: of several hosts, or behind a name that a failover moves, never a standby.
        arguments = {"client_encoding": "utf8", "connect_timeout": 5, "target_session_attrs": "read-write"}
        of_server |= {"connect_args": arguments}
        # Errors are logged, so parameters, users' prompts and images, are hidden.
        self.engine = sa.create_engine(url, hide_parameters=True, **({} if self.is_sqlite else of_server))
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _set_up_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        else:
            sa.event.listen(self.engine, "handle_error", _leave_standby)

    def patiently(self, act: Callable[[], Result]) -> Result:
        """Call `act`, retrying while the database is unavailable or locked; returns its result."""
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(UNAVAILABLE),
            wait=tenacity.wait_exponential_jitter(initial=0.05, max=1.0),
            stop=tenacity.stop_after_delay(self.patience),
            reraise=True,
        )(act)

    @contextmanager
    def transaction(self, only_reads: bool = False) -> Iterator[sa.Connection]:
        """Open a connection in a transaction, which is committed at the end of the block."""
        with (
            self.engine.connect().execution_options(only_reads=only_reads) as connection,
            self._bounded(connection),
            connection.begin(),
        ):
            yield connection

    def advisory_lock(self, connection: sa.Connection, name: str) -> None:
        """Wait until no other transaction that called this with the same name runs, so that what is counted stays true.

        On SQLite, transactions that write run one after another anyway.
        """
        if not self.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(name, 0))))

    def change(self, statement: Any) -> int:
        """Execute a statement; returns the number of rows changed."""
        with self.transaction() as connection:
            return connection.execute(statement).rowcount

    def first(self, statement: Any) -> Any:
        """Fetch the first row of a query; None when there is none."""
        return next(iter(self.all(statement)), None)

    def all(self, statement: Any) -> Sequence[Any]:
        """Fetch the rows of a query."""
        with self.transaction(only_reads=True) as connection:
            return connection.execute(statement).all()

    @contextmanager
    def _bounded(self, connection: sa.Connection) -> Iterator[None]:
        """Break the connection after HANGING_S: a server that hangs keeps its sockets open but does not respond."""
        if self.is_sqlite:  # has its own busy timeout
            yield
            return

        def break_it() -> None:
            with contextlib.suppress(Exception):  # it has ended in this very moment
                file = connection.connection.dbapi_connection.fileno()  # type: ignore[union-attr]
                with socket.socket(fileno=os.dup(file)) as same:
                    same.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(HANGING_S, break_it)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def locked(ids: sa.Select[tuple[str]], most: int) -> sa.Select[Any]:
    """Select at most `most` of these ids and lock their rows, without those that another process is changing.

    ids: may join other tables, whose rows are not locked.
    """
    # As a common table expression: PostgreSQL might evaluate a subquery with a limit more than once.
    some = ids.limit(most).with_for_update(skip_locked=True, of=ids.selected_columns[0].table).cte("some", nesting=True)
    return sa.select(some.c.id)


def _leave_standby(context: sa.engine.ExceptionContext) -> None:
    """Replace all connections after a write to a server that only reads: a failover made it a standby."""
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # turn off the driver's implicit transactions
    # FULL: acknowledged jobs are on disk, even after a power loss.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that writes takes its lock at once: after a read, SQLite would fail instead of waiting for it.
    reads = connection.get_execution_options().get("only_reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
