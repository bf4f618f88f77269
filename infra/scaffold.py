"""What `tidemill init` writes: a small pipeline, its model, events to play with, and a test of all three."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from schemas.errors import InvalidConfiguration

_PIPELINE = '''\
"""Will this visit end in a purchase? Asked as the visitor comes; the answer follows later."""

from __future__ import annotations

from typing import Annotated

import polars as pl
from msgspec import Meta, Struct

from schemas.features import Trailing
from schemas.topics import Topic, Version, declare
from streams.clean import between, dedupe, require
from streams.pipeline import Labels, Pipeline, Source
from streams.tag import Slice, Tag
from streams.training import Training, better_than_champion, last
from streams.trigger import every, labelled
from streams.window import Tumbling

HOUR_MS = 3_600_000


class Visit(Struct, frozen=True, forbid_unknown_fields=True):
    """What is known when the question is asked. A record that does not look so is a dead letter."""

    visit_id: Annotated[str, Meta(min_length=1, max_length=64)]
    at: Annotated[int, Meta(description="epoch milliseconds, UTC")]
    shop: Annotated[str, Meta(min_length=1)]
    basket: Annotated[float, Meta(description="euros")]


class Outcome(Struct, frozen=True, forbid_unknown_fields=True):
    """The truth about a visit, once it is known."""

    visit_id: Annotated[str, Meta(min_length=1, max_length=64)]
    known: Annotated[int, Meta(description="epoch milliseconds, UTC")]
    shop: Annotated[str, Meta(min_length=1)]
    bought: bool


for name, contract, purpose in (
    ("$name.visits", Visit, "A visit begins."),
    ("$name.outcomes", Outcome, "A visit has ended, with or without a purchase."),
):
    declare(
        Topic(
            name=name,
            purpose=purpose,
            producer="any",
            consumers=("stream worker",),
            key="visit_id",
            versions=(Version(number=1, contracts=(contract,)),),
            partitions=2,
            settings={"message.timestamp.type": "LogAppendTime"},
            unknown_fields="refuse",
        )
    )

outcomes = Source(
    "$name.outcomes",
    schema=Outcome,
    event_time="known",
    key="visit_id",
    clean=[dedupe(within="1d")],
    derive={"buys": pl.col("bought").cast(pl.Float64)},
)

pipeline = Pipeline(
    name="$name",
    source=Source("$name.visits", schema=Visit, event_time="at", key="visit_id"),
    labels=Labels(outcomes, column="buys", within="1d"),
    clean=[require("shop"), between("basket", 0, 1_000, unit="euros"), dedupe(within="1d")],
    tag=[Tag("large", pl.col("basket") >= 60), Slice("shop")],
    columns=["shop", "basket"],
    features=[
        # What was known by then of the shop's last three hours; never anything later.
        Trailing(
            source="$name.outcomes",
            by=("shop",),
            over_ms=3 * HOUR_MS,
            aggregates={"bought_3h": ("mean", "buys"), "outcomes_3h": ("count", "")},
        ),
    ],
    window=Tumbling("6h", lateness="1h"),
    train_when=every(windows=4) & labelled(rows=100),
    train=Training("${name}_model:train", data=last(windows=12)),
    publish_when=better_than_champion("auc", tolerance=0.02),
)
'''

_MODEL = '''\
"""The model of $name: a small perceptron on a visit and on how its shop has been doing."""

from __future__ import annotations

import torch

from schemas.tabular import TabularNetwork
from trainers.context import TrainingContext
from trainers.loader import Loader


def train(ctx: TrainingContext) -> TabularNetwork:
    """Parameters: `epochs` (8), `learning_rate` (0.01)."""
    model = TabularNetwork(_network(ctx)).to(ctx.device)
    loader = Loader(
        (*model.encode(ctx.rows.to_dict(as_series=True)), ctx.labels()),
        batch_rows=256,
        seed=ctx.seed,
        device=ctx.device,
    )
    epochs = int(ctx.params.get("epochs", 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=float(ctx.params.get("learning_rate", 0.01)))
    for epoch in range(epochs):
        for *inputs, truth in loader.epoch():
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(*inputs), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ctx.progress(epoch + 1, epochs, loss=loss.item())
    return model


def _network(ctx: TrainingContext) -> dict:
    shops = ctx.rows.get_column("shop").drop_nulls().unique().sort().to_list()
    numbers = {name: ctx.rows.get_column(name) for name in ("basket", "bought_3h", "outcomes_3h")}
    return {
        "categorical": [{"name": "shop", "vocabulary": shops, "dim": 4}],
        "numeric": [
            {"name": name, "mean": float(column.mean() or 0.0), "scale": float(column.std() or 1.0)}
            for name, column in numbers.items()
        ],
        "calendar": None,
        "hidden": [16],
        "dropout": 0.0,
    }
'''

_EVENTS = '''\
"""Made-up events of $name, for its test and a first look: `python ${name}_events.py` writes them down."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

START_MS = 1_704_067_200_000  # 1 January 2024
MINUTE_MS = 60_000
SHOPS = {"north": 0.5, "south": -0.5, "market": 1.5}


