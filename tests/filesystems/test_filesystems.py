"""Each scenario on each file system that can be had here.

Where the tests lie, and in memory, always.  Others are mounted, if this is root's and ``CHEST_TEST_MOUNTS`` is set, as
`.ci/filesystems` does in a namespace of its own.
"""
from __future__ import annotations

import os
import shutil
import sys
import tempfile

import pytest
from filesystems import mounts, scenarios

from chest import Chest
from chest.serialize import arrays


@pytest.fixture(scope="module", params=["here", "memory", *mounts.ALL])
def place(request, tmp_path_factory):
    """A folder of the file system."""
    folder = str(tmp_path_factory.mktemp("fs"))
    if request.param == "here":
        yield folder
    elif request.param == "memory":
        if not os.path.isdir("/dev/shm"):
            pytest.skip("there is no /dev/shm")
        with tempfile.TemporaryDirectory(prefix="chest-test-", dir="/dev/shm") as folder:
            yield folder
    elif not os.environ.get("CHEST_TEST_MOUNTS"):
        pytest.skip("mounts are made by root, with CHEST_TEST_MOUNTS=1")
    else:
        try:
            with mounts.ALL[request.param](folder) as mounted:
                arrays.is_local.cache_clear()  # the number of the device may have been another file system's just now
                arrays.keeps_inodes.cache_clear()
                yield mounted
        except mounts.Unavailable as error:
            pytest.skip(f"there is no {request.param}: {error}")


@pytest.mark.parametrize("scenario", scenarios.SCENARIOS)
def test_every_promise_is_kept_on_every_file_system(place, scenario):
    if scenarios.SCENARIOS[scenario] in scenarios.NEEDS_PROCESSES and sys.platform == "emscripten":
        pytest.skip("there are no processes here")
    folder = os.path.join(place, scenario[:60])
    os.mkdir(folder)
    scenarios.SCENARIOS[scenario](folder)
    shutil.rmtree(folder)


@pytest.fixture
def layers(tmp_path):
    if not os.environ.get("CHEST_TEST_MOUNTS"):
        pytest.skip("mounts are made by root, with CHEST_TEST_MOUNTS=1")
    try:
        with mounts.layers(str(tmp_path)) as made:
            yield made
    except mounts.Unavailable as error:
        pytest.skip(str(error))


def test_a_chest_in_an_image_is_changed_in_a_container_and_the_image_stays(layers):
    """The files of the lower folder are copied up as they are written, and so become others."""
    lower, merge = layers
    expected = {"x": [1], "y": list(range(30_000)), ("a", "b"): 2, **{n: str(n) * 100 for n in range(50)}}
    with Chest(expected, path=os.path.join(lower, "c"), min_file_size=1000):
        pass
    before = scenarios.files(lower)
    with merge() as place:
        path = os.path.join(place, "c")
        c, other = Chest(path=path), Chest(path=path)
        assert dict(c) == dict(other) == expected
        c["x"].append(2)
        c["y"][0] = "first"
        del c[3]
        c["new"] = 3
        c.sync()
        assert (len(other), other["new"], other["x"]) == (len(expected), 3, [1, 2])
        copied = c.copy(os.path.join(place, "d"))
        for one in (c, other, copied):
            one.close()
        expected.update(x=[1, 2], y=["first", *expected["y"][1:]], new=3)
        del expected[3]
        assert scenarios.contents(path) == scenarios.contents(os.path.join(place, "d")) == expected
        Chest(path=path).drop()
        assert os.listdir(place) == ["d"]
    assert scenarios.files(lower) == before
    assert scenarios.contents(os.path.join(lower, "c"), flag="r")["x"] == [1]
