"""The unit that travels: consecutive records of one partition."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException

from streams.transport.inflate import MAX_BATCH_BYTES, Batches, TooLarge, inflated, is_dense

_NAMED_ONE_BY_ONE = 10_000
Headers = Sequence[tuple[str, bytes | None]]


@dataclass(slots=True, eq=False)
class Frame:
    """Records of one partition in the half-open, contiguous range of offsets [first, next).

    `values[i]` belongs to `offsets[i]`; a compacted or transactional topic leaves offsets of the range
    without a record, which count as read all the same. `headers` holds only records that have some,
    by index; `stamps` the index at which each batch begins, with its timestamp; `unread` says why a record
    could not be read, by index. `size_bytes` is what the records take in memory, at most; `sent_bytes` what
    was fetched for them.
    """

    topic: str
    partition: int
    first: int
    next: int
    values: list[bytes | None]
    keys: list[bytes | None]
    offsets: Sequence[int]
    headers: dict[int, Headers] = field(default_factory=dict)
    stamps: list[tuple[int, int]] = field(default_factory=list)
    unread: dict[int, str] = field(default_factory=dict)
    size_bytes: int = 0
    sent_bytes: int = 0
    _tables: dict[int, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def timestamp_ms(self) -> int:
        """The first record's timestamp; -1 where there is none."""
        return self.stamps[0][1] if self.stamps else -1

    def timestamp_of(self, index: int) -> int:
        """A record's own timestamp; where producers set them, the newest of its batch."""
        at = bisect_right(self.stamps, index, key=lambda stamp: stamp[0])
        return self.stamps[at - 1][1] if at else -1

    def table(self, index: int, read: Callable[[bytes], Any]) -> Any:
        """What `read` makes of a record that holds many rows: once, whoever asks, and however often."""
        if index not in self._tables:
            self._tables[index] = read(self.values[index] or b"")
        return self._tables[index]

    def since(self, offset: int) -> Frame:
        """The frame without its records below `offset`."""
        if offset <= self.first:
            return self
        skip = next((i for i, own in enumerate(self.offsets) if own >= offset), len(self.values))
        return Frame(
            topic=self.topic,
            partition=self.partition,
            first=min(offset, self.next),
            next=self.next,
            values=self.values[skip:],
            keys=self.keys[skip:],
            offsets=self.offsets[skip:],
            headers={i - skip: h for i, h in self.headers.items() if i >= skip},
            stamps=[(0, self.timestamp_of(skip)), *((i - skip, ms) for i, ms in self.stamps if i > skip)],
            unread={i - skip: why for i, why in self.unread.items() if i >= skip},
            size_bytes=sum(map(len, filter(None, self.values[skip:]))),
        )

    def parted(self, count: int) -> tuple[Frame, Frame]:
        """Its first `count` records, and the rest: 0 < count < len(frame)."""
        rest = self.since(self.offsets[count])
        head = Frame(
            topic=self.topic,
            partition=self.partition,
            first=self.first,
            next=rest.first,
            values=self.values[:count],
            keys=self.keys[:count],
            offsets=self.offsets[:count],
            headers={i: h for i, h in self.headers.items() if i < count},
            stamps=[(i, ms) for i, ms in self.stamps if i < count],
            unread={i: why for i, why in self.unread.items() if i < count},
            size_bytes=sum(map(len, filter(None, self.values[:count]))),
        )
        return head, rest


def read_frame(records: PartitionRecords, *, topic: str, partition: int) -> Frame | None:
    """Drain a fetched chunk, whole record batches at a time, without a ConsumerRecord each.

    Leaves `records.next_fetch_offset` behind the chunk, as aiokafka's own iterator would: control
    batches, aborted transactions and sparse batches move the position without giving a record.

    Raises:
        CorruptRecordException: a batch fails its CRC and no batch before it was good.
    """
    first = records.next_fetch_offset
    frame = Frame(topic, partition, first, first, [], [], [])
    offsets: list[int] = []
    try:
        for batch, raw in _data_batches(records):
            frame.sent_bytes += len(raw)
            frame.stamps.append((len(frame.values), batch.max_timestamp or -1))
            try:
                readable, size_bytes = inflated(raw) if batch.compression_type else (batch, len(raw))
            except TooLarge as why:
                _set_aside(frame, offsets, batch, why, first)
            else:
                frame.size_bytes += size_bytes
                if batch.base_offset >= first and is_dense(raw):
                    _append_all(frame, offsets, readable)
                else:
                    _append(frame, offsets, readable, first)
            records.next_fetch_offset = batch.next_offset
            if frame.size_bytes > MAX_BATCH_BYTES:
                break  # the rest is fetched again, once this is out of the way
    except CorruptRecordException:
        # What came before the bad batch is good; it is fetched again and fails on its own next time.
        if not frame.values:
            raise
    frame.next = records.next_fetch_offset
    if frame.next == first:
        return None
    dense = not offsets or offsets[-1] - offsets[0] + 1 == len(offsets)
    frame.offsets = range(offsets[0], offsets[0] + len(offsets)) if dense and offsets else offsets
    return frame


# Plain loops over attributes, and no list of record objects: keeping those alive costs the cyclic garbage
# collector three times the loop itself. Each attribute of each record costs some 30 ns.


def _append_all(frame: Frame, offsets: list[int], batch: Any) -> None:
    """Add a batch that has a record for each of its offsets."""
    values, keys = frame.values, frame.keys
    start = len(values)
    for record in batch:
        values.append(record.value)
        keys.append(record.key)
        headers = record.headers
        if headers:
            frame.headers[len(values) - 1] = headers
    offsets.extend(range(batch.base_offset, batch.base_offset + len(values) - start))


def _append(frame: Frame, offsets: list[int], batch: Any, first: int) -> None:
    """Add those of a batch's records that stand at `first` or behind it."""
    values, keys = frame.values, frame.keys
    for record in batch:
        offset = record.offset
        if offset < first:
            continue  # a batch may begin before the offset that was asked for
        values.append(record.value)
        keys.append(record.key)
        offsets.append(offset)
        headers = record.headers
        if headers:
            frame.headers[len(values) - 1] = headers


def _set_aside(frame: Frame, offsets: list[int], batch: Any, why: TooLarge, first: int) -> None:
    """Note a batch that cannot be read: each of its records, or the whole of it where they are very many."""
    last = batch.next_offset - 1
    each = range(max(first, last + 1 - why.records), last + 1) if why.records <= _NAMED_ONE_BY_ONE else [last]
    for offset in each:
        frame.unread[len(frame.values)] = str(why)
        frame.values.append(None)
        frame.keys.append(None)
        offsets.append(offset)


def _data_batches(records: PartitionRecords) -> Iterator[tuple[Any, memoryview]]:
    """Batches with records to read, and their bytes on the wire; others move the position in passing."""
    memory = records._records
    assert isinstance(memory, Batches)
    while memory.has_next():
        batch = memory.next_batch()
        if records._check_crcs and not batch.validate_crc():
            raise CorruptRecordException(f"invalid CRC in {records._tp} at {batch.base_offset}")
        if _is_hidden(records, batch):
            records.next_fetch_offset = batch.next_offset
            continue
        yield batch, memory.raw


def _is_hidden(records: PartitionRecords, batch) -> bool:
    """Control batches, and those of aborted transactions when only committed ones are read."""
    if records._isolation_level == 1 and batch.producer_id is not None:
        records._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch and records._contains_abort_marker(batch):
            records._aborted_producers.discard(batch.producer_id)
        if batch.is_transactional and batch.producer_id in records._aborted_producers:
            return True
    return bool(batch.is_control_batch)
