"""What the processes of a job agree on."""

from pipelines.animate.flow import Ledger


def test_of_rows_with_one_id_the_first_that_asks_makes_the_video_whenever_it_asks_again() -> None:
    ledger = Ledger()
    assert ledger.claim(["a", "b", "a"], ["key1", "key2", "key3"]) == [True, True, False]
    assert ledger.claim(["a", "a"], ["key3", "key1"]) == [False, True]


def test_only_processes_that_do_not_come_back_are_counted() -> None:
    ledger = Ledger()
    assert ledger.begin(["a", "b"]) == [0, 0]
    ledger.end(["b"])
    assert ledger.begin(["a", "b"]) == [1, 0]
    assert ledger.died(["a", "b", "c"]) == 3
    ledger.end(["a", "b"])
    assert ledger.died(["a", "b"]) == 0
