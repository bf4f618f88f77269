"""However a table travels to the device, its batches are the same and memory is bounded."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.loader import Loader

CPU = torch.device("cpu")


def table(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers (N, 3) and each row's place (N,)."""
    place = torch.arange(rows)
    return torch.stack([place.float(), place.float() * 2, place.float() * 3], dim=1), place


def loader(rows: int, batch_rows: int, *, seed: int = 1, resident: bool = True, buffers: int = 3) -> Loader:
    most = None if resident else 0
    return Loader(
        table(rows), batch_rows=batch_rows, seed=seed, device=CPU, resident_bytes=most, buffers=buffers
    )


def epochs(of: Loader, count: int) -> list[list[int]]:
    """Places row by row, checked against their numbers."""
    found = []
    for _ in range(count):
        places: list[int] = []
        for numbers, place in of.epoch():
            assert torch.equal(numbers[:, 2], place.float() * 3)
            places += place.tolist()
        found.append(places)
    return found


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(1, 70), st.integers(0, 99), st.integers(2, 5))
def test_streamed_and_resident_tables_give_the_same_batches(
    rows: int, batch_rows: int, seed: int, buffers: int
) -> None:
    resident = loader(rows, batch_rows, seed=seed)
    streamed = loader(rows, batch_rows, seed=seed, resident=False, buffers=buffers)
    assert (resident.resident, streamed.resident) == (True, False)
    here, there = epochs(resident, 2), epochs(streamed, 2)
    assert here == there
    assert [sorted(epoch) for epoch in here] == [list(range(rows))] * 2
    assert len(resident) == len(streamed) == -(-rows // batch_rows)


def test_the_seed_decides_the_order_and_each_epoch_has_its_own() -> None:
    first, second = epochs(loader(100, 10), 2)
    assert first != second
    assert epochs(loader(100, 10), 2) == [first, second]
    assert epochs(loader(100, 10, seed=2), 1) != [first]
    # As a plain loop on tensors would have it.
    order = torch.Generator().manual_seed(1)
    assert torch.randperm(100, generator=order).tolist() == first


def test_a_streamed_table_takes_its_ring_and_no_more_however_slow_the_training() -> None:
    streamed = loader(1_000, 10, resident=False, buffers=3)
    assert streamed.buffer_bytes == 3 * 10 * (3 * 4 + 8)
    assert loader(1_000, 10).buffer_bytes == 0
    addresses = set()
    for numbers, _ in streamed.epoch():
        addresses.add(numbers.data_ptr())
    assert len(addresses) == 3


@pytest.mark.parametrize("after", [0, 1, 50])
def test_an_epoch_that_is_broken_off_leaves_no_thread(after: int) -> None:
    streamed = loader(1_000, 10, resident=False)
    batches = streamed.epoch()
    for _ in range(after):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "loader"]
    assert len(epochs(streamed, 1)[0]) == 1_000


def test_a_fault_while_gathering_reaches_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = loader(100, 10, resident=False)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(torch, "index_select", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        list(streamed.epoch())


def test_tensors_of_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="same rows"):
        Loader((torch.zeros(3), torch.zeros(4)), batch_rows=1, seed=0, device=CPU)
    with pytest.raises(ValueError, match="buffers=1"):
        loader(3, 1, buffers=1)


@pytest.mark.parametrize("resident", [True, False])
def test_batches_that_are_left_out_change_nothing_of_those_that_follow(resident: bool) -> None:
    whole = loader(100, 30, resident=resident)
    some = loader(100, 30, resident=resident)
    (first, second, third), skips = epochs(whole, 3), (4, 3, 1)
    for expected, skip in zip((first, second, third), skips, strict=True):
        assert [p for _, place in some.epoch(skip=skip) for p in place.tolist()] == expected[skip * 30 :]
