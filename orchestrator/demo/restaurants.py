"""The demo's data: restaurants as records, each described in six forms.

The base is pretrained on all forms without being told which one is wanted; a prompt then selects one. Names are
combinations of two words; validation names never occur in training, so a good score is not memory.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

FORMS = ("plain", "json", "list", "headline", "question", "advert")

_FIRST = (
    "Golden Silver Crooked Quiet Merry Rusty Hidden Laughing Green Little Old Wandering Blue Copper Sleepy Amber "
    "Velvet Brave Ivory Crimson"
).split()
_SECOND = (
    "Fork Lantern Anchor Kettle Olive Rooster Spoon Harbour Garden Barrel Swan Oven Thistle Pepper Table Fox".split()
)
_FOODS = "Thai Greek Indian French Polish Mexican Turkish Italian Korean Spanish".split()
_AREAS = (
    "by the river",
    "near the station",
    "on the market square",
    "in the old town",
    "up the hill",
    "at the harbour",
)
_PRICES = ("cheap", "moderate", "expensive")
_STARS = ("two", "three", "four", "five")


def rows(count: int, *, seed: int, held_out: bool) -> Iterator[dict[str, str]]:
    """`count` rows with the field `record` and one field for each of FORMS.

    A fifth of the names is held out: `held_out` draws from those only, training rows never do.
    """
    rng = random.Random(f"restaurants-{seed}-{held_out}")
    names = [f"{first} {second}" for first in _FIRST for second in _SECOND]
    names = [name for i, name in enumerate(names) if (i * 7 % 5 == 0) == held_out]
    for _ in range(count):
        yield _describe(
            rng.choice(names), rng.choice(_FOODS), rng.choice(_AREAS), rng.choice(_PRICES), rng.choice(_STARS)
        )


def _describe(name: str, food: str, area: str, price: str, stars: str) -> dict[str, str]:
    facts = {"name": name, "food": food, "area": area, "price": price, "stars": stars}
    return {
        "record": " | ".join(f"{key}: {value}" for key, value in facts.items()),
        "plain": f"{name} serves {price} {food} food {area}. Guests give it {stars} stars.",
        "json": json.dumps(facts),
        "list": f"{name}; {food}; {area}; {price}; {stars}",
        "headline": f"{food.upper()} FOOD {area.upper()}: {stars.upper()} STARS FOR {name.upper()}",
        "question": f"Have you tried the {food} food of {name} {area}? It is {price}, and people give {stars} stars!",
        "advert": f"Come to {name} {area} tonight! {stars.capitalize()} stars, {price} prices, "
        f"and all the {food} food you can eat.",
    }
