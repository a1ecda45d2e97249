"""A child process that loads strangers' pickles: what they ask for must not happen, and the process must not end.

`python hostile.py corpus` prints a line for each attack; `python hostile.py fuzz SEED COUNT` for what it did.  Memory and
processor time are limited where the system can do that, and an audit hook sees what reaches outside.
"""
import collections
import datetime
import decimal
import faulthandler
import fractions
import gc
import os
import pathlib
import pickle
import random
import struct
import sys
import time
import traceback
import uuid

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
faulthandler.enable()

from chest.errors import LoadError  # noqa: E402
from chest.serialize import restricted  # noqa: E402

try:
    import numpy
    import numpy.ma
except ImportError:
    numpy = None

OUTSIDE = ("open", "exec", "compile", "import", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "code.", "pty.", "sys.", "builtins.input", "builtins.breakpoint")
SEEN = []


def watch(event, arguments):
    """The audit hook."""
    if WATCHING and event.startswith(OUTSIDE):
        where = str(arguments[0]) if arguments else ""
        if event in ("sys.excepthook", "sys.unraisablehook"):  # bytearray(2 ** 62) of CPython 3.11 prints an error
            return
        if event == "open" and ("zoneinfo" in where or "tzdata" in where or where == "/dev/urandom"):  # `os.urandom` of PyPy
            return
        if event == "import" and where.startswith(("tzdata", "importlib", "zipfile", "zoneinfo", "_zoneinfo")):
            return
        SEEN.append((event, where[:200]))


WATCHING = False


def limit():
    """Half a gigabyte on top of what is there, and a minute of processor time for each attack at the most."""
    try:
        import resource
    except ImportError:
        return
    with open("/proc/self/statm") if os.path.exists("/proc/self/statm") else open(os.devnull) as file:
        used = file.read().split()
    if used and hasattr(resource, "RLIMIT_AS"):
        room = int(used[0]) * resource.getpagesize() + (2 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CPU, (300, 300))


# --- attacks ----------------------------------------------------------------------------------------------------------


def text(value):
    """SHORT_BINUNICODE."""
    data = value.encode()
    return b"\x8c" + bytes((len(data),)) + data


def name(module, attribute):
    """STACK_GLOBAL."""
    return text(module) + text(attribute) + b"\x93"


def call(function, *arguments):
    """REDUCE."""
    return function + b"(" + b"".join(arguments) + b"tR"


def whole(*parts):
    return b"\x80\x05" + b"".join(parts) + b"."


def number(value):
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return (b"\x8a" + bytes((len(data),)) if len(data) < 256 else b"\x8b" + struct.pack("<i", len(data))) + data


def bytearray8(size):
    return b"\x96" + struct.pack("<Q", size) + bytes(size)


def colliding(count):
    prime = sys.hash_info.modulus
    return [number(prime * (i + 1)) for i in range(count)]


def corpus():
    """Name, pickle, and whether it must be refused; those of a library that is not here end with its import."""
    for attack in attacks():
        if numpy is not None or b"numpy" not in attack[1]:
            yield attack


