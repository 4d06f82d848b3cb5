"""What the papers say of the rows of the proof of learning."""

from __future__ import annotations

from collections.abc import Iterable

from tests.benchmarks import learning_e2e as e2e
from tests.benchmarks import learning_heads as heads
from tests.benchmarks import learning_lama as lama
from tests.benchmarks import learning_masks as masks
from tests.benchmarks.learning_ensembles import ensemble_claims
from tests.benchmarks.learning_plan import Claim, Plan
from tests.benchmarks.learning_text import text_claims


def all_claims() -> list[Claim]:
    return [
        *_generation_claims(),
        *text_claims(),
        *_head_claims(),
        *_lama_claims(),
        *_prompt_claims(),
        *ensemble_claims(),
        *_word_claims(),
    ]


def _by_row(plans: Iterable[Plan]) -> dict[str, Plan]:
    return {plan.row: plan for plan in plans}


def _generation_claims() -> list[Claim]:
    its = _by_row(e2e.e2e_rows())
    design, prompts, whole = its["prompt design"], its["prompt tuning, n 20"], its["fine-tuning"]
    prefixes, lora = its["prefix tuning, n 10"], its["LoRA, rank 8"]
    one, _, ten, forty = e2e.prefix_lengths()
    off, on = e2e.networks()
    front, infix, embeddings = e2e.places()
    none, some, more = e2e.adapted_bases()
    return [
        Claim("E2E: a tuned prompt is above prompt design (Lester)", prompts, design),
        Claim("E2E: prefix tuning is no worse than fine-tuning (Li & Liang: 69.7, 68.2)", prefixes, whole, same=True),
        Claim("E2E: keys and values in every layer do more than embeddings (Li & Liang)", prefixes, prompts),
        Claim("E2E: LoRA is no worse than a prefix (Hu et al.: 70.4, 69.7)", lora, prefixes, same=True),
        Claim("prefix length: 10 does more than 1 (Li & Liang)", ten, one),
        Claim("prefix length: tables gain nothing beyond 10 (Li & Liang)", ten, forty, same=True),
        Claim("prefix start: words' activations beat random numbers (Li & Liang)", *reversed(e2e.prefix_starts())),
        Claim("reparameterisation on beats off, each at its own rate (Li & Liang)", on, off),
        Claim("an infix is a little below a prefix (Li & Liang: 67.2, 69.7)", front, infix),
        Claim("embedding-only is far below a prefix (Li & Liang: 62.2, 69.7)", front, embeddings),
        Claim("LM adaptation: some steps beat none (Lester)", some, none),
        Claim("LM adaptation: more steps beat fewer (Lester)", more, some),
    ]


def _head_claims() -> list[Claim]:
    head, prompts, deep, biases, whole = heads.sst2_rows()
    found = [
        Claim("SST-2: deep prompts add to a head alone (P-tuning v2)", deep, head),
        Claim("SST-2: deep prompts beat embeddings (P-tuning v2)", deep, prompts),
        Claim("SST-2: deep prompts reach fine-tuning (P-tuning v2)", deep, whole, same=True),
        Claim("SST-2: biases alone reach fine-tuning (BitFit)", biases, whole, same=True),
    ]
    few = heads.fewglue_rows()
    for prompts, whole in zip(few[1::3], few[2::3], strict=True):
        found.append(
            Claim(f"{prompts.part}: 32 rows let a prompt reach fine-tuning (P-tuning)", prompts, whole, same=True)
        )
    return found


def _lama_claims() -> list[Claim]:
    found = []
    for relation in lama.RELATIONS:
        its = _by_row(one for one in lama.lama_rows() if one.part.endswith(relation))
        tuned, shots = its["P-tuning, (3, sub, 3, obj)"], its["prompt design, manual, 2 examples"]
        found += [
            Claim(f"LAMA {relation}: P-tuning beats the manual prompt", tuned, its["prompt design, manual"]),
            Claim(f"LAMA {relation}: P-tuning beats worked examples (Lester, of GPT-3)", tuned, shots),
            Claim(f"LAMA {relation}: P-tuning beats words found by gradients", tuned, its["AutoPrompt, 3 words"]),
            Claim(f"LAMA {relation}: P-tuning is no worse than fine-tuning", tuned, its["fine-tuning"], same=True),
        ]
    return found


def _prompt_claims() -> list[Claim]:
    one, _, twenty, forty = lama.prompt_lengths()
    vocabulary, random, text, another, mean = lama.prompt_starts()
    off, on = lama.prompt_networks()
    sampled, uniform, labels = masks.label_starts()
    mixed = lama.mixture_rows()
    return [
        Claim("prompt length: 20 does more than 1 on small bases (Lester)", twenty, one),
        Claim("prompt length: little is gained beyond 20 (Lester)", twenty, forty, same=True),
        Claim("prompt start: vocabulary beats random numbers (Lester)", vocabulary, random),
        Claim("prompt start: the task's words beat random numbers (Lester, Li & Liang)", text, random),
        Claim("prompt start: another relation's prompt beats vocabulary (SPoT)", another, vocabulary),
        Claim("prompt start: the mean of two others' beats vocabulary (SPoT)", mean, vocabulary),
        Claim("prompt start, SST-2: vocabulary beats random numbers (Lester)", sampled, uniform),
        Claim("prompt start, SST-2: class labels beat random numbers (Lester)", labels, uniform),
        Claim("residual network: on beats off (Razdaibiedina et al.)", on, off),
        *(
            Claim(f"mixture: {own.row.partition(',')[0]}, one prompt for three is no worse", three, own, same=True)
            for own, three in zip(mixed[0::2], mixed[1::2], strict=True)
        ),
    ]


def _word_claims() -> list[Claim]:
    found = []
    for dataset, (part, *_) in masks.WORDS.items():
        its = _by_row(one for one in masks.words_rows() if one.dataset == dataset)
        design, prompts = its["prompt design"], its["prompt tuning, n 10"]
        found.append(Claim(f"{part}: a tuned prompt beats prompt design (Lester)", prompts, design))
        if dataset in masks.IN_FULL:
            frozen, trained = (its[f"PET, two patterns, base {how}"] for how in ("frozen", "trained"))
            found += [
                Claim(f"{part}: WARP beats PET on the frozen base (WARP)", its["WARP, n 4"], frozen),
                Claim(f"{part}: two patterns are no worse than one (PET)", trained, its["fine-tuning"], same=True),
            ]
    chinese = _by_row(masks.chinese_rows())
    warp, frozen, tuned = (chinese[row] for row in ("WARP, n 4", "PET, two patterns, base frozen", "P-tuning, n 4"))
    return [
        *found,
        Claim("EPRSTMT: WARP beats PET on the frozen base (WARP)", warp, frozen),
        Claim("EPRSTMT: P-tuning beats prompt design (P-tuning)", tuned, chinese["prompt design"]),
    ]
