"""What to cite for a search: the toolkit and the ideas that the run used, as BibTeX."""

from collections.abc import Sequence

import nas

ENTRIES = {
    "stage-nas": f"@software{{stage-nas,\n  title = {{stage-nas: compression of pretrained networks by searching over block substitutions}},\n"
    f"  author = {{{{stage-nas contributors}}}},\n  version = {{{nas.__version__}}},\n  year = {{2026}},\n  license = {{Apache-2.0}}\n}}",
    "toc-sr": "@misc{toc-sr,\n  title = {TOC-SR: Task-Optimal Compact diffusion for Image Super Resolution}\n}",
    "botorch": "@inproceedings{botorch,\n  title = {BoTorch: A Framework for Efficient Monte-Carlo Bayesian Optimization},\n"
    "  author = {Balandat, Maximilian and others},\n  booktitle = {NeurIPS},\n  year = {2020}\n}",
    "gpytorch": "@inproceedings{gpytorch,\n  title = {GPyTorch: Blackbox Matrix-Matrix Gaussian Process Inference with GPU Acceleration},\n"
    "  author = {Gardner, Jacob R. and others},\n  booktitle = {NeurIPS},\n  year = {2018}\n}",
    "logei": "@inproceedings{logei,\n  title = {Unexpected Improvements to Expected Improvement for Bayesian Optimization},\n"
    "  author = {Ament, Sebastian and others},\n  booktitle = {NeurIPS},\n  year = {2023}\n}",
    "optuna": "@inproceedings{optuna,\n  title = {Optuna: A Next-generation Hyperparameter Optimization Framework},\n"
    "  author = {Akiba, Takuya and others},\n  booktitle = {KDD},\n  year = {2019}\n}",
    "regevo": "@inproceedings{regevo,\n  title = {Regularized Evolution for Image Classifier Architecture Search},\n"
    "  author = {Real, Esteban and others},\n  booktitle = {AAAI},\n  year = {2019}\n}",
    "lana": "@inproceedings{lana,\n  title = {LANA: Latency Aware Network Acceleration},\n  author = {Molchanov, Pavlo and others},\n"
    "  booktitle = {ECCV},\n  year = {2022}\n}",
    "puzzle": "@misc{puzzle,\n  title = {Puzzle: Distillation-Based NAS for Inference-Optimized LLMs},\n  author = {Bercovich, Akhiad and others},\n"
    "  year = {2024}\n}",
    "nb201": "@inproceedings{nb201,\n  title = {NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search},\n"
    "  author = {Dong, Xuanyi and Yang, Yi},\n  booktitle = {ICLR},\n  year = {2020}\n}",
}

OF_OPTIMIZER = {
    "eps_gp": ("toc-sr", "botorch", "gpytorch"),
    "paper_gp": ("toc-sr", "botorch", "gpytorch", "logei"),
    "additive": ("toc-sr", "lana", "puzzle"),
    "evolution": ("toc-sr", "regevo"),
    "optuna": ("toc-sr", "optuna"),
}
OF_SPACE = {"nasbench201": ("nb201",)}


def keys(optimizer: str | None = None, space: str | None = None) -> list[str]:
    """Keys of what a search with this optimizer on this space stands on.

    >>> keys("evolution", "nasbench201:cifar10")
    ['stage-nas', 'toc-sr', 'regevo', 'nb201']
    """
    used = ["stage-nas", *OF_OPTIMIZER.get((optimizer or "eps_gp").partition(":")[0], ("toc-sr",))]
    return [*used, *OF_SPACE.get((space or "").partition(":")[0], ())]


def bibtex(wanted: Sequence[str]) -> str:
    """The entries of these keys."""
    return "\n\n".join(ENTRIES[key] for key in wanted)
