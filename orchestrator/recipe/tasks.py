"""The `task:` part of a recipe: what goes in, what should come out, how it is scored."""

from __future__ import annotations

from typing import Annotated, Literal, TypeGuard

from pydantic import Field, field_validator, model_validator

from orchestrator.recipe.starts import DIGEST_HELP, Digest, LocalPath
from orchestrator.recipe.strict import Strict
from orchestrator.recipe.text import InputTemplate, TextTemplate, Word, as_text, as_words, is_word
from orchestrator.tasks.choices import Choices, names_fields

INPUT_HELP = (
    "template: {field} of a row, [P:3] virtual tokens, [MASK]; [SEP] where the second of two texts begins (encoders); "
    "plain text stays as it is"
)


Writing = Literal[
    "bleu",
    "nist",
    "webnlg_bleu",
    "webnlg_ter",
    "dart_bleu",
    "ter",
    "meteor",
    "cider",
    "rouge_l_coco",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "exact_match",
    "squad_em",
    "squad_f1",
    "record_em",
    "record_f1",
    "wsc",
    "accuracy",
    "macro_f1",
    "positive_f1",
    "cb",
    "group_exact_match",
]

#: Scores of labels: a text that is none of them is wrong.
OF_LABELS = frozenset({"accuracy", "macro_f1", "positive_f1", "cb", "group_exact_match"})


class Generate(Strict):
    """The base writes the target (causal and encoder-decoder bases)."""

    type: Literal["generate"]
    input: InputTemplate = Field(description=INPUT_HELP)
    target: TextTemplate = Field(description="template of the text to be written")
    separator: str | None = Field(
        None,
        description="text between input and target on a causal base; default: its beginning-of-sequence token "
        "(Li & Liang 2021), else its end-of-sequence token",
    )
    metrics: list[Writing] = Field(
        ["exact_match"],
        min_length=1,
        description="scores of the written texts; rows with equal inputs share references. E2E's five are bleu, nist, "
        "meteor, rouge_l_coco and cider, of which the last three need Java; WebNLG's BLEU and TER are of words in "
        "lower case and ASCII, DART's of words as written, against three references at most; XSum's ROUGE-L is "
        "rouge_l. With `labels`: exact_match and the last five, see `type: classify`",
    )
    labels: list[str] = Field(
        [],
        description="all labels as the target writes them, where it is one: a text that is none of them is wrong, in "
        "F1 too (Raffel et al. 2020), and every row is scored by itself. `init: labels` starts from them",
    )
    group: TextTemplate | None = Field(
        None, description="template of what rows belong together, for `group_exact_match` of labels"
    )
    max_input_tokens: int = Field(512, ge=1, description="longer inputs lose their end")
    max_new_tokens: int = Field(
        64,
        ge=1,
        description="longest text that evaluation and prediction write; longer targets are learned without their end",
    )
    min_new_tokens: int = Field(0, ge=0, description="shortest text that evaluation and prediction write")
    beams: int = Field(1, ge=1, le=64, description="1 is greedy search")
    length_penalty: float = Field(
        1.0, description="with beams: a text's log probability is divided by its length to this power"
    )
    no_repeat_ngram: int = Field(0, ge=0, description="so many tokens in a row are written once at most; 0: no limit")

    @field_validator("labels", mode="before", json_schema_input_type=list[Word])
    @classmethod
    def _labels_as_text(cls, value: object) -> object:
        return as_words(value)

    @model_validator(mode="after")
    def _room_for_the_shortest(self) -> Generate:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens ({self.min_new_tokens}) is above max_new_tokens ({self.max_new_tokens})")
        return self


Choosing = Literal["accuracy", "macro_f1", "positive_f1", "cb", "group_exact_match", "record_em", "record_f1", "wsc"]


class HeadOptions(Strict):
    """A linear classifier on the base's last hidden states, trained with the prompt."""

    pooling: Literal["mean", "cls", "pooler", "last"] | None = Field(
        None,
        description="what the classifier reads. Of an encoder: `cls`, the first token (the default), `mean`, over the "
        "text's tokens, or `pooler`, what the base's own frozen pooler makes of the first token, as the released "
        "P-tuning v2. Of a causal base `last`, the row's last token; of an encoder-decoder one `last`, the decoder's, "
        "which is fed the text too",
    )
    dropout: float = Field(0.0, ge=0, lt=1)


