"""The unit that travels: consecutive records of one partition."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import polars as pl
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException

from streams.ledger.commit import Partition
from streams.transport.columns import LEAST_RECORDS, Mixed, Payload, is_bare, read_columns
from streams.transport.inflate import (
    MAX_BATCH_BYTES,
    Batches,
    TooLarge,
    count_of,
    is_dense,
    is_intact,
    payload_of,
    plain,
)

_NAMED_ONE_BY_ONE = 10_000
# Frames of a partition that are walked after one whose records were not alike.
_WALKED = 16
Headers = Sequence[tuple[str, bytes | None]]


def column(values: Iterable[bytes | None]) -> pl.Series:
    """Keys or values of records as a frame holds them: Binary, null where there is none."""
    return pl.Series(list(values), dtype=pl.Binary)


@dataclass(slots=True, eq=False)
class Frame:
    """Records of one partition in the half-open, contiguous range of offsets [first, next).

    `values[i]` and `keys[i]` are of the record at `offsets[i]`, bytes or None; a compacted or transactional
    topic leaves offsets of the range without a record, which count as read all the same. `headers` holds only
    records that have some, by index; `stamps` the index at which each batch begins, with its timestamp;
    `unread` says why a record could not be read, by index. `size_bytes` is what the records take in memory,
    at most; `sent_bytes` what was fetched for them.
    """

    topic: str
    partition: int
    first: int
    next: int
    values: pl.Series
    keys: pl.Series
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
        skip = bisect_left(self.offsets, offset)
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
            size_bytes=_bytes_of(self.values[skip:]),
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
            size_bytes=_bytes_of(self.values[:count]),
        )
        return head, rest


def _bytes_of(values: pl.Series) -> int:
    return int(values.bin.size().sum())


@dataclass(slots=True)
class _Reading:
    """A frame as far as it is read: its parts, in order.

    `ahead` are batches that are read as columns together, as soon as one comes that is not; `records`
    counts theirs, too.
    """

    frame: Frame
    values: list[pl.Series] = field(default_factory=list)
    keys: list[pl.Series] = field(default_factory=list)
    offsets: list[Sequence[int]] = field(default_factory=list)
    records: int = 0
    ahead: list[tuple[Any, memoryview, Payload]] = field(default_factory=list)
    is_mixed: bool = False

    def add(self, batch: Any, raw: memoryview, *, as_columns: bool) -> None:
        """Take the records of a batch that stand at the frame's first offset or behind it."""
        frame, count = self.frame, count_of(raw)
        frame.sent_bytes += len(raw)
        frame.stamps.append((self.records, batch.max_timestamp or -1))
        try:
            content = payload_of(raw)
        except TooLarge as why:
            self._set_aside(batch, why)
            return
        frame.size_bytes += len(content)
        whole = batch.base_offset >= frame.first and is_dense(raw)
        if whole and as_columns and count >= LEAST_RECORDS and is_bare(content):
            self.ahead.append((batch, raw, Payload(count, content)))
            self.records += count
        else:
            self._walk(batch, raw, content, whole=whole)

    def end(self) -> None:
        """Nothing more comes: the frame is what was added."""
        self._read_ahead()
        frame = self.frame
        if self.values:
            frame.values, frame.keys = pl.concat(self.values), pl.concat(self.keys)
        if self.offsets:
            first, last = self.offsets[0][0], self.offsets[-1][-1]
            dense = last - first + 1 == self.records
            frame.offsets = range(first, last + 1) if dense else [*chain.from_iterable(self.offsets)]

    def _read_ahead(self) -> None:
        ahead, self.ahead = self.ahead, []
        if not ahead:
            return
        try:
            read = read_columns([payload for _, _, payload in ahead])
        except Mixed:
            self.is_mixed, read = True, None
        if read is None:
            self.records -= sum(payload.records for _, _, payload in ahead)
            for batch, raw, payload in ahead:
                self._walk(batch, raw, payload.content, whole=True)
            return
        keys, values = read
        self.values.append(values)
        self.keys.append(keys)
        self.offsets += [range(batch.base_offset, batch.next_offset) for batch, _, _ in ahead]

    def _walk(self, batch: Any, raw: memoryview, content: memoryview | bytes, *, whole: bool) -> None:
        self._read_ahead()
        values: list[bytes | None] = []
        keys: list[bytes | None] = []
        offsets: list[int] = []
        first = self.frame.first
        # A plain loop over attributes, and no list of record objects: keeping those alive costs the cyclic
        # garbage collector three times the loop itself. Each attribute of each record costs some 30 ns.
        for record in plain(raw, content) if batch.compression_type else batch:
            if not whole:
                offset = record.offset
                if offset < first:
                    continue  # a batch may begin before the offset that was asked for
                offsets.append(offset)
            values.append(record.value)
            keys.append(record.key)
            headers = record.headers
            if headers:
                self.frame.headers[self.records + len(values) - 1] = headers
        self._take(values, keys, range(batch.base_offset, batch.next_offset) if whole else offsets)

    def _set_aside(self, batch: Any, why: TooLarge) -> None:
        """Note each record of a batch that cannot be read, or the whole of it where they are very many."""
        self._read_ahead()
        last = batch.next_offset - 1
        first = max(self.frame.first, last + 1 - why.records) if why.records <= _NAMED_ONE_BY_ONE else last
        offsets = range(first, last + 1)
        self.frame.unread |= {self.records + number: str(why) for number in range(len(offsets))}
        self._take([None] * len(offsets), [None] * len(offsets), offsets)

    def _take(self, values: list[bytes | None], keys: list[bytes | None], offsets: Sequence[int]) -> None:
        if values:
            self.values.append(column(values))
            self.keys.append(column(keys))
            self.offsets.append(offsets)
            self.records += len(values)


def read_frame(
    records: PartitionRecords, *, topic: str, partition: int, mixed: dict[Partition, int] | None = None
) -> Frame | None:
    """Drain a fetched chunk, whole record batches at a time, without a ConsumerRecord each.

    Leaves `records.next_fetch_offset` behind the chunk, as aiokafka's own iterator would: control
    batches, aborted transactions and sparse batches move the position without giving a record.

    Args:
        mixed: of partitions in whose batches records were not alike, how many frames are walked before they
            are tried as columns again; kept here.

    Raises:
        CorruptRecordException: a batch fails its CRC and no batch before it was good.
    """
    first = records.next_fetch_offset
    frame = Frame(topic, partition, first, first, column(()), column(()), [])
    reading = _Reading(frame)
    rest = mixed.pop((topic, partition), 0) if mixed else 0
    try:
        for batch, raw in _data_batches(records):
            reading.add(batch, raw, as_columns=not rest)
            records.next_fetch_offset = batch.next_offset
            if frame.size_bytes > MAX_BATCH_BYTES:
                break  # the rest is fetched again, once this is out of the way
    except CorruptRecordException:
        # What came before the bad batch is good; it is fetched again and fails on its own next time.
        if not reading.records:
            raise
    reading.end()
    if mixed is not None and (rest := _WALKED if reading.is_mixed else max(rest - 1, 0)):
        mixed[topic, partition] = rest
    frame.next = records.next_fetch_offset
    return None if frame.next == first else frame


def _data_batches(records: PartitionRecords) -> Iterator[tuple[Any, memoryview]]:
    """Batches with records to read, and their bytes on the wire; others move the position in passing."""
    memory = records._records
    assert isinstance(memory, Batches)
    while memory.has_next():
        batch = memory.next_batch()
        if records._check_crcs and not is_intact(batch, memory.raw):
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
