"""Databases of an older version, or with another clock, or that are down or hang: SQLite and a real PostgreSQL."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from pipelines.serving.jobs import database
from pipelines.serving.store import Store
from tests.pipelines.serving.jobs import job, keep


def test_a_database_of_the_version_before_is_brought_up_to_date_and_keeps_its_jobs(database_url: str) -> None:
    keep(Store(database_url), job(1))
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:  # undo what the newer version changed
        blob = "BLOB" if engine.dialect.name == "sqlite" else "BYTEA"
        connection.exec_driver_sql(f"ALTER TABLE cinemo_jobs_2 ADD COLUMN image {blob}")
        connection.exec_driver_sql("UPDATE cinemo_jobs_2 SET image = (SELECT image FROM cinemo_images_1)")
        connection.exec_driver_sql("DROP TABLE cinemo_images_1")
        for name in ("replica", "alone", "deaths", "lone_deaths", "webhook", "sent_digest"):
            connection.exec_driver_sql(f"ALTER TABLE cinemo_jobs_2 DROP COLUMN {name}")
        for name in ("cinemo_jobs_2_by_status", "cinemo_jobs_2_by_expiry", "cinemo_gone_1_by_time"):
            connection.exec_driver_sql(f"DROP INDEX {name}")
        connection.exec_driver_sql("CREATE INDEX cinemo_jobs_2_open ON cinemo_jobs_2 (status, lease_until)")
        connection.exec_driver_sql("DROP TABLE cinemo_ingresses_1")
    with ThreadPoolExecutor(4) as processes:
        upgraded, *_ = processes.map(Store, [database_url] * 4)
    found = upgraded.claim("video_0001", "r", 60, alone=False)
    assert found is not None
    assert (found[0].request, found[0].deaths, found[1]) == (job(1).request, 0, b"image")
    assert "image" not in {column["name"] for column in sa.inspect(engine).get_columns("cinemo_jobs_2")}
    upgraded.renew("first", 60)
    indexes = {index["name"] for index in sa.inspect(engine).get_indexes("cinemo_jobs_2")}
    assert {"cinemo_jobs_2_by_status", "cinemo_jobs_2_by_expiry"} <= indexes
    assert "cinemo_jobs_2_open" not in indexes


def test_a_database_that_comes_back_is_waited_for_and_one_that_does_not_is_an_error(postgres: Any) -> None:
    url = postgres.new_database().replace("postgresql:", "postgresql+psycopg:")
    store = Store(url, patience=30)
    keep(store, job())
    postgres.kill()
    back = threading.Timer(0.5, postgres.start)
    back.start()
    assert store.claim("video_0001", "r", 60, alone=True) is not None
    assert store.complete("video_0001", 1, {}, ttl_s=100)
    back.join()
    postgres.kill()
    try:
        with pytest.raises(sa.exc.DBAPIError):
            Store(url, patience=0.5)
    finally:
        postgres.start()


def test_a_database_that_hangs_is_taken_to_be_away_until_it_answers(
    postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "HANGING_S", 1.0)
    store = Store(postgres.new_database().replace("postgresql:", "postgresql+psycopg:"), patience=30)
    keep(store, job())

    def signal_all(number: int) -> None:
        """Signal the server and its backends. While they are stopped, their sockets stay open, and nothing answers."""
        server = psutil.Process(postgres.server.pid)
        for process in (server, *server.children(recursive=True)):
            process.send_signal(number)

    signal_all(signal.SIGSTOP)
    back = threading.Timer(2.5, signal_all, (signal.SIGCONT,))
    back.start()
    try:
        began = time.monotonic()
        found = store.claim("video_0001", "r", 60, alone=True)
        assert time.monotonic() - began > 2
        assert found is not None
        assert store.complete("video_0001", found[0].attempt, {}, ttl_s=100)
        back.join()
        store.database.patience = 0.5
        signal_all(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(sa.exc.DBAPIError):
            store.get("video_0001")
        assert time.monotonic() - began < 20
    finally:
        back.join()
        signal_all(signal.SIGCONT)


def test_connections_to_a_server_that_only_reads_are_replaced(postgres: Any) -> None:
    """After a failover they stayed open to the standby, and every write failed until the service was restarted."""
    url = postgres.new_database().replace("postgresql:", "postgresql+psycopg:")
    store, name = Store(url, patience=30), sa.make_url(url).database
    with store.database.engine.begin() as connection:  # a server that becomes a standby keeps its connections
        connection.exec_driver_sql("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    keep(store, job(1))

    def set_read_only(value: str) -> None:
        engine = sa.create_engine(postgres.url("postgres").replace("postgresql:", "postgresql+psycopg:"))
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
        engine.dispose()

    set_read_only("on")
    store.database.engine.dispose()
    over = threading.Timer(2, set_read_only, ("off",))
    over.start()
    assert store.get("video_0001") is not None  # opened a connection, if it was given one to a server that only reads
    keep(store, job(2))
    over.join()


def test_leases_go_by_the_clock_of_the_database(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ingress whose clock was ahead stole the jobs of the others, and one behind gave leases that had run out."""
    keep(store, job(1))
    assert store.claim("video_0001", "first", 20, alone=True)
    for wrong in (1000.0, -1000.0):
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda now=time.time, wrong=wrong: now() + wrong)
            store.renew("first", 20)
            assert store.take_abandoned("second") == 0
            assert store.claim("video_0001", "second", 20, alone=True) is None
            store.renew_attempts(["video_0001"], "first", 20)
            assert store.delete_expired() == []
        assert store.take_abandoned("second") == 0
        assert store.claim("video_0001", "second", 20, alone=True) is None


def test_errors_of_the_database_show_no_parameters(store: Store) -> None:
    """They are logged, and parameters are prompts and images of users."""
    with store.database.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE cinemo_jobs_2"))
    store.database.patience = 0
    with pytest.raises(sa.exc.DBAPIError) as caught:
        store.fail("video_0001", 1, "server_error", "a secret prompt", ttl_s=100)
    assert "secret" not in str(caught.value)
