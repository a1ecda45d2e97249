"""Which keys there are, and where each one's value lies.

`filenames` turns a key into a file name, `format` has the bytes of ``.keys``, and `index` lays one handle's changes
over what the newest commit says.  Nothing here knows a value, or does I/O.
"""
from chest.index.filenames import Names, key_checksum, key_to_filename
from chest.index.format import KEYS
from chest.index.index import Index

__all__ = ["KEYS", "Index", "Names", "key_checksum", "key_to_filename"]
