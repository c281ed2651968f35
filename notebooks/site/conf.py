"""Sphinx settings of the site; `build_site.py` gathers the pages and calls Sphinx."""

import sys
from pathlib import Path

import lgekit

sys.path.insert(0, str(Path(__file__).parent))  # for crossrefs

project = "lgekit"
author = "The lgekit developers"
project_copyright = "The lgekit developers, Apache-2.0"
version = release = lgekit.__version__
default_role = "code"  # `name` in a docstring

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_codeautolink",
    "crossrefs",
]
templates_path = [str(Path(__file__).parent / "_templates")]

# A reference to a missing name of lgekit is an error; names of other packages have no links,
# since their pages are on the network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!lgekit\.).*")]
suppress_warnings = ["mystnb.unknown_mime_type", "config.cache"]

myst_enable_extensions = ["deflist", "colon_fence", "attrs_block", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"  # of crossrefs: MathJax would come from the network
nb_execution_mode = "off"  # the workbook was run by `make workbook`
nb_ipywidgets_js = {}  # no scripts from the network: widgets are shown as still pictures
nb_mime_priority_overrides = [
    ("html", "image/png", 1),
    ("html", "application/vnd.jupyter.widget-view+json", None),
]
nb_render_markdown_format = "myst"

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_numpy_docstring = False
codeautolink_concat_default = True  # the cells of a notebook share their names
codeautolink_warn_on_missing_inventory = False

html_theme = "sphinx_book_theme"
html_title = "lgekit: detecting scar in cardiac LGE MRI from the text of reports"
html_static_path = [str(Path(__file__).parent / "_static")]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
nothing: list[str] = []
html_theme_options = {
    **dict.fromkeys(["navbar_start", "navbar_center", "navbar_end", "navbar_persistent"], nothing),
    "show_navbar_depth": 1,
    "collapse_navbar": True,
    "secondary_sidebar_items": {
        "**": ["page-toc"],
        **dict.fromkeys(["index", "paper_terms", "data_card", "model_card"], nothing),
    },
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "footer_content_items": ["copyright.html", "extra-footer.html"],
    "extra_footer": "For research and teaching only. Not a medical device.",
}
