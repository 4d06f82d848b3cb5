"""E2E table-to-text with a small decoder that is pretrained here: three methods beside the untuned base.

make proof-e2e
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.benchmarks.e2e_forms import write_forms
from tests.benchmarks.report import REPOSITORY, ptq, real_data, write_page
from tests.benchmarks.results_of import train

METHODS = ("prompt-tuning", "prefix-tuning", "p-tuning")
MARGIN = 10.0  # BLEU above the untuned base
FILES = {"train": "src1_train.lines00001-20000.txt", "validation": "src1_valid.txt", "test": "src1_test.txt"}


def main() -> int:
    data = real_data("e2e")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_forms(data / FILES["train"], home / "forms.jsonl")
        ptq(home, "dataset", "add", "e2e-forms", "--train", str(home / "forms.jsonl"))
        ptq(home, "base", "pretrain", str(REPOSITORY / "recipes" / "e2e" / "base.yaml"), "-o", str(home / "base"))
        ptq(home, "base", "add", "e2e-small", str(home / "base"))
        files = [f"--{split}={data / name}" for split, name in FILES.items()]
        ptq(
            home,
            "dataset",
            "add",
            "e2e",
            "--format",
            "delimited",
            "--delimiter",
            "||",
            "--columns",
            "source,target",
            *files,
        )
        results = train(home, [REPOSITORY / "recipes" / "e2e" / f"{method}-small.yaml" for method in METHODS])
    rows, samples = [], []
    for result in results:
        tuned, base = result["metrics"]["test"], result["baseline"]["test"]
        scores = [f"{part[name]:.1f}" for name in ("bleu", "rouge_l") for part in (base, tuned)]
        rows.append(
            [
                result["method"],
                result["length"],
                result["steps"],
                *scores,
                f"{result['bytes'] / 1024:.0f}",
            ]
        )
        samples.append(f"- {result['method']}: {result['samples'][0]['tuned']}")
    first = results[0]["samples"][0]
    text = f"""
The E2E challenge (20,000 training lines, 630 test inputs with several references each) on a decoder of 1 M parameters
that `recipes/e2e/base.yaml` pretrains on the training records in four forms, without saying which form is wanted. BLEU
is sacrebleu's, 13a, lower case, as in the official script. Test inputs occur in no pretraining document.

The first validation input, `{first["input"]}`:

- untuned: {first["base"]}
{chr(10).join(samples)}
- one reference: {first["target"]}
"""
    columns = ["method", "n", "steps", "BLEU, untuned", "BLEU", "ROUGE-L, untuned", "ROUGE-L", "KiB"]
    write_page("e2e", "E2E on a small decoder", "make proof-e2e", text, columns, rows)
    return 0 if all(r["metrics"]["test"]["bleu"] > r["baseline"]["test"]["bleu"] + MARGIN for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
