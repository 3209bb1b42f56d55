"""How Sphinx builds these pages: `make docs`."""

from sphinx.application import Sphinx

from bids_lacuna import __version__

project = "bids_lacuna"
author = "bids_lacuna contributors"
copyright = author  # noqa: A001  Sphinx's name of it
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxarg.ext"]

html_theme = "furo"
html_title = f"bids_lacuna {__version__}"
html_show_copyright = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

# Options keep their two dashes.
smartquotes = False

# What docstrings have in backticks is a name: a link where it is described here, else code.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_use_rtype = False


def escape_bars(_app: Sphinx, _what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    """Keep the bars of |t| and |z| in docstrings, which reStructuredText would take for substitutions."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: Sphinx) -> None:
    """Change docstrings before they are read as reStructuredText."""
    app.connect("autodoc-process-docstring", escape_bars)
