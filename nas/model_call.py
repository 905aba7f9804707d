"""How a model is called with named samples, and which tensor of its output counts."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nas.errors import InputError, did_you_mean
from nas.layout import tensors_of


@dataclass(frozen=True)
class ModelCall:
    """Calls a model with samples by name.

    Args:
        inputs: `(model, inputs) -> output` for signatures with tuples or dicts; by default inputs are passed by keyword if the
            model's forward names them, else in their order.
        constants: further keyword arguments, such as `return_dict=False`.
        output: which part of the output counts: a key or attribute (`"logits"`), an index, or a function; by default the one tensor there is.
    """

    inputs: Callable[[nn.Module, Mapping[str, Tensor]], Any] | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    output: str | int | Callable[[Any], Tensor] | None = None

    def __call__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """The output that counts, `(n, ...)`."""
        result = self.select(self.run(model, inputs))
        n = len(next(iter(inputs.values())))
        if not isinstance(result, Tensor) or result.shape[:1] != (n,):
            got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise InputError(f"the model's output must be a tensor with a row for each of the {n} samples, got {got}; choose another one with output=")
        return result

    def run(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """All that the model returns."""
        if self.inputs is not None:
            return self.inputs(model, inputs)
        known = inspect.signature(model.forward).parameters
        any_keyword = any(p.kind is p.VAR_KEYWORD for p in known.values())
        strange = [name for name in inputs if name not in known]
        if strange and len(strange) < len(inputs) and not any_keyword:
            raise InputError(f"the model's forward has no '{strange[0]}'{did_you_mean(strange[0], known)}; name inputs as forward does, or give call=")
        if (unknown := [name for name in self.constants if name not in known]) and not any_keyword:
            raise InputError(f"the model's forward has no '{unknown[0]}' to be given by constants={did_you_mean(unknown[0], known)}")
        by_keyword = any_keyword or not strange
        return model(**inputs, **self.constants) if by_keyword else model(*inputs.values(), **self.constants)

    def select(self, result: Any) -> Any:
        """The part of it that counts."""
        if callable(self.output):
            return self.output(result)
        if self.output is None:
            found = tensors_of(result)
            if len(found) != 1:
                names = [str(name) for name in result] if isinstance(result, Mapping) else [str(k) for k in range(len(found))]
                raise InputError(f"the model returns {len(found)} tensors ({', '.join(names)}); choose one with output=")
            return found[0]
        if isinstance(self.output, str) and isinstance(result, Tensor):
            raise InputError(f"the model returns one tensor, which has no part '{self.output}'; leave output= out")
        if isinstance(self.output, str) and not isinstance(result, Mapping):
            if not hasattr(result, self.output):
                raise InputError(f"the model's output has no '{self.output}'{did_you_mean(self.output, [n for n in dir(result) if n[0] != '_'])}")
            return getattr(result, self.output)
        try:
            return result[self.output]
        except (KeyError, IndexError, TypeError):
            known = [str(name) for name in result] if isinstance(result, Mapping) else [str(k) for k in range(len(tensors_of(result)))]
            raise InputError(f"the model's output has no '{self.output}'{did_you_mean(str(self.output), known)}") from None
