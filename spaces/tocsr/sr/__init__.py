"""Super-resolution with a compact backbone (Section 3.3 of [TOC-SR]): pairs, conditional diffusion, one step, pipeline, metrics."""

from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline as TOCSRPipeline
