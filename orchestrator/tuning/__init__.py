"""Prompts on frozen language models: torch and transformers, and nothing of ours above the ground floor and recipes.

    host = BaseHost.load(folder, kind="causal")
    method = build_method(PromptTuning(type="prompt-tuning", length=20), host, length=None, generator=generator)
    output = forward(host, RowBatch.collate(rows, pad_id=host.pad_id), [method.prompt()])

Letters in shapes: B rows, S tokens, T target tokens, n virtual tokens, H width, L layers, V vocabulary, M labelled
positions, k prompts (jobs) in one batch.
"""

from __future__ import annotations

from orchestrator.tuning.artifact import load_prompt, save_prompt
from orchestrator.tuning.forward import Output, forward, generate
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.loading import Loaded, load
from orchestrator.tuning.methods import METHODS, TunedMethod, build_method
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.rows import Row, RowBatch

__all__ = [
    "METHODS",
    "BaseHost",
    "Loaded",
    "Output",
    "Prompt",
    "Row",
    "RowBatch",
    "TunedMethod",
    "build_method",
    "forward",
    "generate",
    "load",
    "load_prompt",
    "save_prompt",
]
