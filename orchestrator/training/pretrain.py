"""Pretrain a small base from a recipe (see `recipe.pretrain`). One process, fp32.

    python -m orchestrator.training.pretrain SPEC.json

SPEC.json: {"recipe": a PretrainRecipe, "dataset": folder of the dataset version, "output": folder to make,
"threads": n}.
`ptq base pretrain` writes it and runs this program.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from orchestrator.paths import folder_written_atomically, read_json
from orchestrator.recipe.pretrain import Architecture, PretrainRecipe, PretrainSchedule
from orchestrator.tasks.template import parse
from orchestrator.training.rows import Rows
from orchestrator.tuning.rows import NO_LABEL

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"


def pretrain(recipe: PretrainRecipe, dataset: Path, output: Path) -> None:
    """Train tokenizer and model, write them to `output`; progress goes to standard output."""
    torch.manual_seed(recipe.train.seed)
    rows = list(Rows.open(dataset, "train"))
    forms = [[parse(text) for text in (d.input, d.target) if text is not None] for d in recipe.documents]
    texts = [[[part.render_text(row) for part in parts] for parts in forms] for row in rows]
    masked = recipe.architecture.type == "bert"
    train = train_wordpieces if masked else train_tokenizer
    tokenizer = train((text for row in texts for pair in row for text in pair), recipe.vocab)
    encode = _encode_text if masked else _encode
    encoded = [[encode(tokenizer, pair, recipe.architecture.context) for pair in row] for row in texts]
    model = build_model(recipe.architecture, tokenizer)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens, {len(rows):,} rows",
        flush=True,
    )
    _train(model, encoded, [document.weight for document in recipe.documents], recipe.train, tokenizer.mask_token_id)
    with folder_written_atomically(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


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


def build_model(architecture: Architecture, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model with random weights and tied embeddings."""
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    a = architecture
    if a.type == "bert":
        return BertForMaskedLM(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=a.hidden,
                num_hidden_layers=a.layers,
                num_attention_heads=a.heads,
                intermediate_size=4 * a.hidden,
                max_position_embeddings=a.context,
                pad_token_id=tokenizer.pad_token_id,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
    if a.type == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                n_embd=a.hidden, n_layer=a.layers, n_head=a.heads, n_positions=a.context,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **tokens,
            )
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=a.hidden, num_hidden_layers=a.layers, num_attention_heads=a.heads, num_key_value_heads=a.heads,
            intermediate_size=4 * a.hidden, max_position_embeddings=a.context, **tokens,
        )
    )  # fmt: skip


def learning_rate(step: int, schedule: PretrainSchedule) -> float:
    """Linear warm-up, then cosine decay to a tenth."""
    if step < schedule.warmup:
        return schedule.lr * (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return schedule.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def _encode(tokenizer: PreTrainedTokenizerFast, pair: Sequence[str], context: int) -> list[int]:
    """Text is never more than text: `<|eos|>` in a row ends no document."""
    first, second = tokenizer(list(pair), split_special_tokens=True)["input_ids"]
    return [*first, tokenizer.bos_token_id, *second, tokenizer.eos_token_id][:context]


def _encode_text(tokenizer: PreTrainedTokenizerFast, pair: Sequence[str], context: int) -> list[int]:
    ids: list[int] = tokenizer(pair[0], split_special_tokens=True)["input_ids"]
    return ids if len(ids) <= context else [*ids[: context - 1], ids[-1]]


def _hidden(ids: list[int], mask: int, vocab: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """(inputs, labels): 15 % of the words asked for, of which 80 % are hidden and 10 % others (Devlin et al. 2019)."""
    inputs, labels = list(ids), [NO_LABEL] * len(ids)
    inner = range(1, len(ids) - 1)
    for place in rng.sample(inner, min(len(inner), max(1, round(0.15 * len(inner))))):
        labels[place], luck = ids[place], rng.random()
        if luck < 0.8:
            inputs[place] = mask
        elif luck < 0.9:
            inputs[place] = rng.randrange(vocab)
    return inputs, labels


def _train(
    model: PreTrainedModel,
    rows: list[list[list[int]]],
    weights: list[float],
    schedule: PretrainSchedule,
    mask: int | None,
) -> None:
    """`rows`: for each row its token ids in each form; `mask`: of a masked base."""
    rng = random.Random(schedule.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay, betas=(0.9, 0.98)
    )
    model.train()
    for step in range(schedule.steps):
        batch = [rng.choices(row, weights)[0] for row in rng.choices(rows, k=schedule.batch_size)]
        asked = [(d, d) if mask is None else _hidden(d, mask, model.config.vocab_size, rng) for d in batch]
        ids = pad_sequence([torch.tensor(d) for d, _ in asked], batch_first=True, padding_value=0)
        labels = pad_sequence([torch.tensor(d) for _, d in asked], batch_first=True, padding_value=NO_LABEL)
        # A causal base never sees the padding behind a text; a masked one would.
        seen = {} if mask is None else {"attention_mask": (ids != 0).long()}
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, schedule)
        loss = model(input_ids=ids, labels=labels, **seen).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == schedule.steps - 1:
            print(f"step {step} of {schedule.steps}: loss {loss.item():.4f}", flush=True)


def main(arguments: Sequence[str]) -> None:
    spec = read_json(Path(arguments[0]))
    torch.set_num_threads(int(spec["threads"]))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    pretrain(PretrainRecipe.model_validate(spec["recipe"]), Path(spec["dataset"]), Path(spec["output"]))


if __name__ == "__main__":
    main(sys.argv[1:])