class Classify(Strict):
    """One of a closed list of labels.

    With `head`: a linear classifier on the base. Else with [MASK] in `input`: the label words' scores at the mask
    (a verbalizer; masked bases, BART and T5). Else: the label whose words are the likeliest continuation (causal and
    encoder-decoder bases). What there is to choose from may be the row's own: words with its fields in them, or
    `candidates` in place of labels.
    """

    type: Literal["classify"]
    input: InputTemplate = Field(description=INPUT_HELP)
    label: TextTemplate = Field(
        "{label}",
        description="template of the row's label; with `candidates` of the right one, or of a JSON list of those that "
        "are: rows are trained on once with each",
    )
    labels: dict[str, list[str]] = Field(
        {},
        description="label as it stands in the data -> the words that stand for it; with a head, a list of labels "
        "does. A word with fields in it is the row's own: `{0: '{choice1}', 1: '{choice2}'}` (COPA)",
    )
    candidates: TextTemplate | None = Field(
        None,
        description="in place of `labels`: template of the row's own answers to choose from, as many as it has, a "
        "JSON list of texts or a line each (ReCoRD's entities)",
    )
    holds: TextTemplate | None = Field(
        None,
        description="with `candidates`: template of whether `label` is right, true or false (WSC). Rows where it is "
        "not are left out of training, and score by `wsc`: right is any other candidate",
    )
    head: HeadOptions | None = Field(None, description="classify with a trained head instead of words")
    separator: str | None = Field(
        None, description="text between input and label words on a causal base; default: none"
    )
    soft: TextTemplate | None = Field(
        None,
        description="template of a JSON mapping from labels to probabilities (`ptq predict --ensemble mean` makes it): "
        "a head learns these instead of the label (distillation)",
    )
    temperature: float = Field(1.0, gt=0, description="of the probabilities in `soft`; PET takes 2")
    group: TextTemplate | None = Field(
        None,
        description="template of what rows belong together, for the scores that need it: MultiRC's question, so that "
        "`group_exact_match` counts questions all of whose answers are right",
    )
    metrics: list[Choosing] = Field(
        ["accuracy"],
        min_length=1,
        description="positive_f1: of the label that is last in the alphabet (`1`, `true`, `yes`), MultiRC's F1a; cb: "
        "the mean of accuracy and macro_f1. Of candidates: accuracy (of the only right one), record_em and record_f1 "
        "(the best over several right ones, as ReCoRD's own script), wsc",
    )
    max_input_tokens: int = Field(512, ge=1, description="longer inputs lose their end")

    @field_validator("labels", mode="before", json_schema_input_type=dict[str, list[Word] | Word] | list[Word])
    @classmethod
    def _labels_as_mapping(cls, value: object) -> object:
        if isinstance(value, dict | list) and len(value) == 1:
            raise ValueError("must name two labels at least")
        if isinstance(value, list):
            if len({as_text(label) for label in value if is_word(label)}) != len(value):
                raise ValueError("a label stands twice, or is not a word")
            return {as_text(label): [as_text(label)] for label in value}
        if isinstance(value, dict):
            return {str(label): as_words(words) for label, words in value.items()}
        return value


class Cloze(Strict):
    """One missing word (LAMA): at [MASK] of a masked base, of BART (`<mask>`) or of T5 (`<extra_id_0>`), or right
    behind the input of a causal base."""

    type: Literal["cloze"]
    input: InputTemplate = Field(description=INPUT_HELP)
    target: TextTemplate = Field("{obj_label}", description="template of the missing word")
    vocabulary: LocalPath | None = Field(
        None,
        description="file with a word a line: the only answers there are (LAMA's common vocabulary); default: every "
        "token of the base",
    )
    vocabulary_digest: Digest | None = Field(None, description=f"of that file; {DIGEST_HELP}")
    metrics: list[Literal["p_at_1"]] = Field(
        ["p_at_1"], min_length=1, description="rows whose word is not one token, or not in the vocabulary, are left out"
    )
    max_input_tokens: int = Field(512, ge=1, description="longer inputs lose their end")


