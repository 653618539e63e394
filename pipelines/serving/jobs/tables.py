"""Tables of the service's database, and how those of earlier versions are brought up to date.

A job has two leases. The one of the ingress that watches it is a row of `ingresses`, so that renewing it changes one
row, however many jobs there are. The one of its running attempt, which a replica makes, is in the job's row.
"""

import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn

metadata = sa.MetaData()
# Times are seconds since 1970. Later versions may add columns that have a default: `create` adds them to old tables.
jobs = sa.Table(
    "cinemo_jobs_2",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("progress", sa.Integer, nullable=False, default=0),  # percent
    sa.Column("request", sa.Text, nullable=False),  # JSON
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("keeper", sa.String(64), key="lease_owner", nullable=False),  # the ingress that watches the job
    sa.Column("lease_until", sa.Float, nullable=False),  # of the running attempt
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("expires_at", sa.Float),
    sa.Column("error", sa.Text),  # JSON: code, message
    sa.Column("result", sa.Text),  # JSON: measured motion, fingerprint, timings
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("request_digest", sa.String(64)),  # of the checked request and its files
    sa.Column("sent_digest", sa.String(64)),  # of the request as it was sent; null: without an idempotency key
    sa.Column("replica", sa.String(64)),  # the one whose attempt is running; null: none
    sa.Column("alone", sa.Integer, nullable=False, server_default="0"),  # whether that attempt is a batch of one
    sa.Column("deaths", sa.Integer, nullable=False, server_default="0"),  # attempts whose process or device died
    sa.Column("lone_deaths", sa.Integer, nullable=False, server_default="0"),  # lone attempts whose process died
    sa.Column("webhook", sa.Text),  # URL that is told of the end; empty: that of the settings; null: none
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index("cinemo_jobs_2_by_owner", "owner", "created_at", "id"),
    sa.Index("cinemo_jobs_2_by_status", "status", "lease_owner", "owner", "id"),
    sa.Index("cinemo_jobs_2_by_expiry", "expires_at"),
)
# Not in the table of jobs, so that its rows stay small.
images = sa.Table(
    "cinemo_images_1",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # of the job
    sa.Column("image", sa.LargeBinary, nullable=False),  # as uploaded; deleted when the job ends
)
# Ends of jobs of which a webhook's receiver has not been told yet.
events = sa.Table(
    "cinemo_events_1",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("subject", sa.String(64), nullable=False),  # id of the job
    sa.Column("url", sa.Text, nullable=False),  # empty: that of the settings
    sa.Column("owner", sa.String(64), nullable=False, server_default=""),  # who named the URL; empty: the settings
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_at", sa.Float, nullable=False),  # of the next try
    sa.Index("cinemo_events_1_by_time", "next_at"),
)
tombstones = sa.Table(
    "cinemo_gone_1",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Index("cinemo_gone_1_by_time", "at"),
)
ingresses = sa.Table(
    "cinemo_ingresses_1",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("lease_until", sa.Float, nullable=False),
)
files = sa.Table(
    "cinemo_files_1",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("filename", sa.Text, nullable=False),  # as uploaded; no path is made of it
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Index("cinemo_files_1_by_owner", "owner", "created_at", "id"),
    sa.Index("cinemo_files_1_by_expiry", "expires_at"),
)
batches = sa.Table(
    "cinemo_batches_1",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("input_file_id", sa.String(64), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("total", sa.Integer, nullable=False),  # lines; 0 until they are counted
    sa.Column("completed", sa.Integer, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    sa.Column("output_file_id", sa.String(64)),
    sa.Column("error_file_id", sa.String(64)),
    sa.Column("errors", sa.Text),  # JSON: of a file that is no batch
    sa.Column("metadata", sa.Text, key="notes"),  # JSON, as sent
    sa.Column("lease_owner", sa.String(64)),  # the ingress that works on it
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Index("cinemo_batches_1_by_owner", "owner", "created_at", "id"),
    sa.Index("cinemo_batches_1_by_status", "status", "lease_until"),
    sa.Index("cinemo_batches_1_by_expiry", "expires_at"),
)
# Lines of a batch that were sent as requests, until the batch has ended.
lines = sa.Table(
    "cinemo_lines_1",
    metadata,
    sa.Column("batch", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("job", sa.String(64)),  # null: the request was refused
    sa.Column("outcome", sa.Text),  # JSON, a line of the output; null: not ended
    sa.Column("ok", sa.Integer, nullable=False),  # whether the outcome belongs into the output, not the errors
)
# Indexes of earlier versions that are useless now, and had to be updated at every step.
_DROPPED = ("cinemo_jobs_2_open",)


def create(engine: sa.Engine) -> None:
    """Create the tables, columns and indexes that are missing. Any number of processes may do so at once."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # SQLite's transactions that write exclude each other anyway
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(20260215)"))
        metadata.create_all(connection)
        for table in metadata.sorted_tables:
            existing = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
            for column in table.columns:
                if column.name not in existing:
                    definition = CreateColumn(column).compile(engine).string
                    connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")
            if table is jobs and "image" in existing:
                _move_images(connection)
            for index in table.indexes:
                index.create(connection, checkfirst=True)
        for name in _DROPPED:
            connection.exec_driver_sql(f"DROP INDEX IF EXISTS {name}")


def _move_images(connection: sa.Connection) -> None:
    """Move the images out of the table of jobs, where earlier versions kept them."""
    connection.exec_driver_sql(
        f"INSERT INTO {images.name} (id, image) SELECT id, image FROM {jobs.name} WHERE image IS NOT NULL"
    )
    connection.exec_driver_sql(f"ALTER TABLE {jobs.name} DROP COLUMN image")
