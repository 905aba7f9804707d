"""`nas cache`: what is kept between runs, whether it is sound, and its removal."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.amounts import amount
from nas.cli import options
from nas.cli.console import out, print_json

if TYPE_CHECKING:
    from nas.blocks.store import BlockStore
    from nas.blocks.upkeep import Stored
    from nas.evaluators.cache import EvaluationCache

cache = typer.Typer(help="Calibrated blocks and measured values kept between runs: list, verify, prune.", no_args_is_help=True, rich_markup_mode=None)


@cache.command("list")
def list_cache(json: options.Json = False) -> None:
    """List the calibrated blocks and how many measured values there are."""
    from rich.table import Table

    from nas.blocks.upkeep import stored_blocks

    home, store, evaluations = _opened()
    blocks = [_row(stored) for stored in stored_blocks(store)]
    count, values = evaluations.size() if evaluations else (0, 0)
    nbytes = evaluations.path.stat().st_size if evaluations else 0
    if json:
        print_json({"home": str(home), "blocks": blocks, "evaluations": {"candidates": count, "values": values, "bytes": nbytes}})
        return
    shown = Table("key", "stage", "block", "calibration error", "by noise level, least first", "bytes", "made")
    for block in blocks:
        error = f"{block['error']:.4g}" if block["error"] is not None else block["reason"] or "damaged"
        levels = " ".join(f"{value:.2g}" for value in block["by_level"].values())
        shown.add_row(block["key"][:12], block["stage"], block["choice"], error, levels or "-", amount(block["bytes"]), block["made"])
    out.print(shown)
    out.print(f"{len(blocks)} blocks, {amount(sum(b['bytes'] for b in blocks))}B; {count} candidates measured on {values} samples in all, {amount(nbytes)}B")
    out.print(f"in {home}", soft_wrap=True)


@cache.command("verify")
def verify(json: options.Json = False) -> None:
    """Check every block against its manifest and every measured value; exit code 2 if something is damaged."""
    from nas.blocks.upkeep import damage, leftovers

    _, store, evaluations = _opened()
    keys = list(store.keys())
    damaged = {key: text for key in keys if (text := damage(store, key)) is not None}
    values = evaluations.damaged() if evaluations else []
    over = leftovers(store)
    if json:
        print_json({"blocks": len(keys), "damaged_blocks": damaged, "damaged_evaluations": values, "leftovers": [str(path) for path in over]})
    else:
        for text in damaged.values():
            out.print(text, soft_wrap=True)
        out.print(f"{len(keys)} blocks, {len(damaged)} damaged; {len(values)} damaged measured values; {len(over)} leftover folders")
        if damaged or values or over:
            out.print("`nas cache prune` removes them; blocks and values are made again when a search needs them")
    if damaged or values:
        raise typer.Exit(2)


@cache.command("prune")
def prune(
    older_than: Annotated[float | None, typer.Option("--older-than", min=0, help="Remove blocks made more than so many days ago.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Forget blocks whose calibration failed, so that they are tried again.")] = False,
    evaluations: Annotated[bool, typer.Option("--evaluations", help="Forget all measured values.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Remove all blocks and measured values.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    json: options.Json = False,
) -> None:
    """Remove what is damaged or left over by killed processes, and what the options name."""
    from nas.blocks.upkeep import damage, folder_bytes, leftovers, remove, stored_blocks

    _, store, values = _opened()
    before = time.time() - (older_than or 0) * 86400

    def goes(stored: "Stored") -> bool:
        has_failed = failed and stored.record is not None and stored.record.error is None
        return everything or has_failed or (older_than is not None and stored.made < before) or damage(store, stored.key) is not None

    folders = [store.folder(stored.key) for stored in stored_blocks(store) if goes(stored)] + leftovers(store)
    nbytes = sum(map(folder_bytes, folders))
    dropped = 0
    if values is not None:
        forget_all = evaluations or everything
        dropped = values.size()[0] if forget_all else len(values.damaged())
        if not dry_run:
            values.drop(None if forget_all else values.damaged())
    for folder in () if dry_run else folders:
        remove(folder)
    if json:
        print_json({"removed": [str(folder) for folder in folders], "bytes": nbytes, "evaluations": dropped, "dry_run": dry_run})
    else:
        would = "would be removed" if dry_run else "removed"
        out.print(f"{len(folders)} folders of blocks ({amount(nbytes)}B) and the values of {dropped} candidates {would}")


def _opened() -> "tuple[Path, BlockStore, EvaluationCache | None]":
    """The cache folder, its blocks, and its measured values if there are any."""
    from nas.blocks.store import BlockStore
    from nas.evaluators.cache import EvaluationCache
    from nas.home import nas_home

    home = nas_home()
    path = home / "evaluations.db"
    return home, BlockStore(home / "blocks"), EvaluationCache(path) if path.exists() else None


def _row(stored: "Stored") -> dict[str, Any]:
    record = stored.record
    return {
        "key": stored.key,
        "stage": record.stage if record else None,
        "choice": record.choice if record else None,
        "error": record.error if record else None,
        "reason": record.reason if record else "",
        "by_level": dict(record.by_level) if record else {},
        "bytes": stored.nbytes,
        "seconds": record.seconds if record else None,
        "made": time.strftime("%Y-%m-%d %H:%M", time.localtime(stored.made)),
    }
