"""Rows of the E2E kind with several references, for scores that are compared with official figures."""

from __future__ import annotations

SAID = [
    "The Eagle is a cheap coffee shop near Burger King, rated 3 out of 5.",
    "Clowns is a riverside pub.",
    "Alimentum serves Chinese food for under £20 in the city-centre; it is not family friendly",
]
WANTED = [
    [
        "The Eagle is a low-priced coffee shop near Burger King. It is rated 3 out of 5.",
        "Near Burger King there is a cheap coffee shop called The Eagle.",
    ],
    ["Clowns is a pub by the riverside.", "There is a riverside pub, Clowns, with a low rating.", "Clowns is a pub."],
    ["Alimentum is a Chinese restaurant in the city centre. It is not family friendly and costs less than £20."],
]
