"""Tokenizers of the bases that are pretrained here, trained on the same texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Tokenizer

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"

AnyTokenizer = PreTrainedTokenizerFast | T5Tokenizer

SENTINELS = [f"<extra_id_{number}>" for number in range(100)]


def train_tokenizer(texts: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: no text is out of vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def train_wordpieces(texts: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """BERT's: words in pieces, Chinese characters apart, upper and lower case as they are."""
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab, special_tokens=list(names.values()), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    around = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=around
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def train_sentence_pieces(texts: Iterable[str], vocab: int) -> T5Tokenizer:
    """T5's: `<pad>`, `</s>`, `<unk>`, pieces of words with their log likelihoods (Unigram), and the sentinels last.

    BPE finds the pieces, and how often it uses each is its likelihood: the trainer of Unigram models ends in another
    vocabulary each time. Characters beyond half the vocabulary, the rarest, are unknown.
    """
    made, read = T5Tokenizer(), list(texts)
    special = [made.pad_token, made.eos_token, made.unk_token]
    pieces = vocab - len(SENTINELS)
    tokenizer = Tokenizer(models.BPE(unk_token=made.unk_token))
    tokenizer.pre_tokenizer = made.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=pieces, special_tokens=special, limit_alphabet=pieces // 2, show_progress=False
    )
    tokenizer.train_from_iterator(read, trainer)
    used = Counter(piece for text in tokenizer.encode_batch(read) for piece in text.tokens)
    scores = {piece: math.log(max(used[piece], 0.5) / used.total()) for piece in tokenizer.get_vocab()}
    inline = sorted(tokenizer.get_vocab().items(), key=lambda one: one[1])
    told = [(piece, 0.0 if piece in special else scores[piece]) for piece, _ in inline]
    return T5Tokenizer(vocab=[*told, *((sentinel, 0.0) for sentinel in reversed(SENTINELS))])
