"""Recipes that the tests of this folder start from."""

from __future__ import annotations

#: The design's example, which must be accepted as it stands.
DESIGN = """\
name: e2e-prefix
base: {model: gpt2-medium, revision: main, dtype: bf16}
dataset: e2e@1                       # NAME or NAME@VERSION
task:
  type: generate                     # generate | classify | cloze | tag | span
  input: "{source}"                  # fields in {}; virtual tokens [P:3]; discrete trigger slots [T:3]; [MASK]
  target: "{target}"
  metrics: [bleu, rouge_l]
method: {type: prefix-tuning, length: 10, reparameterization: {hidden: 512}}
train: {steps: 5000, batch_size: 10, lr: 5.0e-5, schedule: linear, warmup: 0, eval_every: 500, seeds: [1, 2, 3]}
resources: {gpus: 1, zero: 0, time_limit: 4h, priority: normal}
sweep: {method.length: [1, 5, 20, 100]}
"""

#: The least that a recipe needs; line 5 is the method, line 6 the training.
SMALL = """\
name: small
base: gpt2
dataset: d
task: {type: generate, input: "{a}", target: "{b}"}
method: {type: prompt-tuning}
train: {steps: 3, lr: 0.1}
"""