class TagHead(Strict):
    """A linear classifier on each word's first token; on a causal base on its last."""

    dropout: float = Field(0.0, ge=0, lt=1)


class Tag(Strict):
    """A tag for every word, by a linear classifier on the base's states (named entities, IOB2)."""

    type: Literal["tag"]
    input: InputTemplate = Field("{tokens}", description="template; the field named by `words` once, as it stands")
    words: str = Field("tokens", min_length=1, description="the field with a row's words: a JSON list, or with spaces")
    tags: TextTemplate = Field("{tags}", description="template of the row's tags: a JSON list, or with spaces")
    labels: list[Annotated[str, Field(min_length=1)]] = Field(min_length=2, description="all tags: O, B-PER, I-PER …")
    head: TagHead = TagHead()
    metrics: list[Literal["entity_f1", "tag_accuracy"]] = Field(
        ["entity_f1"], min_length=1, description="entity_f1: seqeval's, over whole entities"
    )
    max_input_tokens: int = Field(
        512, ge=1, description="words beyond it are left out of training, and count as `O` in scores"
    )


class Span(Strict):
    """The stretch of a context that answers, by two linear scores of each token (SQuAD)."""

    type: Literal["span"]
    input: InputTemplate = Field("{question}", description="template of what stands before the context")
    context: TextTemplate = Field("{context}", description="template of the text that holds the answer")
    answers: TextTemplate = Field(
        "{answers}",
        description="template of the answers: SQuAD's JSON (`text` and `answer_start`), a JSON list of texts, or one "
        "text; training takes the first",
    )
    head: TagHead = TagHead()
    metrics: list[Literal["squad_em", "squad_f1"]] = Field(["squad_em", "squad_f1"], min_length=1)
    max_input_tokens: int = Field(384, ge=16, description="of question and context; longer contexts become windows")
    stride: int = Field(128, ge=1, description="tokens that neighbouring windows share")
    max_answer_tokens: int = Field(30, ge=1)
    unanswerable: bool = Field(False, description="rows may have no answer (SQuAD 2); not on causal bases")


class PlainText(Strict):
    """Running text, learned word by word: the rest of it after a random point (encoder-decoder bases), every next token
    (causal), or 15 % hidden ones (masked)."""

    type: Literal["text"]
    input: InputTemplate = Field("{text}", description="template of the text")
    metrics: list[Literal["perplexity"]] = Field(["perplexity"], min_length=1, description="smaller is better")
    max_input_tokens: int = Field(512, ge=2, description="longer texts lose their end")


Task = Annotated[Generate | Classify | Cloze | Tag | Span | PlainText, Field(discriminator="type")]

#: Keys of a task that hold templates of fields, besides `input`.
_TEMPLATES = ("label", "target", "tags", "context", "answers", "soft", "group", "candidates", "holds")


def task_templates(task: Task) -> list[tuple[str, str]]:
    """(key, template) of everything that names fields of a row, `input` first."""
    found = [(key, getattr(task, key, None)) for key in ("input", *_TEMPLATES)]
    words = [("labels", word) for word in label_words(task) if names_fields(word)]
    return [*((key, text) for key, text in found if isinstance(text, str)), *words]


def label_words(task: Task) -> list[str]:
    """The words of all labels in their order, fields and all; none where the task has no labels."""
    return [word for words in task.labels.values() for word in words] if isinstance(task, Classify) else []


def fixed_words(task: Task) -> list[str]:
    """Those that are the same for all rows; of a task that writes its labels, the labels."""
    if isinstance(task, Generate):
        return list(task.labels)
    return [word for word in label_words(task) if not names_fields(word)]


def own_choices(task: Task) -> TypeGuard[Classify]:
    """Whether rows bring what there is to choose from."""
    return isinstance(task, Classify) and (
        task.candidates is not None or any(names_fields(word) for word in label_words(task))
    )


def choices_of(task: Classify) -> Choices:
    """What a row of the task offers, and what is right there."""
    return Choices(task.labels, task.candidates, task.label, task.holds)


def reads_states(task: Task) -> bool:
    """Whether a trained head reads the base's last hidden states, so that no language-model head is needed."""
    return isinstance(task, Tag | Span) or (isinstance(task, Classify) and task.head is not None)
