"""Listening to a model: forward hooks that live as long as a `with` block, and never longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


@contextmanager
def outputs(modules: Sequence[nn.Module], see: Callable[[int, Float[Tensor, "rows seq d"]], None]) -> Iterator[None]:
    """Call ``see(index, hidden states)`` after each forward of each module; outputs are not changed."""
    with ExitStack() as stack:
        for index, module in enumerate(modules):

            def hook(_module: nn.Module, _inputs: Any, output: Any, index: int = index) -> None:
                see(index, output[0] if isinstance(output, tuple) else output)

            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def inputs(module: nn.Module, see: Callable[[Float[Tensor, "rows seq d"]], None]) -> Iterator[None]:
    """Call ``see(hidden states)`` with the first argument of each forward of a decoder layer."""

    def hook(_module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        see(positional[0] if positional else named["hidden_states"])

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
