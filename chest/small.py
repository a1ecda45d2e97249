# Placeholder of the lead until the small-values helper writes the real file here: overwrite it.
from __future__ import annotations
from typing import Any
def Small(files: Any, directory: str, codec: Any, durable: bool, limit: int) -> Any:
    return files