def attacks():
    """All of them."""
    for module, attribute, argument in [("os", "system", text("touch pwned")), ("posix", "system", text("touch pwned")), ("nt", "system", text("dir")),
                                        ("builtins", "eval", text("1/0")), ("builtins", "exec", text("1/0")), ("builtins", "open", text("pwned")),
                                        ("builtins", "__import__", text("antigravity")), ("subprocess", "Popen", text("touch pwned")),
                                        ("functools", "partial", text("x")), ("operator", "attrgetter", text("x")), ("operator", "methodcaller", text("x")),
                                        ("copyreg", "__newobj__", text("x")), ("copyreg", "add_extension", text("x")), ("importlib", "import_module", text("antigravity")),
                                        ("builtins", "getattr", text("x")), ("builtins", "list.append", b"]"), ("collections", "OrderedDict.fromkeys", b"]"),
                                        ("numpy", "load", text("x")), ("numpy", "fromfile", text("x")), ("numpy", "memmap", text("/etc/passwd")),
                                        ("numpy.core.multiarray", "fromfile", text("x")), ("numpy.ma.core", "os.system", text("x")), ("pathlib", "Path.unlink", text("x")),
                                        ("pathlib", "os.system", text("x")), ("datetime", "sys.exit", b"K\1"), ("decimal", "_sys.exit", b"K\1"),
                                        ("zoneinfo", "ZoneInfo.from_file", text("x")), ("zoneinfo", "ZoneInfo", text("UTC")), ("chest.serialize.restricted", "load", text("x")),
                                        ("pandas._libs.internals", "_unpickle_block", b"K\1"), ("pandas", "read_pickle", text("x")), ("pyarrow.lib", "_restore_array", b"N"),
                                        ("scipy._lib._ccallback", "__pyx_unpickle_Enum", b"K\1"), ("uuid", "SafeUUID", b"K\0"), ("uuid", "os.system", text("x")),
                                        ("builtins", "list", b"K\1"), ("builtins", "int", text("1")), ("numpy", "ndarray", b"K\1"), ("numpy.ma", "MaskedArray", b"]"),
                                        ("scipy.sparse._csr", "csr_matrix.__init__", b"]"), ("builtins", "object", b"")]:
        function = name(module, attribute)
        yield f"REDUCE {module}.{attribute}", whole(call(function, argument)), True
        yield f"NEWOBJ {module}.{attribute}", whole(function, b"(", argument, b"t\x81"), True
        yield f"NEWOBJ_EX {module}.{attribute}", whole(function, b"(", argument, b"t}\x92"), True
        yield f"OBJ {module}.{attribute}", whole(b"(", function, argument, b"o"), True
        yield f"INST {module}.{attribute}", b"(" + argument + f"i{module}\n{attribute}\n.".encode(), True
        yield f"GLOBAL {module}.{attribute}", f"c{module}\n{attribute}\n.".encode(), True
    yield "a chain of getattr", whole(call(name("builtins", "getattr"), call(name("builtins", "getattr"), b"N", text("__class__")), text("__base__"))), True
    yield "getattr of a zone", whole(call(name("builtins", "getattr"), name("zoneinfo", "ZoneInfo"), text("__init_subclass__"))), True
    yield "reconstructor", whole(call(name("copyreg", "_reconstructor"), name("builtins", "object"), name("builtins", "object"), b"N")), True
    yield "persistent id", b"Pname\n.", True
    yield "binary persistent id", b"K\x01Q.", True
    for code in b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00":
        yield f"extension {code[0]}", b"\x80\x02" + code + b".", True

    # BUILD, SETITEM and APPENDS on what is allowed.
    objects = {
        "a function": name("datetime", "timedelta"), "a class": name("uuid", "UUID"), "a date": call(name("datetime", "date"), b"M\xe4\x07", b"K\1", b"K\1"),
        "a path": call(name("pathlib", "PurePosixPath"), text("x")), "a fraction": call(name("fractions", "Fraction"), b"K\1", b"K\2"),
        "a dict in order": call(name("collections", "OrderedDict")), "a counter": call(name("collections", "Counter")),
        "a defaultdict": call(name("collections", "defaultdict"), name("builtins", "list")), "a deque": call(name("collections", "deque")),
        "a zone": call(name("zoneinfo", "ZoneInfo._unpickle"), text("UTC"), b"\x88"), "a list": b"]", "a UUID": name("uuid", "UUID") + b")\x81",
        "a decimal": call(name("decimal", "Decimal"), text("1")), "a dtype": call(name("numpy", "dtype"), text("i8")), "a range": call(name("builtins", "range"), b"K\1"),
        "an array": call(name("numpy", "ndarray"), b"K\1\x85", call(name("numpy", "dtype"), text("<i8")), b"\x96" + struct.pack("<Q", 8) + bytes(8)),
        "a scalar": call(name("numpy._core.multiarray", "scalar"), call(name("numpy", "dtype"), text("<i8")), b"C\x08" + bytes(8)),
        "an array to be": call(name("numpy._core.multiarray", "_reconstruct"), name("numpy", "ndarray"), b"K\0\x85", b"C\1b"),
        "a sparse matrix": name("scipy.sparse._csr", "csr_matrix") + b")\x81",
    }
    for what, made in objects.items():
        for how, state in {"a dict": b"}" + text("default_factory") + b"K\1s" + text("__class__") + b"K\1s", "slots": b"N}" + text("default_factory") + b"K\1s\x86",
                           "bytes": b"C\2xx", "a bomb": b"(" + b"]" * 1000 + b"t"}.items():
            yield f"BUILD on {what} with {how}", whole(made, state, b"b"), None
        yield f"SETITEM on {what}", whole(made, call(name("builtins", "slice"), b"K\0", b"K\0"), b"](K\1K\2es"), None
        yield f"APPENDS on {what}", whole(made, b"(K\1K\2e"), None
        yield f"ADDITEMS on {what}", whole(made, b"(K\1K\2\x90"), None

    # dtypes and arrays that are none.
    dtype, array, scalar = name("numpy", "dtype"), name("numpy._core.multiarray", "_reconstruct"), name("numpy._core.multiarray", "scalar")
    to_be = call(array, name("numpy", "ndarray"), b"K\0\x85", b"C\1b")
    obj = call(dtype, text("O8"), b"\x89", b"\x88")
    evil = call(dtype, text("O8"), b"\x89", b"\x88") + b"(K\3" + text("|") + b"NNNK\x08K\x08K\0tb"  # flags that say: no objects
    plain = call(dtype, text("<i8"))
    pointers = b"C\x10" + b"AAAAAAAA" * 2
    over = name("numpy._core.numeric", "_frombuffer")
    for what, kind in {"objects": obj, "objects that hide": evil, "a text": text("O"), "a forged state": plain + b"(K\3" + text("|") + b"NNNK\x08K\x08K\x3ftb"}.items():
        hidden = what == "a forged state"  # of no effect: nothing is taken from a state but the order of bytes
        yield f"_frombuffer of {what}", whole(call(over, pointers, kind, b"K\2\x85", text("C"))), not hidden
        yield f"scalar of {what}", whole(call(scalar, kind, b"C\x08AAAAAAAA")), not hidden
        yield f"ndarray of {what}", whole(call(name("numpy", "ndarray"), b"K\2\x85", kind, pointers)), not hidden
        yield f"_reconstruct of {what}", whole(to_be, b"(K\1K\2\x85", kind, b"\x89", pointers, b"tb"), not hidden
        yield f"a field of {what}", whole(call(dtype, text("V8")) + b"(K\3" + text("|") + b"N" + text("a") + b"\x85}" + text("a") + kind + b"K\0\x86sK\x08K\1K\x10tb"), not hidden
        yield f"a part of {what}", whole(call(dtype, text("V8")) + b"(K\3" + text("|") + kind + b"K\1\x85\x86NNK\x08K\1K\x10tb"), not hidden
    for what, shape in {"2**40": number(2**40) + b"\x85", "overflow": number(2**32) * 2 + b"\x86", "wrap": number(2**61) + b"\x85", "negative": b"J\xff\xff\xff\xff\x85", "text": text("x"),
                        "float": b"G\x40\0\0\0\0\0\0\0\x85", "many": b"(" + b"K\1" * 100 + b"t", "itself": b"]\x94h\0a\x85"}.items():
        yield f"shape {what}", whole(call(over, pointers, plain, shape, text("C"))), None if what == "float" else True
        yield f"_reconstruct {what}", whole(to_be, b"(K\1" + shape, plain, b"\x89", pointers, b"tb"), None if what == "float" else True
    yield "no state", whole(to_be), True
    yield "two states", whole(to_be, b"(K\1K\2\x85", plain, b"\x89", pointers, b"tb(K\1K\2\x85", plain, b"\x89", pointers, b"tb"), True
    yield "list of pointers", whole(to_be, b"(K\1K\2\x85", obj, b"\x89", b"](K\1etb"), True
    yield "text that is none", whole(call(over, b"C\x08" + b"\xff" * 8, call(dtype, text("<U2")), b"K\1\x85", text("C"))), True
    yield "scalar text that is none", whole(call(scalar, call(dtype, text("<U2")), b"C\x08" + b"\xff" * 8)), True
    nested = call(dtype, text("V0")) + b"(K\3" + text("|") + b"N)}K\0K\1K\x10tb\x94"
    for level in range(40):
        fields = b"".join([text(one) + (b"h" + bytes((level,)) + b"K\0\x86s") for one in "ab"])
        nested += b"0" + call(dtype, text("V0")) + b"(K\3" + text("|") + b"N" + text("a") + text("b") + b"\x86}" + fields + b"K\0K\1K\x10tb\x94"
    yield "a dtype of 2**40 fields", whole(nested), True
    yield "a dtype of itself", whole(call(dtype, text("V8")), b"\x94(K\3" + text("|") + b"Nh\0\x85}K\x08K\1K\x10tb"), True
    for what in "i99999", "U9999999999", "V2147483647", "i8,O", "O,i8", "{'a': 'O'}", "object", "M8[x]", "T", "f3", "i8" * 1000:
        value = what.encode()
        yield f"dtype {what[:20]}", whole(call(dtype, b"X" + struct.pack("<I", len(value)) + value)), True
    for offset, size in (0, 7), (1, 8), (-8, 8), (2**31, 8), (0, 2**40), (0, -1), (0, 2**32 + 8):
        yield f"a field at {offset} of {size}", whole(call(dtype, text("V8")) + b"(K\3" + text("|") + b"N" + text("a") + b"\x85}" + text("a") + plain + number(offset) + b"\x86s" + number(size) + b"K\1K\x10tb"), True
    for shape in number(2**31) + b"\x85", number(2**16) * 2 + b"\x86", number(2**63) + b"\x85", number(-1) + b"\x85", b"(" + b"K\2" * 40 + b"t":
        yield "a part of an impossible shape", whole(call(dtype, text("V8")) + b"(K\3" + text("|") + plain + shape + b"\x86NNK\x08K\1K\x10tb"), True
    yield "masked", whole(call(name("numpy.ma.core", "_mareconstruct"), name("numpy.ma", "MaskedArray"), name("numpy", "ndarray"), b"K\0\x85", b"C\1b"), b"(K\1K\2\x85", evil, b"\x89", pointers, b"C\2xxNtb"), True
    yield "masked by too little", whole(call(name("numpy.ma.core", "_mareconstruct"), name("numpy.ma", "MaskedArray"), name("numpy", "ndarray"), b"K\0\x85", b"C\1b"), b"(K\1K\2\x85", plain, b"\x89", pointers, b"C\1xNtb"), True
    yield "a buffer that is not there", whole(b"\x97"), True
    yield "an array as memory", whole(call(over, call(over, pointers, plain, b"K\2\x85", text("C")), plain, b"K\2\x85", text("C"))), True
    yield "an array that is written to", whole(objects["an array"], b"K\0K\7s"), True
    yield "an array in shape that is written to", whole(call(over, bytearray8(16), plain, b"K\1K\1K\2\x87", text("K"), b"K\2K\0K\1\x87"), b"K\0K\7s"), True
    yield "memory that is longer", whole(call(over, bytearray8(24), plain, b"K\2\x85", text("C"))), True
    yield "memory that is longer, as chest writes it", whole(call(name("numpy", "ndarray"), b"K\2\x85", plain, bytearray8(24))), True

    # Sizes.
    for code in b"\x8d\x8e\x95\x96":
        for size in 2**63, 2**62, 2**40, 2**33:
            yield f"length {size:#x} of {code:#x}", b"\x80\x05" + bytes((code,)) + struct.pack("<Q", size) + b"x.", True
    for code in b"BXT\x8b":
        for size in 2**31 - 1, 2**32 - 1, 2**30:
            yield f"length {size:#x} of {code:#x}", b"\x80\x05" + bytes((code,)) + struct.pack("<I", size) + b"x.", True
    for index in 2**32 - 1, 2**31, 2**30, 2**27, 2**25:
        yield f"memo {index:#x}", b"Nr" + struct.pack("<I", index) + b".", None
        yield f"memo {index:#x} in text", b"Np%d\n." % index, None
        yield f"memo {index:#x} behind an array", whole(b"\x96" + struct.pack("<Q", 1 << 20) + bytes(1 << 20) + b"0", b"Nr" + struct.pack("<I", index)), None
    yield "memo from nowhere", b"h\xff.", True
    for depth in 1000, 100_000, 3_000_000:
        for what, inner, outer in (("tuples", b")", b"\x85"), ("lists", b"", b"]"), ("lists in lists", b"]" * depth, b"a"), ("pairs", b")", b"N\x86"), ("marks", b"(" * depth, b"t")):
            yield f"{depth} {what}", whole(inner, outer * (depth - 1)), None
            yield f"{depth} {what} as a key", whole(b"}", inner, outer * (depth - 1), b"Ns"), None
            yield f"{depth} {what} in a set", whole(b"\x8f(", inner, outer * (depth - 1), b"\x90"), None
    deep = {"by ones": b")" + b"\x85" * 200_000, "first of two": b")" + b"N\x86" * 200_000, "first of three": b")" + b"NK\1\x87" * 200_000, "second of two": b"N" * 200_000 + b")" + b"\x86" * 200_000,
            "by marks": b"(" * 200_000 + b"N" + b"t" * 200_000, "first of many": b"(" * 200_000 + b"N" + b"NNNNt" * 200_000, "by ones that are kept": b")" + b"\x85\x94" * 200_000,
            "through the memo": b")\x94" + b"".join([b"0j" + struct.pack("<I", i) + b"\x85\x94" for i in range(200_000)])}
    for front in {"nothing": b"", "a row": b"](" + (b"G" + bytes(8)) * 5_000 + b"e0", "pairs": b"](" + b"K\1K\2\x86" * 90_000 + b"e0", "texts": b"](" + b"\x8c\5abcde" * 20_000 + b"e0", "an array": b"\x96" + struct.pack("<Q", 1 << 20) + bytes(1 << 20) + b"0"}.items():
        for way, tuples in deep.items():
            yield f"deep tuples {way} behind {front[0]}", whole(front[1], b"}", tuples, b"Ns"), True
    doubled = {"by DUP": b")" + b"2\x86" * 40, "many times": b"(N" + b"t\x94" + b"".join([b"0(" + bytes((104, i)) * 400 + b"t\x94" for i in range(8)]),
               "through the memo": b")\x94" + b"".join([b"0" + bytes((104, i)) * 2 + b"\x86\x94" for i in range(40)])}
    for way, tuples in doubled.items():
        for where, end in {"as a key": (b"}", b"Ns"), "in a set": (b"\x8f(", b"\x90"), "as the keys of two": (b"}(", b"N" + tuples + b"Nu")}.items():
            yield f"tuples repeated {way} {where}", whole(end[0], tuples, end[1]), True if where != "as the keys of two" else None
    yield "deep tuples between long texts", whole(b"})", (b"\x85" * 60 + b"X" + struct.pack("<I", 8192) + bytes(8192) + b"0") * 3400, b"Ns"), True
    yield "deep values made here", whole(b"]" * 5000, call(name("builtins", "slice"), b"K\1"), b"a" * 5000), True
    yield "a function in an attribute", whole(objects["a fraction"], b"N}" + text("_numerator") + name("builtins", "set") + b"s\x86b"), True
    yield "a function as a factory", whole(objects["a defaultdict"], b"N}" + text("default_factory") + name("builtins", "set") + b"s\x86b"), True
    yield "a description of memory", whole(objects["a dict in order"], b"}" + text("__array_interface__") + b"}sb"), True
    yield "a state for a UUID that has one", whole(objects["a UUID"], (b"}" + text("int") + b"K\1sb") * 2, b"}" + text("int") + b"]sb"), True
    characters = b"\x96" + struct.pack("<Q", 8) + b"a\0\0\0b\0\0\0\x94"
    yield "text that is changed to none", whole(b"(" + characters, call(over, b"h\0", call(dtype, text("<U2")), b"K\1\x85", text("C")), b"h\0K\3K\xffst"), True
    laughs = b"](K\1K\2e\x94"
    for level in range(100):
        laughs += b"0](" + b"h" + bytes((level,)) + b"h" + bytes((level,)) + b"e\x94"
    yield "billion laughs", whole(laughs), False
    yield "sets again and again", whole(b"](", b"".join([b"J" + struct.pack("<i", i) for i in range(20_000)]), b"e\x94", call(name("builtins", "frozenset"), b"h\0") * 20_000), True
    yield "bytes again and again", whole(b"X", struct.pack("<I", 1 << 20), b"x" * (1 << 20), b"\x940", call(name("_codecs", "encode"), b"h\0", text("latin1")) * 2000), True
    yield "a list in itself", whole(b"](" + b"K\1" * 100 + b"e\x94", (b"h\0" + call(name("builtins", "slice"), b"K\0", b"K\0") + b"h\0s") * 50), True
    yield "bytes in themselves", whole(b"\x96", struct.pack("<Q", 1000), bytes(1000), b"\x94", (b"h\0" + call(name("builtins", "slice"), b"K\0", b"K\0") + b"h\0s") * 50), True
    yield "a fraction of many digits", whole(call(name("fractions", "Fraction"), text("1e999999999"))), True
    yield "a fraction of large numbers", whole(call(name("fractions", "Fraction"), number(7**400_000), number(5**400_000))), True
    yield "an integer of many digits", b"I" + b"9" * 2_000_000 + b"\n.", None
    yield "a long of many digits", b"L" + b"9" * 2_000_000 + b"L\n.", None
    yield "a decimal of many digits", whole(call(name("decimal", "Decimal"), b"X" + struct.pack("<I", 2_000_000) + b"9" * 2_000_000)), None
    yield "a decimal with an exponent", whole(b"}", call(name("decimal", "Decimal"), text("1e999999999999")), b"Ns"), None

    # Keys of one hash.
    many = colliding(60_000)
    yield "a dict of integers of one hash", whole(b"}(", b"".join([one + b"N" for one in many]), b"u"), True
    yield "a set of integers of one hash", whole(b"\x8f(", b"".join(many), b"\x90"), True
    yield "a frozenset of integers of one hash", whole(b"(", b"".join(many), b"\x91"), True
    yield "a set by name of integers of one hash", whole(call(name("builtins", "set"), b"](" + b"".join(many) + b"e")), True
    yield "a dict in text", b"(" + b"".join([b"L%dL\nN" % (sys.hash_info.modulus * i) for i in range(1, 30_000)]) + b"d.", True
    for written in "0x%x", "0o%o", "0b%s", " +0x%X ":
        texts = [(written % (format(value, "b") if "b" in written else value)).encode() for value in range(sys.hash_info.modulus, sys.hash_info.modulus * 20_000, sys.hash_info.modulus)]
        yield f"a dict of integers in text as {written}", b"(" + b"".join([b"I%s\nN" % text for text in texts]) + b"d.", True
        yield f"a dict of longs in text as {written}", b"(" + b"".join([b"L%sL\nN" % text for text in texts]) + b"d.", True
    yield "a few of one hash", whole(b"\x8f(", b"".join(colliding(5_000)), b"\x90"), None
    yield "decimals of one hash", whole(b"\x8f(", b"".join([call(name("decimal", "Decimal"), text(str(sys.hash_info.modulus * i))) for i in range(1, 20_000)]), b"\x90"), True
    yield "complex numbers of one hash", whole(b"\x8f(", b"".join([call(name("builtins", "complex"), b"G" + struct.pack(">d", 10**14 - 1000003 * i), b"G" + struct.pack(">d", i)) for i in range(1, 20_000)]), b"\x90"), None
    uuids = b"".join([name("uuid", "UUID") + b")\x81}" + text("int") + number(sys.hash_info.modulus * i) + b"sb" for i in range(1, 20_000)])
    yield "UUIDs of one hash", whole(b"\x8f(", uuids, b"\x90"), True

    fraction, path = name("fractions", "Fraction"), name("pathlib", "PurePosixPath")
    yield "fractions that are given one hash", whole(b"(", b"".join([call(fraction, b"J" + struct.pack("<i", i), b"K\1") + b"N}" + text("_numerator") + b"J" + struct.pack("<i", i) + b"s" + text("_denominator") + b"J" + struct.pack("<i", i) + b"s\x86b" for i in range(2, 20_000)]), b"\x91"), True
    yield "paths that are given one hash", whole(b"(", b"".join([call(path, text(f"p{i}")) + b"N}" + text("_hash") + b"K\1s\x86b" for i in range(20_000)]), b"\x91"), True

    # Little that makes much: what is in the memo is used again and again, or is calculated with.
    again = b"h\0h\1R" * 20_000
    yield "paths of many parts", whole(path, b"\x94(", text("") * 100_000, b"t\x940", b"(", again, b"t"), True
    yield "a range of large numbers", whole(call(name("builtins", "range"), b"K\0", number(1 << 4_000_000), number(1 << 2_000_000))), True
    yield "spans of large numbers", whole(name("datetime", "timedelta"), b"\x94", number(1 << 4_000_000), number(-86400 << 4_000_000), b"\x86\x940(", again, b"t"), True
    yield "a shape of large numbers", whole(number(1 << 8_000_000), b"\x940", call(name("numpy", "ndarray"), b"(" + b"h\0" * 60 + b"t", call(dtype, text("V8")), b"C\x08AAAAAAAA")), True
    yield "a large value for what is masked", whole(call(name("numpy.ma.core", "_mareconstruct"), name("numpy.ma", "MaskedArray"), name("numpy", "ndarray"), b"K\0\x85", b"C\1b"), b"(K\1K\0\x85", call(dtype, text("<U500000000")), b"\x89C\0C\0", text("x"), b"tb"), True
    names = [text(f"f{i}") for i in range(9_000)]
    fields = b"(K\3" + text("|") + b"N(" + b"".join(names) + b"t}(" + b"".join([one + b"h\0J" + struct.pack("<i", i) + b"\x86" for i, one in enumerate(names)]) + b"uJ" + struct.pack("<i", 9_000) + b"K\1K\x10t"
    yield "dtypes of the same fields", whole(call(dtype, text("i1")), b"\x940", fields, b"\x940(", (call(dtype, text("V1")) + b"h\1b") * 20_000, b"t"), True
    yield "a dtype that changes its order", whole(call(dtype, text("i1")), b"\x940", call(dtype, text("V1")), fields, b"b", b"(K\3" + text(">") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t\x94b", b"h\1b" * 50_000), True
    record = call(dtype, text("i1")) + b"\x940(K\1\x85" + call(dtype, text("V1")) + fields + b"bB" + struct.pack("<I", 9_000) + bytes(9_000) + b"t\x940"
    yield "records of many fields", whole(record, name("numpy", "ndarray"), b"\x940(", b"h\2h\1R" * 20_000, b"t"), True
    for what, bytes_ in {"a truth that is none": b"\1\0\3", "a truth of all ones": b"\xff" * 3}.items():
        yield what, whole(call(over, b"C\3" + bytes_, call(dtype, text("?")), b"K\3\x85", text("C"))), True
        yield what + " in a mask", whole(call(name("numpy.ma.core", "_mareconstruct"), name("numpy.ma", "MaskedArray"), name("numpy", "ndarray"), b"K\0\x85", b"C\1b"), b"(K\1K\3\x85", call(dtype, text("i1")), b"\x89C\3abcC\3" + bytes_, b"Ntb"), True
        yield what + " as a scalar", whole(call(scalar, call(dtype, text("?")), b"C\1" + bytes_[-1:])), True

    # Cut off.
    for value in [{"a": [1, 2.5, "text", b"bytes", (1, 2), {3}]}, *([numpy.arange(5), numpy.ma.array([1])] if numpy else [])]:
        for protocol in range(6):
            data = pickle.dumps(value, protocol)
            for end in range(len(data) - 1):
                yield f"cut off {protocol} {end}", data[:end], True
    yield "nothing", b"", True
    for code in range(256):
        yield f"opcode {code}", bytes((code,)), True


# --- fuzzing ----------------------------------------------------------------------------------------------------------


def seeds():
    """Pickles of what is allowed, and the small attacks: what mutations begin with."""
    zone = datetime.timezone(datetime.timedelta(hours=1), "x")
    values = [[1, "a", None, (2.5, b"x"), {"k": {1, 2}}, frozenset([3])], datetime.datetime(2020, 1, 1, tzinfo=zone), [datetime.date(2020, 1, 1), datetime.time(1), datetime.timedelta(1)],
              [decimal.Decimal("1.5"), fractions.Fraction(1, 3), {uuid.UUID(int=5)}, pathlib.PurePosixPath("a/b"), 1 + 2j, range(3), slice(1, 2)],
              [collections.OrderedDict(a=1), collections.Counter("ab"), collections.defaultdict(list, a=[1]), collections.deque([1], 3), bytearray(b"abc")]]
    if numpy is not None:
        table = numpy.zeros(2, [("a", "i4"), ("b", "U2"), ("c", "f4", (2,)), ("d", "M8[us]")])
        values += [numpy.arange(4), numpy.arange(8).reshape(2, 4)[:, ::2], table, numpy.array([1, "a", [2]], object), numpy.array(["ab", "c"]), numpy.ma.array([1, 2], mask=[0, 1]),
                   [numpy.float64(1), numpy.str_("a"), table[0], numpy.datetime64("2020")], numpy.dtype([("a", "i4"), ("b", "O")])]
    found = [pickle.dumps(value, protocol) for value in values for protocol in (0, 2, 4, 5)]
    found += [data[:2] + data[11:] for data in found if data[2:3] == b"\x95"]  # without the frame, whose length tells of each change
    small = [data for what, data, _ in corpus() if 20 < len(data) < 600 and not what.startswith("cut off")]
    return found + small[::7]


def mutate(data, others, chance):
    """Some bytes changed, cut out, doubled, or taken from another pickle; opcodes more often than others."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5, 8))):
        at = chance.randrange(len(changed) + 1)
        way = chance.randrange(7)
        if way == 0 and changed:
            changed[at % len(changed)] ^= 1 << chance.randrange(8)
        elif way == 1 and changed:
            changed[at % len(changed)] = chance.randrange(256)
        elif way == 2:
            changed[at:at] = bytes((chance.choice(b"()]}NKJMIaebsuRo012tld\x81\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94\x97\x98hqr"),))
        elif way == 3:
            del changed[at : at + chance.randrange(1, 9)]
        elif way == 4:
            end = at + chance.randrange(1, 40)
            changed[at:at] = changed[at:end]
        elif way == 5:
            other = chance.choice(others)
            begin = chance.randrange(len(other))
            changed[at : at + chance.randrange(9)] = other[begin : begin + chance.randrange(1, 60)]
        else:
            changed[at : at + 4] = struct.pack("<I", chance.choice((0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1)))
    return bytes(changed)


def use(value):
    """What anybody would do with a value: look at it, hash it, compare it, save it again."""
    for look in repr, hash, lambda one: one == one, pickle.dumps, len, list:
        try:
            look(value)
        except Exception:  # whatever comes of a strange value, as long as it comes as an error
            continue


def attempt(data, used=True):
    """The kind of error that loading ends with, or None."""
    global WATCHING
    WATCHING = True
    try:
        value = restricted.loads(data)
    except LoadError:
        return "LoadError"
    except Exception as error:
        return type(error).__name__
    finally:
        WATCHING = False
    if used:
        use(value)
    return None


def main(arguments):
    """See above."""
    for one in "datetime decimal fractions uuid pathlib zoneinfo encodings.raw_unicode_escape".split():
        __import__(one)
    if numpy is not None:
        __import__("chest.serialize.restricted_arrays")
    attempt(pickle.dumps([1]))
    attempt(name("os", "system") + b".")  # what errors take is imported now
    attempt(whole(call(name("zoneinfo", "ZoneInfo._unpickle"), text("none"), b"\x88")))
    traceback.print_exception(None, SystemError("CPython may print one of bytearray(2**62)"), None)  # imports, too
    sys.addaudithook(watch)
    limit()
    if arguments[0] == "corpus":
        for what, data, refused in corpus():
            if sys.implementation.name != "cpython":
                gc.collect()  # else what the last one left counts against the limit
            begin = time.process_time()
            outcome = attempt(data, used=what != "billion laughs")  # whose text has no end
            took = time.process_time() - begin
            told = "RIGHT" if outcome not in ("MemoryError", "SystemError") and (refused is None or refused == (outcome is not None)) and took < 15 and not SEEN else "WRONG"
            if "-v" in arguments:
                print(ascii(what), file=sys.stderr, flush=True)
            print(told, ascii(what), outcome, f"{took:.2f} s", SEEN[:3], flush=True)
            SEEN.clear()
    else:
        chance, pool, outcomes = random.Random(int(arguments[1])), seeds(), {}
        for _ in range(int(arguments[2])):
            data = mutate(chance.choice(pool), pool, chance)
            LAST.seek(0)
            LAST.truncate()
            LAST.write(data)
            outcome = attempt(data)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            if SEEN or outcome == "SystemError":
                print("WRONG", ascii(data), outcome, SEEN, flush=True)
                SEEN.clear()
        print("DONE", sum(outcomes.values()), outcomes, flush=True)


LAST = open("last.pickle", "wb", buffering=0) if len(sys.argv) > 1 and sys.argv[1] == "fuzz" else None
if __name__ == "__main__":
    main(sys.argv[1:])
