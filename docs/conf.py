"""The documents as a site: `python -m sphinx -W docs output/site` (docs/requirements.txt has what it takes)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

project = "Few-shot vision-language adaptation"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["extending", "benchmarks"]
html_theme = "furo"
html_title = project
html_copy_source = False

myst_heading_anchors = 4  # as the repository's own view of a page makes them
myst_enable_extensions = ["colon_fence"]

default_role = "code"  # docstrings write names between single backquotes
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_ivar = True  # attributes of data classes are documented once
napoleon_use_rtype = False
napoleon_custom_sections = [("Class attributes", "params_style")]
