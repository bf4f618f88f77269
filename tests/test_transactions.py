"""What the dataset's log holds by name is read in one go, and says what deltalake says of each name."""

from __future__ import annotations

import random

import polars as pl
import pytest
from deltalake import DeltaTable

from infra.dataset import DatasetUnreadable, entry_of, read_transactions, transaction_name, transactions_at
from streams.ledger.checkpoint import EVERY
from streams.ledger.commit import Advance, Ledger

PARTITIONS = [("events", number) for number in range(7)]
NAMES = [transaction_name(what, *p) for p in PARTITIONS for what in ("offset", "watermark", "idle")]
COMMITS = 2 * EVERY + 20


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some partitions move with each commit, and what is said of the others stays; one never moves."""
    rng = random.Random(3)
    ledger = Ledger(tmp_path_factory.mktemp("dataset") / "p", {"flight_id": pl.String()})
    nothing = pl.DataFrame(schema=ledger.schema)
    at = dict.fromkeys(PARTITIONS, 0)
    for number in range(COMMITS):
        moved = (
            rng.sample(PARTITIONS[:-1], rng.randint(1, 2)) if number % EVERY < EVERY // 2 else PARTITIONS[:1]
        )
        advances = {p: Advance(at[p], at[p] + rng.randint(0, 9)) for p in moved}
        at |= {p: advance.next for p, advance in advances.items()}
        ledger.commit(
            nothing,
            advances=advances,
            watermarks={p: rng.randint(0, 99) for p in moved if rng.random() < 0.5},
            idle=[p for p in moved if rng.random() < 0.2],
            metadata={"note": 'its text holds "txn", too'},
        )
    ledger.checkpoints.wait()
    return ledger.uri


def by_deltalake(uri: str, version: int) -> dict[str, int]:
    table = DeltaTable(uri, version=version)
    return {name: said for name in NAMES if (said := table.transaction_version(name)) is not None}


@pytest.mark.parametrize("version", [0, 1, 60, EVERY - 1, EVERY, EVERY + 1, 2 * EVERY, COMMITS])
def test_all_names_say_what_deltalake_says_of_each(uri: str, version: int) -> None:
    said = read_transactions(uri, version)
    assert said == by_deltalake(uri, version)
    assert {name: transactions_at(uri, version)(name) for name in NAMES} == {n: said.get(n) for n in NAMES}
    assert (version == 0) == (said == {})


def test_entries_before_the_checkpoint_are_not_looked_at_unless_it_cannot_be_read(uri: str) -> None:
    said = read_transactions(uri, COMMITS)
    old, newest = entry_of(uri, 2 * EVERY - 1), entry_of(uri, 2 * EVERY).with_suffix(".checkpoint.parquet")
    entry, checkpoint = old.read_bytes(), newest.read_bytes()
    old.unlink()
    assert read_transactions(uri, COMMITS) == said
    newest.write_bytes(checkpoint[:100])
    with pytest.raises(DatasetUnreadable, match=f"has no version {2 * EVERY - 1} in its log"):
        read_transactions(uri, COMMITS)
    old.write_bytes(entry[:-5])
    with pytest.raises(DatasetUnreadable, match=rf"{old.name} of dataset .* is not whole"):
        read_transactions(uri, COMMITS)
    old.write_bytes(entry)
    assert read_transactions(uri, COMMITS) == said
    newest.write_bytes(checkpoint)
