"""From the fields of a row to token ids with virtual tokens, for one job on one base.

Layout: [virtual tokens in front] [the tokenizer's opening special tokens] [or behind them] input [closing ones].
A virtual token j of the job's prompt is the negative id -(j+1). Text between two slots is tokenised in one piece, and
text is never more than text: `</s>` or `[MASK]` in a row or in a template's words are not the base's special tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import BadData, BadRecipe
from orchestrator.tasks.template import Mask, Piece, Separator, Template, Text, Virtual, parse
from orchestrator.training.cuts import note
from orchestrator.tuning.forward import decoder_start
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods.method import Slots
from orchestrator.tuning.rows import NO_LABEL, Row


class TextEncoder:
    """Knows the tokenizer, where the virtual tokens of one job go, and how long a row may be."""

    def __init__(self, host: BaseHost, *, slots: Slots, length: int, context: int | None) -> None:
        """`context`: positions that the base has in all, or None (relative positions)."""
        self._host = host
        self.kind = host.kind
        self._infix = slots == "infix"
        self._tokenizer = host.tokenizer
        virtual = list(range(-1, -length - 1, -1))
        self._front = virtual if slots == "front" else []
        self._behind_opening = virtual if slots == "after-bos" else []
        # Positions are shifted by a prefix's length, so a prefix takes context too.
        self._room = None if context is None else context - (length if slots != "template" else 0)
        self._opening, self._closing = _special_tokens(host.tokenizer)
        self._between = _between_two(host.tokenizer, self._opening, self._closing)
        self._templates: dict[str, Template] = {}
        self._shown: list[int] = []
        self._sentinel = _sentinel(host.tokenizer) if host.kind == "seq2seq" else None
        self._special = frozenset({*host.tokenizer.all_special_ids, self._sentinel} - {self.unknown, None})

    def show(self, examples: Sequence[Sequence[int]], separator: str) -> None:
        """Worked examples that stand before every input from now on, `separator` behind each."""
        between = self.tokens(separator)
        self._shown = [token for ids in examples for token in (*ids, *between)]

    @property
    def eos(self) -> int:
        """The end mark. Raises BadRecipe where the tokenizer has none."""
        token = self._tokenizer.eos_token_id
        if token is None:
            what = "the base's tokenizer has no end-of-sequence token, so a written text would have no end"
            raise BadRecipe(what, where="base.model", hint="use a base whose tokenizer names an eos_token")
        return int(token)

    @property
    def unknown(self) -> int | None:
        """The token of what the vocabulary lacks."""
        return None if self._tokenizer.unk_token_id is None else int(self._tokenizer.unk_token_id)

    def infix_at(self, tokens: int) -> int:
        """Where a row's infix stands when its input has so many tokens; 0 for all other methods."""
        return tokens if self._infix else 0

    def has_mask(self, template: str) -> bool:
        return self._parsed(template).masks > 0

    @property
    def mask(self) -> int:
        """What [MASK] is in a row; of the T5 family the first of the sentinels that its missing texts had."""
        token = self._tokenizer.mask_token_id if self._sentinel is None else self._sentinel
        if token is None:
            what = "the base's tokenizer has neither a mask token nor <extra_id_0>"
            raise BadRecipe(what, where="base.model", hint="take [MASK] out of the template")
        return int(token)

    def filling(self, ids: Sequence[int], label: int) -> Row:
        """The row that asks for what is missing at its [MASK], with `label` there.

        BART's decoder is fed the text up to the mask and goes on with the missing word; T5's is fed the sentinel, and
        goes on with what stood there (Lewis et al. 2020, §2.2; Raffel et al. 2020, §3.1.4).
        """
        if self.kind != "seq2seq":
            return Row(list(ids), [label if token == self.mask else NO_LABEL for token in ids], prompt=0)
        text = [token for token in ids if token >= 0]
        before = [self.mask] if self._sentinel is not None else text[: text.index(self.mask)]
        fed = [decoder_start(self._host), *before]
        return Row(list(ids), [*[NO_LABEL] * len(before), label], prompt=0, decoder_ids=fed)

    def reading(self, ids: Sequence[int]) -> Row:
        """The row as a trained head reads it.

        An encoder-decoder base reads it twice, as in transformers' BartForSequenceClassification and
        T5ForQuestionAnswering: its decoder is fed the text shifted by one, so that its state i has read all of the text
        in the encoder, and stands for token i. Virtual tokens are the encoder's alone.
        """
        if self.kind != "seq2seq":
            return Row(list(ids), labels=None, prompt=0)
        text = [token for token in ids if token >= 0]
        return Row(list(ids), labels=None, prompt=0, decoder_ids=[decoder_start(self._host), *text[:-1]])

    def states_before(self, ids: Sequence[int]) -> int:
        """How many states such a row has before those of what follows `ids`."""
        return sum(token >= 0 for token in ids) if self.kind == "seq2seq" else len(ids)

    def is_text(self, token: int) -> bool:
        """Neither virtual nor special, as [MASK] and what opens and closes a row are."""
        return token >= 0 and token not in self._special

    def separator(self, text: str | None) -> list[int]:
        """`text` as tokens; None: the beginning-of-sequence token, else the end-of-sequence token."""
        if text is not None:
            return self.tokens(text)
        token = self._tokenizer.bos_token_id
        return [self.eos if token is None else int(token)]

    def tokens(self, text: str) -> list[int]:
        """`text` alone. Special tokens that it spells are taken apart."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if self._special.isdisjoint(ids):
            return list(ids)
        # Unigram models (T5, ALBERT) hold `</s>` as a piece like any other, which no option takes apart.
        instead = [] if self.unknown is None else [self.unknown]
        return [token for i in ids for token in (instead if i in self._special else [i])]

    def tokens_at(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`text` alone, and the characters that each token stands for. BadRecipe where the tokenizer cannot tell."""
        if not self._tokenizer.is_fast:
            what = "the base's tokenizer does not say which characters a token stands for"
            raise BadRecipe(what, where="base.model", hint="use a base with a tokenizer.json")
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        ids = [self._plain(i) for i in found["input_ids"]]
        return ids, [(int(start), int(end)) for start, end in found["offset_mapping"]]

    def _plain(self, token: int) -> int:
        return token if token not in self._special else 0 if self.unknown is None else self.unknown

    def one_token(self, word: str) -> int | None:
        """The word as one token, as it stands in running text (with a leading space where the tokenizer marks it)."""
        for text in (" " + word, word):
            ids = self.tokens(text)
            if len(ids) == 1 and ids[0] != self.unknown:
                return ids[0]
        return None

    def frame(self, *, tuned: bool) -> tuple[list[int], list[int], list[int]]:
        """What stands before a text (virtual tokens in front too), between two texts, and behind."""
        front, behind = (self._front, self._behind_opening) if tuned else ([], [])
        closing = self._closing if self.kind != "causal" else []
        return [*front, *self._opening, *behind], self._between, closing

    def room(self, limit: int, taken: int) -> int:
        """How many tokens of text fit: at most `limit`, and the base's positions without `taken` others."""
        return limit if self._room is None else min(limit, self._room - taken)

    def decoder_text(self, text: str, *, limit: int | None = None) -> list[int]:
        """A decoder's target, at most `limit` tokens with its end mark; it opens as the tokenizer opens a text.

        BART and its kin begin with `<s>`: they were trained so, and their generation settings force it.
        """
        return self.ended([*self._opening, *self.tokens(text)], limit)

    def ended(self, ids: Sequence[int], limit: int | None) -> list[int]:
        """The text with its end mark; where it has no room, the first `limit` tokens, without."""
        if limit is None or len(ids) < limit:
            return [*ids, self.eos]
        if len(ids) > limit:
            note("target")
        return list(ids[:limit])

    def text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def plain(self, template: str, fields: Mapping[str, str]) -> str:
        """A template without slots as text."""
        return self._parsed(template).render_text(fields)

    def input_ids(
        self,
        template: str,
        fields: Mapping[str, str],
        *,
        limit: int,
        behind: Sequence[int] = (),
        after: int = 0,
        tuned: bool = True,
    ) -> list[int]:
        """The input as ids with `behind` at its end: at most `limit` tokens of text, and room for `after` more.

        When it is too long the fields lose their ends, the longest first: slots and the template's words always stay.
        Never empty: a base starts from its opening token where there is nothing else. Raises BadData when the
        template alone is too long.
        """
        parsed = self._parsed(template)
        closing = self._closing if self.kind != "causal" else []
        room = limit
        if self._room is not None:
            # The slots' places count for the untuned base too: it reads the same text.
            taken = len(self._opening) + len(self._shown) + len(closing) + len(behind) + parsed.virtual_tokens
            room = min(limit, self._room - taken - after)
        pieces = self._fitting(parsed, fields, room)
        body = [token for ids in pieces for token in ids if tuned or token >= 0]
        opening = [*self._front, *self._opening, *self._behind_opening, *self._shown] if tuned else self._opening
        return [*opening, *body, *closing, *behind] or [self.start]

    def body(self, template: str, fields: Mapping[str, str], *, limit: int, mask: Sequence[int] = ()) -> list[int]:
        """The text alone, at most `limit` tokens, with `mask` for [MASK]: no virtual and no special tokens."""
        pieces = self._fitting(self._parsed(template), fields, limit)
        parsed = self._parsed(template)
        masked, parting = [self.mask] if parsed.masks else [], self._parting if parsed.separators else []
        texts = [mask if ids == masked else ids for ids in pieces if ids != parting]
        return [token for ids in texts for token in ids if token >= 0]

    @property
    def start(self) -> int:
        """What a row opens with where there is nothing else."""
        known = (self._tokenizer.bos_token_id, self._tokenizer.cls_token_id, self._tokenizer.eos_token_id)
        return int(next((token for token in known if token is not None), 0))

    def _fitting(self, template: Template, fields: Mapping[str, str], room: int) -> list[list[int]]:
        """The row's pieces; where they are too long, with the most characters a field that leave them short enough."""
        pieces = self._pieces(template, fields)
        if _text_size(pieces) <= room:
            return pieces
        note("input")
        low, high = 0, max((len(fields[name]) for name in template.fields), default=0)
        pieces = self._pieces(template, _cut(fields, low))
        if _text_size(pieces) > room:
            what = "the template alone is longer than the base's context or task.max_input_tokens"
            more = f", with the {len(self._shown)} tokens of the demonstrations" if self._shown else ""
            raise BadData(what + more)
        while high - low > 1:
            middle = (low + high) // 2
            tried = self._pieces(template, _cut(fields, middle))
            if _text_size(tried) <= room:
                low, pieces = middle, tried
            else:
                high = middle
        return pieces

    def _pieces(self, template: Template, fields: Mapping[str, str]) -> list[list[int]]:
        return [self._piece(segment) for segment in template.render(fields)]

    def _piece(self, segment: Piece) -> list[int]:
        if isinstance(segment, Text):
            return self.tokens(segment.text)
        if isinstance(segment, Mask):
            return [self.mask]
        if isinstance(segment, Separator):
            return self._parting
        assert isinstance(segment, Virtual)
        return [-(segment.start + i) - 1 for i in range(segment.count)]

    @property
    def _parting(self) -> list[int]:
        """What [SEP] is in a row."""
        if not self._between:
            what = "the base's tokenizer puts nothing between two texts"
            raise BadRecipe(what, where="base.model", hint="take [SEP] out of the template")
        return self._between

    def _parsed(self, template: str) -> Template:
        if template not in self._templates:
            self._templates[template] = parse(template)
        return self._templates[template]


def _cut(fields: Mapping[str, str], characters: int) -> dict[str, str]:
    return {name: text[:characters] for name, text in fields.items()}


def _text_size(pieces: Sequence[Sequence[int]]) -> int:
    """Tokens that are not virtual."""
    return sum(len(ids) for ids in pieces if ids and ids[0] >= 0)


def _sentinel(tokenizer: Any) -> int | None:
    """The T5 family's <extra_id_0>, which mT5 holds as a piece like any other."""
    for name in ("<extra_id_0>", "▁<extra_id_0>"):
        token = tokenizer.convert_tokens_to_ids(name)
        if isinstance(token, int) and token not in {tokenizer.unk_token_id, -1}:
            return token
    return None


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise BadData("the tokenizer changes a text when it adds its special tokens")


def _between_two(tokenizer: Any, opening: list[int], closing: list[int]) -> list[int]:
    """What the tokenizer puts between two texts: `[SEP]`, or RoBERTa's `</s></s>`."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    pair = list(tokenizer("a", "a")["input_ids"])
    return pair[len(opening) + len(bare) : len(pair) - len(bare) - len(closing)]
