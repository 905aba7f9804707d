"""The names a command line may use for spaces and optimizers, resolved to objects."""

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nas import arguments
from nas.blocks.catalogue import CATALOGUE
from nas.errors import InputError
from nas.fingerprint import USER_PREFIX, code_identity
from nas.registry import Registry
from nas.user_code import user_code

if TYPE_CHECKING:
    from nas.blocks.recipe import BlockRecipe
    from nas.problem import Problem
    from nas.protocols import Optimizer, OptimizerFactory, Space

SPACES: "Registry[Callable[..., Space]]" = Registry(
    "space",
    "nas.spaces",
    {
        "tocsr_unet": "nas.spaces.tocsr.space:tocsr_unet",
        "tocsr_table": "nas.spaces.tocsr.tabulated:tocsr_table",
        "synthetic": "nas.spaces.synthetic:make_synthetic",
        "nasbench201": "nas.spaces.nasbench201:make_nasbench201",
        "table": "nas.spaces.table:make_table",
    },
    {
        "tocsr_unet": "TOC-SR's nine stages of a latent-diffusion U-Net; small teacher included, or --teacher FOLDER (the default)",
        "synthetic": "synthetic:SEED, a formula like measured landscapes, exact optimum known; nothing to compute",
        "tocsr_table": "26,244 candidates of tocsr_unet, all measured; nothing to compute",
        "nasbench201": "nasbench201:cifar10|cifar100|imagenet, 15,625 measured networks; needs 'stage-nas[bench]'",
        "table": "table:FILE.npz, divergences that `nas tabulate` or you measured before",
    },
)

BLOCKS: "Registry[type[BlockRecipe]]" = Registry("block", "nas.blocks", {entry.name: entry.target for entry in CATALOGUE})

OPTIMIZERS: "Registry[OptimizerFactory]" = Registry(
    "optimizer",
    "nas.optimizers",
    {
        "eps_gp": "nas.optimizers.eps_gp:EpsGP",
        "additive": "nas.optimizers.additive:AdditiveSearch",
        "evolution": "nas.optimizers.evolution:RegularisedEvolution",
        "local": "nas.optimizers.local:LocalSearch",
        "optuna": "nas.optimizers.optuna_samplers:OptunaOptimizer",
        "optuna:gp": "nas.optimizers.optuna_samplers:gp",
        "optuna:nsga2": "nas.optimizers.optuna_samplers:nsga2",
        "optuna:random": "nas.optimizers.optuna_samplers:random",
        "optuna:tpe": "nas.optimizers.optuna_samplers:tpe",
        "paper_gp": "nas.optimizers.paper_gp:PaperGP",
        "random": "nas.optimizers.random_search:RandomSearch",
        "threshold": "nas.optimizers.threshold:ThresholdSearch",
    },
    {
        "eps_gp": "the default: a Gaussian process that knows how block errors compound, over the whole space",
        "additive": "every swap alone, then the exact minimum of the additive model, repaired by what it missed",
        "evolution": "regularised evolution with constraint dominance",
        "local": "hill climbing from the incumbent, one swap, then two",
        "optuna": "optuna:NAME, any sampler of optuna.samplers that needs no arguments, such as optuna:QMCSampler; or optuna:nsga3",
        "optuna:gp": "Optuna's Gaussian process",
        "optuna:nsga2": "Optuna's NSGA-II",
        "optuna:random": "Optuna's random sampler",
        "optuna:tpe": "Optuna's tree-structured Parzen estimator",
        "paper_gp": "TOC-SR's recipe in BoTorch: constrained log expected improvement; one run per eps",
        "random": "uniform over the candidates that the bounds allow",
        "threshold": "one sensitivity threshold for all stages, by bisection",
    },
)


def resolve_space(text: str, **options: Any) -> "Space":
    """The space that `NAME`, `NAME:ARGUMENT` or `path/to/file.py:function` names; options that are None are not passed.

    Raises:
        InputError: unknown name, a file that cannot be loaded, an option that this space does not take, or a function that returns no space.
        UserCodeError: what the file or its function raises.
    """
    head, _, argument = arguments.text("a space's name", text, "tocsr_unet").partition(":")
    from_file = head.endswith(".py")
    factory = function_of_file(Path(head), argument or "make_space") if from_file else SPACES.get(head)
    positional = (argument,) if argument and not from_file else ()
    given = {name: value for name, value in options.items() if value is not None}
    accepted = inspect.signature(factory).parameters
    for name in given:
        if name not in accepted:
            takes = ", ".join(sorted(set(accepted) & {*options, "teacher", "library", "data", "device", "numerics"})) or "none"
            own = f"; to add it, write `def {factory.__name__}({name}=None)`, which is given it as text" if from_file else ""
            raise InputError(f"space '{text}' takes no option '{name}'; it takes: {takes}{own}")
    try:
        inspect.signature(factory).bind(*positional, **given)
    except TypeError as error:
        raise InputError(f"space '{text}': {error}") from None
    with user_code(f"space '{text}'"):
        space: Space = factory(*positional, **given)
    check_is_space(space, f"'{text}' gives")
    return space


def check_is_space(thing: object, what: str) -> None:
    """Raises unless it can be searched; `what` begins the message."""
    if isinstance(thing, type) or not all(hasattr(thing, name) for name in ("space", "fingerprint", "costs", "prepare")):
        kind = f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"
        call = ": call it" if callable(thing) and not isinstance(thing, type) and not hasattr(thing, "parameters") else ""
        raise InputError(f"{what} {kind}, which is no search space{call}; nas.spaces.model.model_space(...) makes one of a model")


