"""How Sphinx builds the guide: `make docs` for HTML, `make pdf` for the pages that docs/pdf.py turns into a PDF."""

import os
import sys
from pathlib import Path

import matplotlib

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
# The cells run in processes of their own, with one thread each, so that they take as long everywhere.
os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "HF_HUB_OFFLINE": "1"}
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, where there are no widgets

project = "From text to a language model"
author = "hf_scratch"
copyright = "the authors of hf_scratch, Apache-2.0"
extensions = ["myst_nb", "docs.extension"]
exclude_patterns = ["exercises", "space"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # `make docs` empties the cache; `make pdf` takes what HTML has computed
nb_execution_cache_path = str(ROOT / "build" / "docs" / "cells")
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_ipywidgets_js = {}  # they would come from another server
nb_merge_streams = True
nb_output_stderr = "remove"  # libraries' remarks on this machine, which are no part of a chapter

html_theme = "furo"
html_title = project
# The font of formulas where a reader has none with a table for mathematics; matplotlib brings it along.
html_static_path = ["_static", str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf")]
html_extra_path = ["space"]  # the README that makes the pages a static Space
html_css_files = ["guide.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "friendly"
pygments_dark_style = "native"
