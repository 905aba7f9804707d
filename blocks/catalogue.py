"""The generic reductions that ship with the toolkit: name, where it is, what it does and what it fits. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of `nas blocks`."""

    name: str
    target: str
    does: str
    fits: str


def _entry(name: str, target: str, does: str, fits: str) -> Entry:
    return Entry(name, f"nas.blocks.reductions.{target}", does, fits)


CATALOGUE = (
    _entry("bypass", "depth:Bypass", "hands the first input on; no parameters", "stages that write one tensor, shaped like the first they read"),
    _entry("fewer_layers", "depth:FewerLayers", "keeps a fraction of repeated layers", "two or more layers alike in a Sequential, ModuleList or stage"),
    _entry("bottleneck", "convolutions:Bottleneck", "k x k convolutions between two 1 x 1 at a fraction of the width", "convolutions with k > 1, groups 1"),
    _entry("separable", "convolutions:Separable", "depthwise k x k, then 1 x 1 convolution", "convolutions with k > 1, groups 1"),
    _entry(
        "low_rank",
        "low_rank:LowRank",
        "two thinner layers from the SVD of a layer's weights",
        "linear layers (transformers' Conv1D too) and convolutions with groups 1",
    ),
    _entry("channels", "widths:Channels", "drops the weakest inner channels; what the block reads and writes stays", "convolutions one after the other"),
    _entry("feed_forward", "widths:FeedForward", "drops the weakest hidden units", "linear layers one after the other, gated ones and Conv1D included"),
    _entry(
        "fewer_heads",
        "attention:FewerHeads",
        "keeps the attention heads with the largest weights",
        "attention with q, k, v projections of one width, GPT-2's included",
    ),
    _entry("no_attention", "attention:NoAttention", "attention answers zero, what is added to it remains", "attention of torch, diffusers and transformers"),
    _entry("shared_attention", "attention:SharedAttention", "all heads share one key and value", "attention without rotary embeddings and causal mask"),
    _entry("pooled_attention", "attention:PooledAttention", "keys and values of pooled tokens", "attention without masks and rotary embeddings"),
    _entry("teacher_slice", "slices:TeacherSlice", "the block's own class at other sizes, from the teacher's slices", "blocks whose class is built from sizes"),
)
