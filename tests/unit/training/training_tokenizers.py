"""Small tokenizers of the kinds that real bases have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from orchestrator.training.texts import Slots, TextEncoder

WORDS = "the film was good bad great awful it is a red cat house and river stone bird"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
NAMES = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
KINDS = {"gpt2": "causal", "llama": "causal", "roberta": "masked", "bert": "masked", "t5": "seq2seq", "bart": "seq2seq"}


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """gpt2: byte-level BPE, eos for everything; llama: words marked in front, bos; roberta and bart: byte-level BPE
    between <s> and </s>; t5: words marked in front, </s> behind; bert: lower-cased words between [CLS] and [SEP]."""
    if name == "bert":
        return _bert()
    if name in {"llama", "t5"}:
        return _marked(name)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>"] if name == "gpt2" else SPECIAL
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([WORDS, f" {WORDS}"] * 5, trainer)
    if name == "gpt2":
        end = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
        return PreTrainedTokenizerFast(tokenizer_object=made, **end)
    made.post_processor = _around("<s> $A </s>", made)
    return PreTrainedTokenizerFast(tokenizer_object=made, mask_token="<mask>", cls_token="<s>", **NAMES)


def encoder(name: str, *, slots: Slots = "front", length: int = 0, context: int | None = None) -> TextEncoder:
    host: Any = SimpleNamespace(kind=KINDS[name], tokenizer=tokenizer(name))
    return TextEncoder(host, slots=slots, length=length, context=context)


def _marked(name: str) -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    for piece in ["▁", *(f"▁{word}" for word in WORDS.split()), *"abcdefghijklmnopqrstuvwxyz.,!?</>[]|_ABEKLMSO"]:
        vocabulary.setdefault(piece, len(vocabulary))
    made = Tokenizer(models.Unigram([(piece, -1.0 * len(piece) ** 0.5) for piece in vocabulary], unk_id=3))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.post_processor = _around("<s> $A" if name == "llama" else "$A </s>", made)
    return PreTrainedTokenizerFast(tokenizer_object=made, **NAMES)


def _bert() -> PreTrainedTokenizerFast:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator([f"{WORDS} [ ] mask ."], trainers.WordLevelTrainer(special_tokens=names))
    made.post_processor = _around("[CLS] $A [SEP]", made)
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), names, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def _around(single: str, made: Tokenizer) -> Any:
    names = [token for token in single.split() if not token.startswith("$")]
    return processors.TemplateProcessing(single=single, special_tokens=[(n, made.token_to_id(n)) for n in names])
