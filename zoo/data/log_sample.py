"""The embedded sample of the log adapters: a process with known probabilities, in which time carries information.

`ITEMS` items in `GENRES` genres of equal size. Each user has a taste (a softmax over genres) that drifts.

- Time. Events come in bursts: after each event the session ends with probability `P_LONG`. Within a session gaps are
  20 to 200 seconds, uniform; between sessions they are log-normal around 2 days (sigma 1). Whether a gap is long
  does not depend on the items.
- Choice. After an item i that came after a *long* gap (the first of its session) the next item is its sequel
  (i + 1 within its genre, cyclic) with probability `P_RULE`; after an item that came after a *short* gap the next one
  is its counterpart (the item with the same place in the next genre) with probability `P_RULE`. Otherwise it is drawn
  from the taste: a genre by the softmax, an item of it with weight 1 / (1 + place).
- Drift. At each new session the taste's logits move by a normal step of scale `DRIFT`.

A model that sees only items can at best guess which rule applies (the long one with probability `P_LONG`); one that
sees the time between the last two events knows it. Ratings (1 to 5) are 5 for items by rule, else uniform.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..seeding import generator

ITEMS, GENRES = 96, 6
P_LONG, P_RULE, DRIFT = 0.4, 0.75, 0.3
FIRST_SECOND = 1_600_000_000


class Events(NamedTuple):
    """Parallel arrays: user and item numbers from 1, rating 1..5, time in seconds."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    time: np.ndarray


def generate(seed: int = 0, users: int = 400, mean_events: int = 24) -> Events:
    """Draw the log: `users` users with 8 + Poisson(mean_events - 8) events each, rows shuffled as logs are."""
    size = ITEMS // GENRES
    popularity = 1 / (1 + np.arange(size))
    popularity /= popularity.sum()
    rows = []
    for user in range(1, users + 1):
        rng = generator(seed, "log-sample", user)
        taste = rng.normal(0, 1, GENRES)
        time = FIRST_SECOND + int(rng.integers(0, 180 * 86_400))
        item, was_long, by_rule = int(rng.integers(ITEMS)), True, False
        for _ in range(8 + int(rng.poisson(mean_events - 8))):
            rows.append((user, item + 1, 5 if by_rule else int(rng.integers(1, 6)), time))
            genre, place = divmod(item, size)
            by_rule = rng.random() < P_RULE
            if by_rule:
                item = genre * size + (place + 1) % size if was_long else (genre + 1) % GENRES * size + place
            else:
                weights = np.exp(taste - taste.max())
                item = int(rng.choice(GENRES, p=weights / weights.sum())) * size + int(rng.choice(size, p=popularity))
            was_long = rng.random() < P_LONG
            if was_long:
                time += int(rng.lognormal(np.log(2 * 86_400), 1.0)) + 3_600
                taste = taste + rng.normal(0, DRIFT, GENRES)
            else:
                time += int(rng.integers(20, 201))
    table = np.array(rows, np.int64)
    table = table[generator(seed, "log-sample", "shuffle").permutation(len(table))]
    return Events(*table.T)
