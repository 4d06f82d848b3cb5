"""From the fields of a row to token ids with virtual tokens, for one job on one base.

Layout: [virtual tokens in front] [the tokenizer's opening special tokens] input [closing special tokens].
A virtual token j of the job's prompt is the negative id -(j+1). Text between two slots is tokenised in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from orchestrator.errors import BadData
from orchestrator.tasks.template import Mask, Piece, Template, Text, Virtual, parse
from orchestrator.tuning.host import BaseHost

Slots = Literal["front", "template", "none"]


class TextEncoder:
    """Knows the tokenizer, where the virtual tokens of one job go, and how long a row may be."""

    def __init__(self, host: BaseHost, *, slots: Slots, length: int, context: int | None) -> None:
        """`context`: positions that the base has in all, or None (relative positions)."""
        self.kind = host.kind
        self._tokenizer = host.tokenizer
        self._front = list(range(-1, -length - 1, -1)) if slots == "front" else []
        # Positions are shifted by a prefix's length, so a prefix takes context too.
        self._room = None if context is None else context - (length if slots != "template" else 0)
        self._opening, self._closing = _special_tokens(host.tokenizer)
        self._templates: dict[str, Template] = {}

    @property
    def eos(self) -> int:
        return int(self._tokenizer.eos_token_id)

    @property
    def vocabulary(self) -> int:
        return len(self._tokenizer)

    def has_mask(self, template: str) -> bool:
        return self._parsed(template).masks > 0

    @property
    def mask(self) -> int:
        return int(self._tokenizer.mask_token_id)

    def separator(self, text: str | None) -> list[int]:
        """`text` as tokens; None: the beginning-of-sequence token, else the end-of-sequence token."""
        if text is not None:
            return self.tokens(text)
        token = self._tokenizer.bos_token_id
        return [int(self._tokenizer.eos_token_id if token is None else token)]

    def tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def plain(self, template: str, fields: Mapping[str, str]) -> str:
        """A template without slots as text."""
        return self._parsed(template).render_text(fields)

    def input_ids(self, template: str, fields: Mapping[str, str], *, limit: int, after: int = 0, tuned: bool = True) -> list[int]:
        """The input as ids, at most `limit` tokens of text, with room for `after` more tokens behind it.

        When it is too long the longest text loses its end, so slots and the mask always stay.
        """
        pieces = [self._piece(segment, tuned=tuned) for segment in self._parsed(template).render(fields)]
        closing = self._closing if self.kind != "causal" else []
        fixed = len(self._opening) + len(closing)
        room = limit if self._room is None else min(limit, self._room - fixed - after)
        _shorten([ids for ids in pieces if ids and ids[0] >= 0], room - sum(len(i) for i in pieces if i and i[0] < 0))
        body = [token for ids in pieces for token in ids]
        return (self._front if tuned else []) + self._opening + body + closing

    def _piece(self, segment: Piece, *, tuned: bool) -> list[int]:
        if isinstance(segment, Text):
            return self.tokens(segment.text)
        if isinstance(segment, Mask):
            return [int(self._tokenizer.mask_token_id)]
        assert isinstance(segment, Virtual)
        return [-(segment.start + i) - 1 for i in range(segment.count)] if tuned else []

    def _parsed(self, template: str) -> Template:
        if template not in self._templates:
            self._templates[template] = parse(template)
        return self._templates[template]


def _shorten(texts: list[list[int]], room: int) -> None:
    """Cut the ends of the longest lists, in place, until all fit into `room` together."""
    excess = sum(len(ids) for ids in texts) - room
    while excess > 0:
        longest = max(texts, key=len, default=[])
        if len(longest) <= 1:
            raise BadData("the template alone is longer than the base's context")
        second = sorted(map(len, texts))[-2] if len(texts) > 1 else 1
        cut = min(excess, max(1, len(longest) - second), len(longest) - 1)
        del longest[-cut:]
        excess -= cut


def _special_tokens(tokenizer: object) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])  # type: ignore[operator]
    full = list(tokenizer("a")["input_ids"])  # type: ignore[operator]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise BadData("the tokenizer changes a text when it adds its special tokens")
