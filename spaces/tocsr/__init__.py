"""TOC-SR's reference space: a latent-diffusion U-Net in nine stages, its block library, its teachers and winners."""

from nas.spaces.tocsr.compact import CompactUNet as CompactUNet
from nas.spaces.tocsr.space import tocsr_unet as tocsr_unet
