"""pytest in a Python that runs in a browser: what a test itself needs and is not there skips it, with the reason.

Where chest asks for it the test fails: chest has to do without.
"""
from __future__ import annotations

import platform
import re
import sys

import pytest

NOT_THERE = re.compile(r"does not support processes|can't start new thread|Function not implemented|unable to start watchdog"
                       r"|has no attribute '(link|fork|mkfifo|waitpid|WNOHANG)'|No module named '(resource|termios)'")


class Browser:
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item):
        try:
            return (yield)
        except Exception as error:
            trace, files = error.__traceback__, []
            while trace is not None:
                files.append(trace.tb_frame.f_code.co_filename)
                trace = trace.tb_next
            if NOT_THERE.search(str(error)) and not any(file.startswith("/checkout/chest/") for file in files):
                pytest.skip(f"not in a browser: {error}")
            raise


def main(arguments):
    try:
        import numpy
    except ImportError:
        numpy = None
    print(f"Python {platform.python_version()} on {sys.platform},", "numpy", numpy and numpy.__version__)
    return int(pytest.main([*arguments, "-p", "no:cacheprovider", "-o", "faulthandler_timeout=0"], plugins=[Browser()]))
