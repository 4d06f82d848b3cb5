"""Bases that multiply what they embed themselves, outside their embedding: Pegasus, Falcon-H1.

We hand every base embeddings instead of ids, for virtual tokens have none. Most architectures treat both alike, or
scale inside the embedding (BART, Gemma 3). Some scale only what they have looked up themselves (Pegasus by the square
root of its width: 32 of pegasus-large), so their text must be scaled here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import BadInput

#: Of the largest output. The right factor repeats the base's own arithmetic; a wrong one is off by its own size.
ALIKE = 1e-2


@torch.no_grad()
def scale_of(body: Any, table: nn.Module, ids: Tensor, *, config: Any) -> float:
    """By what `body` multiplies the embeddings of `ids` [1, S] where it is given ids. Found by trying what it may be.

    Raises BadInput where it does more with ids than that: its prompts would be trained on another model.
    """
    embedded, mask = table(ids), torch.ones_like(ids)
    wanted = _hidden(body(input_ids=ids, attention_mask=mask))
    said = (1.0, getattr(body, "embed_scale", None), getattr(config, "embedding_multiplier", None))
    for factor in dict.fromkeys(float(one) for one in said if isinstance(one, int | float)):
        given = _hidden(body(inputs_embeds=embedded * factor, attention_mask=mask))
        if float((given - wanted).abs().max()) <= ALIKE * float(wanted.abs().max()):
            return factor
    what = f"{type(body).__name__} computes something else from tokens than from their embeddings"
    raise BadInput(what, hint="ptq trains what stands among the embeddings, so this architecture cannot be used")


def _hidden(output: Any) -> Tensor:
    return output.last_hidden_state.float()
