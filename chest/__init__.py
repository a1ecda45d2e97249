"""A dictionary that spills to disk."""
from chest._version import __version__
from chest.core import Chest

__all__ = ["Chest", "__version__"]
