"""How Sphinx builds these pages: `sphinx-build -W notebooks/guide site`."""

import jaxqmix

project = "jaxqmix"
version = release = jaxqmix.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "jaxqmix"
myst_heading_anchors = 3
default_role = "code"
autodoc_typehints = "none"
napoleon_use_ivar = True  # fields are in the docstrings of their classes
# Files outside this folder, such as notebooks, are named in pages and not part of the site.
suppress_warnings = ["myst.xref_missing"]


def setup(app):
    """Shows the package's docstring, a table, as it stands."""

    def verbatim(app, what, name, obj, options, lines):
        if what == "module":
            lines[:] = ["::", "", *(f"  {line}" for line in lines), ""]

    app.connect("autodoc-process-docstring", verbatim)
