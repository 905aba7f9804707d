"""Attention inside a block, of torch, diffusers or transformers: where its projections are and how it is called."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_NAMES = (("to_q", "to_k", "to_v"), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_HEADS = ("heads", "num_heads", "num_attention_heads")


@dataclass(frozen=True)
class Attention:
    """An attention module with its projections.

    Attributes:
        name: qualified name inside the block; empty when it is the block.
        module: the attention.
        projections: query, key and value; None for torch's, which keeps them in one parameter, and for those with a `fused` layer.
        out: the projection of the heads' outputs; of BERT's kind it stands outside the module.
        heads: how many.
        inside: whether `out` belongs to the module.
        returns_tensor: whether the module returns the bare tensor; else `(tensor, weights or None)`.
        fused: one layer that writes query, key and value side by side, as GPT-2 has it.
    """

    name: str
    module: nn.Module
    projections: tuple[nn.Linear, nn.Linear, nn.Linear] | None
    out: nn.Linear
    heads: int
    inside: bool = True
    returns_tensor: bool = False
    fused: nn.Linear | None = None

    @property
    def heads_attribute(self) -> str:
        """Name of the module's number of heads."""
        return next(name for name in _HEADS if hasattr(self.module, name))


def is_attention(module: nn.Module) -> bool:
    """Whether the module holds query, key and value projections."""
    return (
        isinstance(module, nn.MultiheadAttention)
        or _is_fused(module)
        or any(all(isinstance(getattr(module, n, None), nn.Linear) for n in names) for names in _NAMES)
    )


def _is_fused(module: nn.Module) -> bool:
    """Whether it has GPT-2's two layers; its cross-attention, whose first layer writes key and value only, is another thing."""
    fused, out = getattr(module, "c_attn", None), getattr(module, "c_proj", None)
    return isinstance(fused, nn.Linear) and isinstance(out, nn.Linear) and fused.out_features == 3 * out.in_features and hasattr(module, "num_heads")


def find_attention(root: nn.Module) -> Iterator[Attention]:
    """Every attention whose parts are known."""
    modules = dict(root.named_modules())
    for name, module in modules.items():
        if isinstance(module, nn.MultiheadAttention):
            yield Attention(name, module, None, module.out_proj, module.num_heads)
        elif _is_fused(module):
            layers: Any = module
            yield Attention(name, module, None, layers.c_proj, layers.num_heads, fused=layers.c_attn)
        elif is_attention(module):
            parent = modules.get(name.rpartition(".")[0]) if name else None
            found = _known(name, module, parent)
            if found is not None:
                yield found


def _known(name: str, module: nn.Module, parent: nn.Module | None) -> Attention | None:
    names = next(names for names in _NAMES if all(hasattr(module, n) for n in names))
    query, key, value = (getattr(module, n) for n in names)
    heads = next((getattr(module, n) for n in _HEADS if isinstance(getattr(module, n, None), int)), None)
    if heads is None or query.out_features % heads:
        return None
    candidates: list[Any] = [getattr(module, "o_proj", None), getattr(module, "out_proj", None)]
    if isinstance(getattr(module, "to_out", None), nn.ModuleList | nn.Sequential):
        candidates.append(module.to_out[0])  # type: ignore[index]  # one of the two containers
    inside = next((layer for layer in candidates if isinstance(layer, nn.Linear)), None)
    if inside is not None:
        return Attention(name, module, (query, key, value), inside, heads, returns_tensor=names[0] == "to_q")
    outside = getattr(getattr(parent, "output", None), "dense", None)
    return Attention(name, module, (query, key, value), outside, heads, inside=False) if isinstance(outside, nn.Linear) else None


def hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What an attention module is called with: its first argument, whatever its name."""
    found: Tensor = args[0] if args else kwargs["hidden_states" if "hidden_states" in kwargs else "query"]
    return found
