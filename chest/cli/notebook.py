"""What a notebook shows of a chest: one small table, in the colours of the page's theme.

JupyterLab and notebook 7 set what tables look like by rules that outrank a class alone: hence ``!important``.
"""
from __future__ import annotations

import heapq
import html
from typing import Any

from chest.cli import amount, plural
from chest.core import Chest
from chest.errors import printable, shown

__all__ = ["table"]

LARGEST = 5  # keys that are shown
MOST = 20_000  # keys whose sizes on disk are asked for: to look at a chest must not take a second

_LIGHT = "--ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --room: #eaeef2; --used: #2f81f7; --over: #cf222e;"
_DARK = "--ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --room: #2b3138; --used: #4493f8; --over: #ff7b72;"
_STYLE = f"""<style>
.chest-view {{ {_LIGHT} color: var(--ink); font: 13px/1.5 system-ui, sans-serif; max-width: 44em; }}
@media (prefers-color-scheme: dark) {{ .chest-view {{ {_DARK} }} }}
[data-jp-theme-light="true"] .chest-view {{ {_LIGHT} }}
[data-jp-theme-light="false"] .chest-view {{ {_DARK} }}
.chest-view :is(table, tr, th, td) {{ all: revert !important; border-collapse: collapse !important;
  padding: 2px 12px 2px 0 !important; text-align: left !important; vertical-align: top !important;
  font: inherit !important; color: inherit !important; overflow-wrap: anywhere !important; }}
.chest-view table {{ width: 100% !important; margin: 4px 0 !important; }}
.chest-view th {{ color: var(--soft) !important; white-space: nowrap !important; }}
.chest-view .number {{ text-align: right !important; white-space: nowrap !important; }}
.chest-view .keys {{ border-top: 1px solid var(--line) !important; }}
.chest-view .bar {{ height: 8px; border-radius: 4px; background: var(--room); overflow: hidden; margin-top: 2px; }}
.chest-view .bar div {{ height: 100%; background: var(--used); }}
.chest-view .bar .over {{ background: var(--over); }}
</style>"""


def table(chest: Chest[Any, Any]) -> str:
    """The HTML of a chest: its path, its memory against the budget, what is on disk, the largest keys.

    Cost: no value is loaded; one ``stat`` for each key on disk, and none at all where there are over `MOST`.
    """
    state, stats, available = chest._engine.state, chest.stats, chest.available_memory
    with state.lock:
        state.refresh()
        resident, used, count = dict(state.cache.sizes), state.cache.usage, len(state.index.refs)
        saved = {key: ref for key, ref in state.index.refs.items() if ref is not None}
    stored = {key: state.storage.size(ref) for key, ref in saved.items()} if len(saved) <= MOST else {}
    reads, share = stats.hits + stats.misses, 100 * used / available if available else 100
    bar = f'<div class="bar"><div{" class=over" * (share > 100)} style="width: {min(share, 100):.1f}%"></div></div>'
    about = {
        "path": html.escape(printable(chest.path)) + ("" if chest._explicitly_given_path else " (temporary)"),
        "keys": f"{plural(count, 'key')}, {len(resident):,} in memory, {len(saved):,} on disk",
        "memory": f"{amount(used)} of {amount(available)}{bar}",
        "disk": amount(sum(stored.values())) if len(saved) <= MOST else f"not counted: over {MOST:,} keys",
        "reads": f"{stats.hit_rate:.0%} from memory ({stats.hits:,} of {reads:,})" if reads else "none yet"}
    rows = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in about.items())
    sizes, largest = {**stored, **resident}, ""
    for key in heapq.nlargest(LARGEST, sizes, key=sizes.__getitem__):
        cells = (f'<td class="number">{amount(at[key]) if key in at else "–"}</td>' for at in (resident, stored))
        largest += f"<tr><td>{html.escape(shown(key, most=60))}</td>{''.join(cells)}</tr>"
    head = '<tr><th>largest keys</th><th class="number">in memory</th><th class="number">on disk</th></tr>'
    keys = f'<table class="keys">{head}{largest}</table>' if largest else ""
    return f'{_STYLE}\n<div class="chest-view"><table>{rows}</table>{keys}</div>'
