"""How candidates are computed: number format, memory layout, compilation. fp32 as the modules are is the rule the others are compared with."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from nas.devices import repeatable
from nas.errors import InputError, did_you_mean

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}

FORMATS = ("fp32", "tf32", *HALF)

WORDS = (*FORMATS, "channels_last", "compile")

_FORMS = 4096


@dataclass(frozen=True, slots=True)
class Numerics:
    """Options of a forward pass.

    Attributes:
        format: "fp32" to the last bit also where CUDA would round products; "tf32" lets it; "bf16" / "fp16" under autocast.
        channels_last: convolution weights in that layout, on copies of the modules, which take as much memory again.
        compiled: modules through `torch.compile`.
    """

    format: str = "fp32"
    channels_last: bool = False
    compiled: bool = False

    @classmethod
    def parse(cls, text: str) -> "Numerics":
        """The options that words separated by commas name, such as `"bf16,channels_last"`.

        >>> Numerics.parse("bf16,compile")
        Numerics(format='bf16', channels_last=False, compiled=True)
        """
        words = [word.strip() for word in text.split(",") if word.strip()]
        for word in words:
            if word not in WORDS:
                raise InputError(f"unknown word '{word}' in numerics '{text}'{did_you_mean(word, WORDS)}")
        formats = [word for word in words if word in FORMATS]
        if len(formats) > 1:
            raise InputError(f"numerics '{text}' name {len(formats)} number formats; name one of {', '.join(FORMATS)}")
        return cls(formats[0] if formats else "fp32", "channels_last" in words, "compile" in words)

    @property
    def plain(self) -> bool:
        """Whether nothing is changed."""
        return self == Numerics()

    def __str__(self) -> str:
        return ",".join([self.format, *(["channels_last"] if self.channels_last else []), *(["compile"] if self.compiled else [])])

    def module(self, module: nn.Module) -> nn.Module:
        """The module to call in place of one as it is; the one given is never changed."""
        if self.channels_last:
            module = copy.deepcopy(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return _compiled(module) if self.compiled else module

    @contextmanager
    def context(self, device: torch.device | str) -> Iterator[None]:
        """Where forward passes run."""
        with repeatable(device, tf32=self.format == "tf32"):
            if self.format not in HALF:
                yield
                return
            with torch.autocast(torch.device(device).type, dtype=HALF[self.format]):
                yield


def _compiled(module: nn.Module) -> nn.Module:
    """The module compiled for each shape it meets. Blocks of one class share its code, of which dynamo compiles 8 forms and runs the others as they are."""
    from torch import _dynamo

    _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, _FORMS)
    _dynamo.config.accumulated_recompile_limit = max(_dynamo.config.accumulated_recompile_limit, _FORMS)
    return torch.compile(module, dynamic=False)  # type: ignore[return-value]


FP32 = Numerics()