def optimizer_factory(text: str) -> "OptimizerFactory":
    """What makes the optimizer that `NAME`, `NAME:ARGUMENT` or `path/to/file.py:NAME` names.

    The argument, such as that of `optuna:tpe`, is the factory's first option that is a text.
    """
    head, _, argument = text.partition(":")
    if head.endswith(".py"):
        return OptimizerOfFile(Path(head), argument)
    if not argument or text in OPTIMIZERS.names():
        return OPTIMIZERS.get(text)
    factory = OPTIMIZERS.get(head)
    options = [name for name, p in inspect.signature(factory).parameters.items() if p.kind is p.KEYWORD_ONLY and isinstance(p.default, str)]
    if not options:
        raise InputError(f"optimizer '{head}' takes no argument, got '{argument}'")
    check = getattr(factory, "check_argument", None)  # an optimizer that knows its arguments refuses a wrong one before anything is computed
    if check is not None:
        check(argument)
    return cast("OptimizerFactory", functools.partial(cast(Callable[..., Any], factory), **{options[0]: argument}))


class OptimizerOfFile:
    """A class or function of a user's Python file as a factory of optimizers; other processes load the file themselves."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self.made_by = function_of_file(path, name, "optimizer")
        check_makes_optimizers(self.made_by, f"optimizer '{path}:{name}'")
        self.__signature__ = inspect.signature(self.made_by)

    def __call__(self, problem: "Problem", seed: int = 0, **options: Any) -> "Optimizer":
        """The optimizer for a problem."""
        with user_code(f"optimizer '{self._path}:{self._name}'"):
            made: Optimizer = self.made_by(problem, seed=seed, **options)
        return check_is_optimizer(made, f"optimizer '{self._path}:{self._name}'")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path, self._name)


def check_makes_optimizers(factory: object, what: str) -> None:
    """Raises unless it can be called with a problem and a seed; `what` begins the message."""
    try:
        inspect.signature(cast(Callable[..., Any], factory)).bind(None, seed=0)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must take (problem, seed=0): {error}") from None


def check_is_optimizer(made: object, what: str) -> "Optimizer":
    """The optimizer itself, or an error that says what it lacks; `what` begins the message."""
    propose = getattr(made, "propose", None)
    if not callable(propose):
        raise InputError(f"{what} gives a {type(made).__name__}, which has no method 'propose(trials, pending=(), n=1)'")
    try:
        inspect.signature(propose).bind((), (), n=1)
    except TypeError as error:
        raise InputError(f"{what}: 'propose' must take (trials, pending=(), n=1): {error}") from None
    return cast("Optimizer", made)


def own_code(text: str) -> dict[str, str]:
    """A hash of the code of an optimizer of a user's file, as a fingerprint; empty for those known by name."""
    factory = optimizer_factory(text) if text.partition(":")[0].endswith(".py") else None
    return {"optimizer": code_identity(factory.made_by)} if isinstance(factory, OptimizerOfFile) else {}


def resolve_optimizer(text: str, problem: "Problem", seed: int = 0, *, delta: float | None = None, keep_dominated: bool = False) -> "Optimizer":
    """The optimizer that a name gives for a problem; options go to those that know them."""
    factory = optimizer_factory(text)
    known = inspect.signature(factory).parameters
    asked = {"delta": delta, "keep_dominated": keep_dominated or None}
    options = {name: value for name, value in asked.items() if value is not None and name in known}
    return check_is_optimizer(cast(Callable[..., Any], factory)(problem, seed, **options), f"optimizer '{text}'")


def check_optimizer(text: str) -> None:
    """Raises unless there is an optimizer of that name that takes its argument, or in that file, which is run; a mere name imports nothing."""
    if text.partition(":")[0].endswith(".py"):
        optimizer_factory(text)
        return
    OPTIMIZERS.check(text.partition(":")[0])
    if ":" in text and text not in OPTIMIZERS.names():
        optimizer_factory(text)


def check_space(text: str) -> None:
    """Raises unless a space of that name, or the file it is to come from, is there; nothing is imported."""
    head = text.partition(":")[0]
    if head.endswith(".py"):
        _check_file(Path(head), "function")
    else:
        SPACES.check(head)


def _check_file(path: Path, wanted: str) -> None:
    if not path.is_file():
        raise InputError(f"no file '{path}'; give path/to/file.py:{wanted}")


def function_of_file(path: Path, function: str, kind: str = "space") -> Any:
    """A function, or for an optimizer a class too, of a Python file, which is run for it; `kind` says what it is for."""
    wanted = "class or function" if kind == "optimizer" else "function"
    _check_file(path, "Name" if kind == "optimizer" else "function")
    spec = importlib.util.spec_from_file_location(f"{USER_PREFIX}{path.stem}", path.resolve())
    if spec is None or spec.loader is None:
        raise InputError(f"'{path}' cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.insert(0, folder)  # its neighbours can be imported, as with `python FILE.py`
    with user_code(f"{kind} file '{path}'"):
        spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        takes = (lambda value: inspect.isfunction(value) or inspect.isclass(value)) if kind == "optimizer" else inspect.isfunction
        known = [name for name, value in vars(module).items() if takes(value) and value.__module__ == spec.name]
        lacks = f"has no {wanted} '{function}'" if function else f"needs the name of a {wanted} after it: {path}:NAME"
        raise InputError(f"'{path}' {lacks}; it has: {', '.join(known) or 'none'}")
    return getattr(module, function)
