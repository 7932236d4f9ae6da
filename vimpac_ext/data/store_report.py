"""What `tools/extract_tokens.py` says about a store, as text or JSON."""

import json
from dataclasses import asdict
from pathlib import Path

from vimpac_ext.data.store_check import check_store
from vimpac_ext.data.store_repair import repair_store
from vimpac_ext.data.store_stats import StoreStatistics, store_statistics


def verification(folder: str | Path, repair: bool, as_json: bool) -> tuple[str, bool]:
    """Check a store and, if asked, leave out what is damaged.

    Args:
        folder: of the store.
        repair: leave damaged videos out.
        as_json: give JSON in place of text.

    Returns:
        The report, and whether the store was whole.

    Raises:
        ValueError: the folder is not a token store, or is being written.
    """
    check = check_store(folder, progress=True)
    put_aside = repair_store(folder, check) if repair else []
    if as_json:
        content = {
            "num_videos": check.num_videos,
            "num_frames": check.num_frames,
            "problems": [problem._asdict() for problem in check.problems],
            "put_aside": [str(path) for path in put_aside],
        }
        return json.dumps(content, indent=2), not check.problems
    lines = [*map(str, check.problems)]
    lines.append(
        f"{folder}: {check.num_videos} videos with {check.num_frames} frames are whole, "
        f"{len(check.problems)} problems"
    )
    if check.problems and not repair:
        lines.append("--repair leaves the damaged videos out; extract again to have them back")
    lines += [f"put aside, to be deleted: {path}" for path in put_aside]
    return "\n".join(lines), not check.problems


def statistics(folder: str | Path, as_json: bool) -> str:
    """Statistics of a store, as text or JSON.

    Raises:
        ValueError: the folder is not a token store, or a video in it is damaged.
    """
    result = store_statistics(folder, progress=True)
    return _as_json(result) if as_json else _as_text(result)


def _as_json(result: StoreStatistics) -> str:
    content = asdict(result)
    content["hours"] = result.hours
    content["bad_videos"] = [bad._asdict() for bad in result.bad_videos]
    return json.dumps(content, indent=2)


def _as_text(result: StoreStatistics) -> str:
    meta, lengths = result.meta, result.frames_per_video
    lines = [
        f"tokenizer    {meta.tokenizer} ({meta.tokenizer_fingerprint}), {meta.precision}",
        f"tokens       {meta.grid[0]} x {meta.grid[1]} a frame, {meta.vocab_size} codes, "
        f"{meta.fps:g} frames a second",
        f"videos       {result.num_videos} in {result.num_shards} shards"
        + (f" ({result.num_doubles} in two of them)" if result.num_doubles else ""),
        f"frames       {result.num_frames} ({result.hours:.1f} hours); shortest, median, longest "
        f"video {', '.join(map(str, lengths))}",
        f"size         {result.num_bytes / 1e9:.3f} GB",
        f"unreadable   {len(result.bad_videos)} videos",
        f"{'view':28}{'codes used':>12}{'perplexity':>12}",
    ]
    for view, use in result.views.items():
        lines.append(f"{view:28}{use.codes_used:>12}{use.perplexity:>12.1f}")
    lines += [f"unreadable: {bad.video_id}: {bad.reason}" for bad in result.bad_videos]
    return "\n".join(lines)
