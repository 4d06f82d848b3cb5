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

# Sets of triples and what was written for them. Upper case, letters with accents, words joined by a hyphen, digits with
# a point, punctuation against words; a row has one, two, three or four references, of which three are compared.
TRIPLES_SAID = [
    "Críona Ní Dhálaigh leads Dublin , which is in Leinster .",
    "The Al-Taqaddum Air Base's runway is 3684.0 long.",
    "AIDS (journal) is published in the United Kingdom, whose leader is Elizabeth II.",
    "Buzz Aldrin was born in glen ridge … New Jersey",
]
TRIPLES_WANTED = [
    ["Dublin's leader is Críona Ní Dhálaigh.", "Criona Ni Dhalaigh leads Dublin in Leinster."],
    ["The runway length of Al Taqaddum Air Base is 3684.0."],
    [
        "The AIDS journal is published in the UK, the leader of which is Elizabeth II.",
        "AIDS (journal) comes from the United Kingdom whose leader is Elizabeth II .",
        "Elizabeth II leads the United Kingdom, where AIDS (journal) is published.",
        "AIDS (journal) is published in the United Kingdom, whose leader is Elizabeth II.",
    ],
    ["Buzz Aldrin's birthplace is Glen Ridge, New Jersey.", "Buzz Aldrin was born in Glen Ridge … New Jersey.", "X."],
]

# Summaries: words of three letters and fewer are not stemmed, a hyphen parts words, other letters than a-z are none.
SUMMARIES_SAID = [
    "Thousands of protesters are marching through Cardiff's streets over well-paid jobs.",
    "The café has been closed, police said.",
    "dies",
]
SUMMARIES_WANTED = [
    ["A protest march through Cardiff's street as thousands of protesters wanted jobs that pay well."],
    ["Police say that a cafe was closing."],
    ["A man died."],
]

# SuperGLUE. `maybe` is a label of none: what a base may write where it writes its answers.
BOOLQ_SAID = ["true", "false", "true", "maybe", "True"]
BOOLQ_WANTED = ["true", "true", "true", "false", "true"]
CB_SAID = ["entailment", "neutral", "entailment", "contradiction", "entailment", "contradiction", "neutral"]
CB_WANTED = ["entailment", "entailment", "contradiction", "contradiction", "entailment", "neutral", "entailment"]
CB_WRITTEN = [*CB_SAID[:-1], "maybe"]
MULTIRC_SAID = ["1", "0", "1", "1", "0", "0", "1"]
MULTIRC_WRITTEN = ["1", "maybe", "1", "1", "0", "maybe", "1"]
MULTIRC_WANTED = ["1", "0", "1", "0", "0", "1", "1"]
MULTIRC_QUESTIONS = ["0-0", "0-0", "0-0", "0-1", "0-1", "1-0", "1-1"]
RECORD_SAID = ["the U.S.", "The", "Smith", "New York City", "Mr. Smith"]
RECORD_WANTED = [["US", "United States"], ["A"], ["John Smith", "Smith's"], ["New York", "City of New York"], ["Jones"]]
# What was written, the span that the row asks about, and whether the pronoun stands for it.
WSC_ROWS = [
    ("The cat", "cat", True),
    ("Bob", "Bob's hat", True),
    ("Bob", "Bob's hat", False),
    ("my father", "the old father of Tim", True),
    ("dog", "the cat", False),
    ("the", "the cat", False),
    ("her", "her", True),
    ("Tim", "her", True),
]

# SQuAD: articles and punctuation, an answer that is an article (hepatitis A), several answers, and rows without one.
SQUAD_SAID = ["the Denver Broncos!", "in 1066", "a", "An hepatitis a", "well-known", "", "x x y"]
SQUAD_WANTED = [
    ["Denver Broncos", "Broncos"],
    ["1066", "year 1066"],
    ["A"],
    ["A", "hepatitis A"],
    ["well known"],
    ["A"],
    ["x y y"],
]
SQUAD2_SAID = [*SQUAD_SAID, "", "something", "the"]
SQUAD2_WANTED: list[list[str]] = [*SQUAD_WANTED, [], [], []]

# Named entities: a wrong type, a wrong end, I- behind O or behind another type, two entities side by side.
TAGS_SAID = ["B-PER I-PER O B-LOC", "I-ORG I-ORG O", "B-PER I-LOC I-LOC", "B-LOC B-LOC O O", "O O B-MISC"]
TAGS_WANTED = ["B-PER I-PER O B-ORG", "B-ORG I-ORG O", "B-PER B-LOC I-LOC", "B-LOC I-LOC O O", "O O O"]

# LAMA: a base's scores of eight tokens for each row, those that may be answers, and the right one.
LAMA_SCORES = [
    [9.0, 1.0, 2.0, 8.0, 0.0, 3.0, 7.0, 1.5],
    [0.0, 5.0, 5.5, 1.0, 9.0, 2.0, 3.0, 4.0],
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    [3.0, 2.0, 9.0, 2.5, 1.0, 0.0, 8.0, 2.0],
]
LAMA_ALLOWED = [1, 2, 3, 5]
LAMA_WANTED = [3, 1, 5, 2]

# TER by hand: a block of words that moves is one edit; of several references the one with the fewest edits counts, over
# their mean length.
TER_SAID = ["D e a b c", "x y", "a b"]
TER_WANTED = [["a b c d e"], ["x z w", "y x"], ["a c", "b"]]
TER_EDITS = (1 + 1 + 1) / (5 + 2.5 + 1.5)
