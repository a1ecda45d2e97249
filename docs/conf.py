"""Sphinx's settings: the pages are plain, and the API comes from the docstrings."""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from chest import __version__

project = "chest"
author = "chest contributors"
copyright = author
version = release = __version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "alabaster"
html_theme_options = {
    "description": "A dictionary that spills to disk",
    "page_width": "1280px",
    "sidebar_width": "200px",
    "fixed_sidebar": True,
}
html_copy_source = False
html_show_sourcelink = False
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autoclass_content = "both"
default_role = "code"
suppress_warnings = ["config.cache"]
