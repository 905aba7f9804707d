"""Files and folders of pictures enlarged: each result is whole or not there, and a batch that was interrupted goes on with what is left."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nas.errors import InputError, NasError
from nas.files import MANIFEST, sha256_of
from nas.progress import Progress
from nas.spaces.tocsr.data import picture_files
from nas.spaces.tocsr.sr.images import is_deep, note_of, read_picture, write_picture
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline


@dataclass(frozen=True, slots=True)
class Task:
    """A picture and where its result goes."""

    source: Path
    result: Path


@dataclass(frozen=True, slots=True)
class How:
    """What decides a result besides the picture and the model."""

    steps: int = 1
    tile: int = 64
    overlap: int = 8
    seed: int = 0


def tasks_of(given: Path, wanted: Path, progress: Progress | None = None) -> list[Task]:
    """What is to be done for `IN OUT`: a file to a file or into a folder; a folder's pictures to a folder, stem and subfolder kept, as PNG.

    The folder of the results is made if its own parent is there.

    Raises:
        InputError: nothing is there, no picture is in it, two pictures would make the same file, a result would replace or stand among the originals,
            or there is no folder to put the result in.
    """
    if not given.exists():
        raise InputError(f"no picture or folder '{given}'")
    if not wanted.absolute().parent.is_dir():
        raise InputError(f"cannot write '{wanted}': there is no folder '{wanted.parent}'; make it, or correct its name")
    if given.is_file():
        target = wanted / f"{given.stem}.png" if wanted.is_dir() or not wanted.suffix else wanted
        if target.resolve() == given.resolve():
            raise InputError(f"the result would replace the picture '{given}'; give another file")
        return [Task(given, target)]
    if wanted.is_file():
        raise InputError(f"'{wanted}' is a file; results of a folder go to a folder")
    inside = wanted.resolve()
    if inside == given.resolve():
        raise InputError(f"results would stand among the originals in '{given}'; give another folder")
    found = [path for path in picture_files(given, progress) if not path.resolve().is_relative_to(inside)]
    tasks = [Task(path, wanted / path.relative_to(given).with_suffix(".png")) for path in found]
    if not tasks:
        raise InputError(f"no pictures in '{given}' besides the results in '{wanted}'")
    _check_names(tasks)
    return tasks


def upscale(pipeline: TOCSRPipeline, tasks: list[Task], how: How, model: str, progress: Progress) -> Iterator[Path]:
    """Does the tasks one by one and yields each result; one that stands already, from the same picture, model and options, is passed over.

    Raises:
        InputError: a picture cannot be read (of several the others are done first), or a result cannot be written.
    """
    wrong: list[str] = []
    for task in progress.track(tasks, "pictures") if len(tasks) > 1 else tasks:
        try:
            note = _note(task.source, how, model)
            if len(tasks) == 1 or note_of(task.result) != note:
                _enlarge(pipeline, task, how, note, progress)
            yield task.result
        except Unreadable as error:
            wrong.append(str(error))
            if len(tasks) > 1:
                progress.note(str(error))
    if wrong:
        raise InputError(wrong[0] if len(tasks) == 1 else f"{len(wrong)} of {len(tasks)} pictures could not be enlarged: {wrong[0]}")


class Unreadable(NasError):
    """A picture that cannot be read; the others of a batch can."""


def _enlarge(pipeline: TOCSRPipeline, task: Task, how: How, note: str, progress: Progress) -> None:
    try:
        picture = read_picture(task.source)
    except InputError as error:
        raise Unreadable(str(error)) from error
    if is_deep(task.source):
        progress.note(f"{task.source} has more than 8 bits a channel; its result has 8")
    (images,) = pipeline(picture, how.steps, tile=how.tile, overlap=how.overlap, seed=how.seed, return_dict=False)
    try:
        task.result.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {task.result}: {error.strerror}; choose another place") from error
    write_picture(task.result, images[0], note)


def _note(source: Path, how: How, model: str) -> str:
    """Names a result by all that decides it."""
    try:
        content = sha256_of(source)
    except OSError as error:
        raise Unreadable(f"{source} must be a picture: {error.strerror}") from error
    return hashlib.sha256(f"{content} {model} {how}".encode()).hexdigest()[:16]


def _check_names(tasks: list[Task]) -> None:
    seen: dict[Path, Path] = {}
    for task in tasks:
        if task.result in seen:
            raise InputError(f"'{seen[task.result]}' and '{task.source}' would both become '{task.result}'; rename one of them")
        seen[task.result] = task.source


def model_key(folder: Path) -> str:
    """What tells one pipeline folder from another: its manifest, or its index if it has none."""
    return sha256_of(folder / MANIFEST if (folder / MANIFEST).is_file() else folder / "model_index.json")
