"""Which keys there are, and where each one's value lies.

`filenames` turns a key into a file name, `format` has the bytes of ``.keys``, `keysfile` the file, and `index` lays one
handle's changes over what the newest commit says.  Nothing here knows a value.
"""
from chest.index.filenames import Names, key_checksum, key_to_filename
from chest.index.index import Index
from chest.index.keysfile import KEYS, KeysFile

__all__ = ["KEYS", "Index", "KeysFile", "Names", "key_checksum", "key_to_filename"]
