"""The unit that travels: consecutive records of one partition."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(slots=True, eq=False)
class Frame:
    """Records of one partition in the half-open, contiguous range of offsets [first, next).

    `values[i]` belongs to `offsets[i]`; a compacted or transactional topic leaves offsets of the range
    without a record, which count as read all the same. `headers` holds only records that have some,
    by index; `stamps` the index at which each batch begins, with its timestamp.
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
    size_bytes: int = 0

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
            size_bytes=sum(map(len, filter(None, self.values[skip:]))),
        )


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
        for batch in _data_batches(records):
            frame.stamps.append((len(frame.values), batch.max_timestamp or -1))
            _append(frame, offsets, batch, first)
            records.next_fetch_offset = batch.next_offset
    except CorruptRecordException:
        # What came before the bad batch is good; it is fetched again and fails on its own next time.
        if not frame.values:
            raise
    frame.next = records.next_fetch_offset
    if frame.next == first:
        return None
    dense = not offsets or offsets[-1] - offsets[0] + 1 == len(offsets)
    frame.offsets = range(offsets[0], offsets[0] + len(offsets)) if dense and offsets else offsets
    frame.size_bytes = sum(map(len, filter(None, frame.values)))
    return frame


def _append(frame: Frame, offsets: list[int], batch: Iterator, first: int) -> None:
    # Plain loops over attributes, and no list of record objects: keeping those alive costs the cyclic
    # garbage collector three times the loop itself.
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


def _data_batches(records: PartitionRecords) -> Iterator:
    """Batches with records to read; the others move the position as they are passed."""
    memory = records._records
    while memory.has_next():
        batch = memory.next_batch()
        if records._check_crcs and not batch.validate_crc():
            raise CorruptRecordException(f"invalid CRC in {records._tp} at {batch.base_offset}")
        if _is_hidden(records, batch):
            records.next_fetch_offset = batch.next_offset
            continue
        yield batch


def _is_hidden(records: PartitionRecords, batch) -> bool:
    """Control batches, and those of aborted transactions when only committed ones are read."""
    if records._isolation_level == 1 and batch.producer_id is not None:
        records._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch and records._contains_abort_marker(batch):
            records._aborted_producers.discard(batch.producer_id)
        if batch.is_transactional and batch.producer_id in records._aborted_producers:
            return True
    return bool(batch.is_control_batch)
