"""HTML pages from templates beside the code that fills them; whatever a document or a model says stays text."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


COLOURS = 6  # of page.css: --c1 to --c6


def colour(index: int) -> str:
    """Return the page's colour of a series or part."""
    return f"var(--c{index % COLOURS + 1})"


def render(template: str, **values: Any) -> str:
    """Return a template of this package, named by its path within it, filled in.

    Raises:
        jinja2.UndefinedError: It names a value that is not given.
    """
    return templates().get_template(template).render(**values)


def templates() -> "Environment":
    """Return what reads this package's templates, in which every value is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # only the end of a run has a page

    folder = FileSystemLoader(Path(__file__).parent.parent)
    return Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
