"""A word that a tokenizer makes one token is never refused; the tokenizer itself is the judge."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from orchestrator.errors import BadInput
from orchestrator.recipe.vocabulary import unknown_words, words_of_several_tokens

TEXT = "Great great good films, naïve café 好 差 棒 the Ünder bad good Good terrible Ⅳ ﬁne fine " * 4


def trained(folder: Path, kind: str) -> Tokenizer:
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[MASK]"])
    elif kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=["<mask>"], initial_alphabet=alphabet)
    else:
        entries = [f"▁{word}" for word in TEXT.split()] + sorted(set(TEXT)) + ["▁"]
        made = Tokenizer(
            models.Unigram([("<unk>", 0.0), *((e, -len(e) / 9) for e in dict.fromkeys(entries))], unk_id=0)
        )
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = None
    if trainer is not None:
        made.train_from_iterator([TEXT], trainer)
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return made


def tokens(tokenizer: Tokenizer, word: str) -> list[list[str]]:
    """As it stands in running text and alone, as `training.objectives.verbalizer` asks."""
    return [tokenizer.encode(text, add_special_tokens=False).tokens for text in (" " + word, word)]


@pytest.fixture(scope="module", params=["wordpiece", "bytes", "unigram"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, trained(folder, request.param)


WORDS = st.sampled_from(TEXT.split()) | st.text("aegdorGÜüéI好差棒 .-", min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(WORDS)
def test_one_token_is_never_refused(tokenizer: tuple[Path, Tokenizer], word: str) -> None:
    folder, judge = tokenizer
    single = [made[0] for made in tokens(judge, word) if len(made) == 1]
    if single and word.strip() and set(single).isdisjoint({"[UNK]", "<unk>"}):
        assert words_of_several_tokens(folder, [word]) == []


def test_several_tokens_are_refused(tokenizer: tuple[Path, Tokenizer]) -> None:
    folder, judge = tokenizer
    known = next(word for word in TEXT.split() if any(len(made) == 1 for made in tokens(judge, word)))
    for word in ("very good", "zzzqqq", "好好", "goodbad"):
        assert all(len(made) > 1 or made in (["[UNK]"], ["<unk>"]) for made in tokens(judge, word)), word
        assert words_of_several_tokens(folder, [known, word]) == [word]


def test_a_vocabulary_without_a_tokenizer_file(tmp_path: Path) -> None:
    assert words_of_several_tokens(tmp_path, ["anything"]) == []
    (tmp_path / "vocab.txt").write_text("[MASK]\ngood\n好\n", encoding="utf-8")
    assert words_of_several_tokens(tmp_path, ["Good", "好", "bad"]) == ["bad"]
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    assert words_of_several_tokens(tmp_path, ["anything"]) == []
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match=r"tokenizer\.json: cannot be read"):
        words_of_several_tokens(tmp_path, ["anything"])


@settings(max_examples=150, deadline=None)
@given(WORDS)
def test_what_can_be_written_is_never_called_unknown(tokenizer: tuple[Path, Tokenizer], word: str) -> None:
    folder, judge = tokenizer
    if word.strip() and any({"[UNK]", "<unk>"}.isdisjoint(made) for made in tokens(judge, word)):
        assert unknown_words(folder, [word]) == []


def test_unknown_words(tokenizer: tuple[Path, Tokenizer]) -> None:
    """Byte-level and Unigram vocabularies have none that their files alone can tell."""
    folder, judge = tokenizer
    unknown = all({"[UNK]"} & set(made) for made in tokens(judge, "q\u2603"))
    assert unknown_words(folder, ["good", "q\u2603"]) == (["q\u2603"] if unknown else [])
