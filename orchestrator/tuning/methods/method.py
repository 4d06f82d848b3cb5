"""What every method is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from orchestrator.tuning.prompt import Prompt

#: Where a row's ids name the virtual tokens: in front of everything, behind the tokenizer's opening special tokens,
#: where the template says, or nowhere. `infix`: nowhere, and the keys and values are seen from the input's end on.
Slots = Literal["front", "after-bos", "template", "none", "infix"]


class TunedMethod(Protocol):
    """An nn.Module that owns the trained parameters of one job, and makes its prompt from them."""

    length: int  #: n, virtual tokens
    slots: Slots
    training: bool

    def prompt(self) -> Prompt:
        """The prompt with its graph, once a step. A network's own dropout draws from torch's generator here.

        That of what the network makes is `Prompt.dropped`.
        """
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def to(self, *args: Any, **kwargs: Any) -> Any: ...
