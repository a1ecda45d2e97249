"""A value to bytes and back."""
from .codec import Codec, Stamp, dump, load

__all__ = ["Codec", "Stamp", "dump", "load"]