def events(days: int = 3, *, seed: int = 0) -> dict[str, list[dict]]:
    """A visit every two minutes, what came of it 20 minutes later. Large baskets are bought more often."""
    rng = random.Random(seed)
    visits, outcomes = [], []
    for number in range(days * 720):
        at = START_MS + number * 2 * MINUTE_MS
        shop = rng.choice(list(SHOPS))
        basket = round(rng.lognormvariate(3.2, 0.7), 2)
        chance = 1 / (1 + math.exp(-(SHOPS[shop] + (basket - 30) / 15)))
        visit = {"visit_id": f"v{number}", "at": at, "shop": shop}
        visits.append({**visit, "basket": basket})
        known = at + 20 * MINUTE_MS
        bought = rng.random() < chance
        outcomes.append({"visit_id": f"v{number}", "known": known, "shop": shop, "bought": bought})
    return {"$name.visits": visits, "$name.outcomes": outcomes}


if __name__ == "__main__":
    for topic, rows in events().items():
        Path(f"{topic}.ndjson").write_text("".join(json.dumps(row) + "\\n" for row in rows))
        print(f"{topic}.ndjson: {len(rows)} events")
'''

_TEST = '''\
"""What the pipeline keeps, says and learns: by the code that runs live, without a broker."""

from __future__ import annotations

import pytest
from ${name}_events import events
from pipeline import pipeline
from streams.testing import Ran, run
from trainers.testing import train


@pytest.fixture(scope="module")
def ran() -> Ran:
    told = events()
    good = told["$name.visits"][0]
    told["$name.visits"] += [
        {**good, "visit_id": "odd", "basket": -5.0},
        {**good, "visit_id": "unsaid", "shop": None},
        good,  # a second time
    ]
    return run(pipeline, told)


def test_a_negative_basket_and_a_shop_that_is_missing_are_refused_and_say_why(ran: Ran) -> None:
    assert ran.refused() == 2
    assert ran.refused("between(basket)") == 1
    assert {letter.reason for letter in ran.dead_letters} <= {"out_of_range", "missing", "malformed"}


def test_every_event_is_a_row_a_dead_letter_or_a_repeat(ran: Ran) -> None:
    counts = ran.counts["$name.visits"]
    assert counts.dropped == {"dedupe": 1}
    assert counts.events == counts.rows + sum(counts.rejected.values()) + 1


def test_large_baskets_are_tagged(ran: Ran) -> None:
    large = ran.tagged("large").get_column("basket")
    assert len(large) > 0
    assert large.min() >= 60


def test_a_visit_knows_of_its_shop_only_what_was_known_by_then(ran: Ran) -> None:
    first = ran.examples().sort("_time").row(0, named=True)
    assert first["outcomes_3h"] in (0, None)


def test_every_fourth_window_asks_for_a_training(ran: Ran) -> None:
    assert len(ran.windows) == 12
    assert [decision.verdict for decision in ran.decisions].count("yes") == len(ran.jobs) == 3


def test_the_model_learns(ran: Ran) -> None:
    trained = train(ran.jobs[-1])
    assert trained.scores.auc is not None
    assert trained.scores.auc > 0.65
    assert trained.findings == []
'''

_SETTINGS = """\
# Every setting, and where its value comes from: `tidemill config`.
[worker]
pipeline = "pipeline.py"
"""

_README = """\
# $name

    pytest                        # the pipeline and its model, without a broker
    tidemill check pipeline.py    # each mistake with its line, before anything runs
    tidemill up                   # broker, worker and trainer, until Ctrl-C

Events to play with:

    python ${name}_events.py
    tidemill push $name.visits $name.visits.ndjson --pipeline pipeline.py
    tidemill push $name.outcomes $name.outcomes.ndjson --pipeline pipeline.py
    tidemill watch

What edited rules would do, beside the rules as they were committed, on those events or on the cluster's own:

    tidemill try pipeline.py --file $name.visits=$name.visits.ndjson --html try.html
    tidemill try pipeline.py --from 1d
"""

_FILES = {
    "pipeline.py": _PIPELINE,
    "{name}_model.py": _MODEL,
    "{name}_events.py": _EVENTS,
    "test_{name}.py": _TEST,
    "tidemill.toml": _SETTINGS,
    "README.md": _README,
}


def write(folder: Path) -> list[Path]:
    """Write the project into a folder that has its name; gives the files.

    Raises:
        InvalidConfiguration: the name can be no Python module's, or something is in the way; nothing is
            written.
    """
    name = folder.name
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
        raise InvalidConfiguration(
            f"{name!r} names a pipeline and its Python module: write lower-case letters, digits and _, "
            "beginning with a letter"
        )
    files = {
        folder / file.format(name=name): Template(text).substitute(name=name) for file, text in _FILES.items()
    }
    if folder.exists() and not folder.is_dir():
        raise InvalidConfiguration(f"{folder} is a file; choose another name")
    if there := [file for file in files if file.exists()]:
        raise InvalidConfiguration(f"{there[0]} is there already; choose another name, or move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidConfiguration(f"cannot write into {folder}: {error.strerror}") from error
    return list(files)
