"""The folded prompt: what training leaves, what is saved, and what the forward takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional

from orchestrator.errors import BadInput

_KEYS_VALUES = "keys_values."


@dataclass(frozen=True)
class Prompt:
    """Virtual tokens of one job, free of any reparameterisation.

    `embeddings` [n, H] are input embeddings; a row places number j with the id -(j+1).
    `keys_values` holds, for each kind of attention (`encoder`, `decoder`, `cross`), [L, 2, kv_heads, n, head_dim]:
    keys (after the rotary step) and values that every layer attends to before the row's own.
    """

    embeddings: Tensor | None = None
    keys_values: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Prompt:
        """No virtual tokens: the untuned base."""
        return cls()

    @property
    def slots(self) -> int:
        """How many virtual tokens a row may place."""
        return 0 if self.embeddings is None else self.embeddings.shape[0]

    @property
    def prefix_length(self) -> int:
        """Positions of the longest prefix of keys and values; the row's own positions start after them."""
        return max((tensor.shape[3] for tensor in self.keys_values.values()), default=0)

    @property
    def length(self) -> int:
        return max(self.slots, self.prefix_length)

    def dropped(self, probability: float) -> Prompt:
        """With dropout on its numbers.

        Each row of a batch wants one of its own: the released codes of prefix tuning and P-tuning v2 repeat the prompt
        for every row, and then draw.
        """
        embeddings = None if self.embeddings is None else functional.dropout(self.embeddings, probability)
        return Prompt(embeddings, {n: functional.dropout(t, probability) for n, t in self.keys_values.items()})

    def detach(self) -> Prompt:
        """The same numbers outside the autograd graph."""
        embeddings = None if self.embeddings is None else self.embeddings.detach()
        return Prompt(embeddings, {name: tensor.detach() for name, tensor in self.keys_values.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, as they are saved."""
        tensors = {_KEYS_VALUES + name: tensor for name, tensor in self.keys_values.items()}
        if self.embeddings is not None:
            tensors["embeddings"] = self.embeddings
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Prompt:
        """The inverse of :meth:`tensors`. Raises BadInput for names or shapes that no prompt has."""
        embeddings = None
        keys_values = {}
        for name, tensor in tensors.items():
            if name == "embeddings" and tensor.dim() == 2:
                embeddings = tensor
            elif name.startswith(_KEYS_VALUES) and tensor.dim() == 5 and tensor.shape[1] == 2:
                keys_values[name.removeprefix(_KEYS_VALUES)] = tensor
            else:
                raise BadInput(f"`{name}` with shape {list(tensor.shape)} is not a part of a prompt")
        return cls(embeddings, keys_values)
