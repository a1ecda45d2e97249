"""What a notebook shows of a chest: one small table, in the colours of the page's theme."""
from __future__ import annotations

import html
import reprlib
from typing import Any

from chest.human import amount, plural

__all__ = ["table"]

LARGEST = 5  # keys that are shown
MOST = 20_000  # files whose sizes are asked for: to look at a chest must not take a second

_STYLE = """
<style>
.chest-view { --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --room: #eaeef2; --used: #2f81f7; --over: #cf222e;
  color: var(--ink); font: 13px/1.5 system-ui, sans-serif; max-width: 44em; }
@media (prefers-color-scheme: dark) { .chest-view {
  --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --room: #2b3138; --used: #4493f8; --over: #ff7b72; } }
[data-jp-theme-light="true"] .chest-view {
  --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --room: #eaeef2; --used: #2f81f7; --over: #cf222e; }
[data-jp-theme-light="false"] .chest-view {
  --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --room: #2b3138; --used: #4493f8; --over: #ff7b72; }
.chest-view table { border-collapse: collapse; width: 100%; margin: 4px 0; }
.chest-view th, .chest-view td { text-align: left; padding: 2px 12px 2px 0; border: 0; background: none;
  color: inherit; vertical-align: top; overflow-wrap: anywhere; }
.chest-view th { color: var(--soft); font-weight: normal; white-space: nowrap; }
.chest-view .number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.chest-view .keys { border-top: 1px solid var(--line); }
.chest-view .bar { height: 8px; border-radius: 4px; background: var(--room); overflow: hidden; margin-top: 2px; }
.chest-view .bar div { height: 100%; background: var(--used); }
.chest-view .bar .over { background: var(--over); }
</style>"""


def table(chest: Any) -> str:
    """The HTML of ``chest``, a `Chest`: its path, its memory against the budget, what is on disk, the largest keys.

    Cost: no value is loaded; one ``stat`` for each key on disk, and none at all where there are over 20,000.

    >>> from chest import Chest
    >>> '1 key' in table(Chest({'x': 1}))
    True
    """
    with chest.lock:
        life = chest._life
        life.refresh()
        names = dict(life.index.names)
        sizes = {key: life.memory.size(key) for key in list(life.memory.values)}
        usage, available, stats = chest.memory_usage, chest.available_memory, chest.stats
    on_disk = sum(name is not None for name in names.values())
    stored = _stored(life.store, names) if on_disk <= MOST else {}
    rows = [
        ("path", _text(chest.path) + ("" if chest._explicitly_given_path else " (temporary)")),
        ("keys", f"{plural(len(names), 'key')}, {len(sizes):,} in memory, {on_disk:,} on disk"),
        ("memory", f"{amount(usage)} of {amount(available)}{_bar(usage, available)}"),
        ("disk", amount(sum(stored.values())) if on_disk <= MOST else f"not counted: over {MOST:,} files"),
        ("reads", f"{stats.hit_rate:.0%} from memory ({stats.hits:,} of {stats.hits + stats.misses:,})"
                  if stats.hits + stats.misses else "none yet"),
    ]
    about = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in rows)
    return f'{_STYLE}\n<div class="chest-view"><table>{about}</table>{_keys(names, sizes, stored)}</div>'


def _stored(store: Any, names: dict[Any, Any]) -> dict[Any, int]:
    """The bytes on disk of each key that has any."""
    named = [(key, name) for key, name in names.items() if name is not None]
    return dict(zip((key for key, _ in named), store.sizes([name for _, name in named])))


def _bar(usage: float, available: float) -> str:
    share = 100.0 * usage / available if available else 100.0
    kind = ' class="over"' if share > 100 else ""
    return f'<div class="bar"><div{kind} style="width: {min(share, 100):.1f}%"></div></div>'


def _keys(names: dict[Any, Any], sizes: dict[Any, int], stored: dict[Any, int]) -> str:
    """The largest keys, by what their values take in memory, or on disk where they are not in memory."""
    largest = sorted(names, key=lambda key: -sizes.get(key, stored.get(key, 0)))[:LARGEST]
    if not largest:
        return ""
    body = "".join(
        f"<tr><td>{_text(reprlib.repr(key))}</td>"
        f'<td class="number">{amount(sizes[key]) if key in sizes else "–"}</td>'
        f'<td class="number">{amount(stored[key]) if key in stored else "–"}</td></tr>' for key in largest)
    return ('<table class="keys"><tr><th>largest keys</th><th class="number">in memory</th>'
            f'<th class="number">on disk</th></tr>{body}</table>')


def _text(text: str) -> str:
    return html.escape(str(text))
