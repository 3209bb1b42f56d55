"""Sphinx configuration for `make docs`."""

from sphinx.application import Sphinx

from bids_lacuna import __version__

project = "bids_lacuna"
author = "bids_lacuna contributors"
copyright = author  # noqa: A001  Sphinx's name for it
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxarg.ext"]

html_theme = "furo"
html_title = f"bids_lacuna {__version__}"
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["wide.css"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

# Smart quotes would turn the two dashes of options into one.
smartquotes = False

# Text in backticks is a name: a link if it is documented here, otherwise code.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_use_rtype = False


def escape_bars(_app: Sphinx, _what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    """Escape the bars of |t| and |z| in docstrings, which reStructuredText would read as substitutions."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: Sphinx) -> None:
    """Register `escape_bars` for all docstrings."""
    app.connect("autodoc-process-docstring", escape_bars)
