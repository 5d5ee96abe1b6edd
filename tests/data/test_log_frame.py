"""A log as a DataFrame: the same checks, split and hashes as the same events in a file; rows told by position."""

import datetime

import numpy as np
import pandas as pd
import pytest
from statezoo.zoo.api import create_dataset
from statezoo.zoo.data.log_sample import generate
from statezoo.zoo.errors import ZooError

EVENTS = generate(0, users=60)
COLUMNS = {"user": "customer", "item": "sku", "time": "sold_at"}


def frame(**changed):
    """The sample's log with an index that is no position and a column beside."""
    columns = {"customer": EVENTS.user, "sku": EVENTS.item, "sold_at": EVENTS.time, "price": EVENTS.rating * 1.5}
    made = pd.DataFrame(columns | changed)
    made.index = 1000 + np.arange(len(made))[::-1]
    return made


def error_of(data, **options):
    with pytest.raises(ZooError) as caught:
        create_dataset("log", data=data, **COLUMNS | options).prepare()
    text = str(caught.value)
    assert "\n" not in text and ".parquet" not in text, text
    return text


KINDS = {
    "int64": {},
    "text": {"customer": EVENTS.user.astype(str), "sku": EVENTS.item.astype(str)},
    "nullable": {"customer": pd.array(EVENTS.user, dtype="Int64"), "sku": pd.array(EVENTS.item.astype(str), "string")},
    "categories": {"customer": pd.Categorical(EVENTS.user), "sku": pd.Categorical(EVENTS.item.astype(str))},
    "times with a zone": {"sold_at": pd.to_datetime(EVENTS.time, unit="s", utc=True).tz_convert("Europe/Oslo")},
    "time stamps of Python": {
        "sold_at": [datetime.datetime.fromtimestamp(t, datetime.timezone.utc) for t in EVENTS.time.tolist()]
    },
    "ISO text": {"sold_at": [f"{pd.Timestamp(t, unit='s').isoformat()}Z" for t in EVENTS.time]},
    "whole floats": {"sold_at": EVENTS.time.astype(np.float64)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["leave-two-out", "global-time"])
def test_split_is_that_of_the_same_events_in_a_file(kind, split, tmp_path):
    frame().to_csv(tmp_path / "log.csv", index=False)
    by_file = create_dataset("log", root=tmp_path, **COLUMNS, split=split)
    by_frame = create_dataset("log", data=frame(**KINDS[kind]), **COLUMNS, split=split)
    assert by_frame.prepare() == by_file.prepare()
    assert by_frame.split_hash() == by_file.split_hash() and by_frame.counts == by_file.counts
    for name, part in by_file.parts.items():
        assert by_frame.part(name).ids.tolist() == part.ids.tolist()


def test_manifest_is_a_hash_of_the_three_columns():
    first = create_dataset("log", data=frame(), **COLUMNS).manifest()
    renamed = frame(price=0).rename(columns={"customer": "user"}).sample(frac=1, axis=1, random_state=0)
    assert create_dataset("log", data=renamed, **COLUMNS | {"user": "user"}).manifest() == first
    later = frame()
    later.iloc[5, 2] += 1
    assert create_dataset("log", data=later, **COLUMNS).manifest() != first
    assert create_dataset("log", data=frame(sku=EVENTS.item.astype(str)), **COLUMNS).manifest() != first
    assert len(first["DataFrame"]) == 64


def test_it_is_a_data_set_like_any_other():
    module = create_dataset("log", data=frame(), **COLUMNS, max_len=9).datamodule(batch_size=8)
    module.setup()
    assert next(iter(module.train_dataloader()))["items"].shape == (8, 9)
    assert create_dataset("log", data=frame(), **COLUMNS).check()["samples"]["test"] == 60


def at(column, row, value, dtype=object):
    values = frame()[column].astype(dtype).tolist()
    values[row] = value
    return frame(**{column: values})


MISSING = pd.array([None if row == 7 else user for row, user in enumerate(EVENTS.user)], dtype="Int64")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (frame(customer=MISSING), "DataFrame: row 7: no user id; complete or delete the row"),
        (at("customer", 7, ""), "DataFrame: row 7: column 'customer' mixes int and str; make it int64 or text through"),
        (at("sku", 3, "", str), "DataFrame: row 3: no item id; complete or delete the row"),
        (at("sku", 0, "12.0", str), "DataFrame: row 0: item id '12.0' is a decimal number, mixing id types"),
        (at("sold_at", 11, -5), "DataFrame: row 11: negative time -5; times count from 1970-01-01"),
        (at("sold_at", 11, 10**13), "DataFrame: row 11: time 10000000000000 lies in the future"),
        (at("sold_at", 2, "soon", str), "DataFrame: row 2: time 'soon' is neither a whole number nor ISO 8601"),
        (frame(customer=EVENTS.user * 1.0), "DataFrame: row 0: column 'customer' holds double ids, which mixes id typ"),
        (frame(sku=pd.Categorical(EVENTS.item * 1.0)), "DataFrame: row 0: column 'sku' holds double ids"),
        (frame(sold_at=EVENTS.time.astype(np.float32)), "DataFrame: row 0: a float cannot tell time"),
        (frame(sold_at=pd.to_datetime(EVENTS.time, unit="s")), "DataFrame: row 0: times without a time zone"),
        (frame(sold_at=pd.to_datetime(EVENTS.time * 1000 + 1, unit="ms", utc=True)), "DataFrame: row 0: time 2"),
        (frame(sku=[[1]] * len(EVENTS.item)), "DataFrame: column 'sku' holds list<"),
        (frame(sku=[2**70] * len(EVENTS.item)), "DataFrame: column 'sku' holds int values that are no ids"),
        (frame(sku=EVENTS.item > 3), "DataFrame: column 'sku' holds bool; make it int64, text or"),
        (frame(customer=None), "DataFrame: row 0: no user id"),
        (frame().rename(columns={"sku": "skus"}), "DataFrame: unknown column 'sku'; did you mean 'skus'? (set item=NA"),
        (frame().rename(columns={"price": "sku"}), "DataFrame: 2 columns are named 'sku'; rename all but one"),
        (frame().set_index("customer"), "DataFrame: unknown column 'customer'; "),
        (frame().iloc[:0], "DataFrame: holds no rows; give a log with at least one event per row"),
        (pd.concat([frame(), frame().iloc[[4]]]), f"DataFrame: row {len(EVENTS.item)}: repeats an earlier event"),
        ({"customer": [1]}, "data is a dict; give a pandas DataFrame, or a file"),
        ("log.csv", "data is a str; give a pandas DataFrame"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_by_position(data, message):
    assert error_of(data).startswith(message)


def test_one_source_alone_and_only_where_columns_are_named(tmp_path):
    assert "are two sources of one log; give one" in error_of(frame(), root=tmp_path)
    for name, told in (
        (
            "ml-100k",
            "ml-100k reads no DataFrame; leave data= out and give its folder by root=, or create_dataset(",
        ),
        ("digits", "digits reads no DataFrame; leave data= out and give its folder by root="),
    ):
        with pytest.raises(ZooError) as caught:
            create_dataset(name, data=frame())
        assert str(caught.value).startswith(told)


def test_a_column_for_options_of_reading():
    times = EVENTS.time * 1000 + 7
    data = create_dataset("log", data=frame(sold_at=times), **COLUMNS, time_unit="ms")
    assert data.part("test").batch(np.arange(1))["times"].max() % 1000 == 7
