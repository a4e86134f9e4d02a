"""What the Hub of the tests reads in front matter, and serves of static Spaces; the real one has a host for these."""

import re

import yaml

from hf_scratch.hub.card import LICENSES

KINDS = {"license": str, "tags": list, "library_name": str, "pipeline_tag": str, "models": list, "sdk": str}
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
TYPES = {
    "js": "text/javascript", "wasm": "application/wasm", "html": "text/html", "css": "text/css",
    "json": "application/json", "svg": "image/svg+xml",
}  # fmt: skip


def front_matter_errors(content: str) -> list[str]:
    """Say what is wrong with front matter that is not YAML, or has keys of the wrong type, as the Hub does."""
    wrong: list[str] = []
    block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    try:
        data = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        data, wrong = {}, [str(error)]
    wrong += [
        f'"{key}" must be a {kind.__name__}'
        for key, kind in KINDS.items()
        if not isinstance(data.get(key, kind()), kind)
    ]
    for name in (data[key] for key in ("license",) if key in data):
        wrong += [] if name in LICENSES else [f'"license" must be one of the Hub\'s licences, not {name!r}']
    for item in data.get("model-index", []):
        for result in item["results"]:
            if missing := {"task", "dataset", "metrics"} - result.keys():
                wrong.append(f'"model-index" needs {missing}')
    if data.get("colorFrom", "red") not in COLOURS:
        wrong.append('"colorFrom" is not a colour')
    if len(data.get("short_description", "")) > 60:
        wrong.append('"short_description" is longer than 60 characters')
    return wrong


def static_file(files: dict[str, bytes], path: str) -> tuple[bytes, dict[str, str]] | None:
    """Return a file of a static Space with the headers that its README asks for; None if there is none."""
    about = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    path = path or about["app_file"]
    if about["sdk"] != "static" or path not in files:
        return None
    kind = TYPES.get(path.rsplit(".", 1)[-1], "application/octet-stream")
    return files[path], {"Content-Type": kind} | about.get("custom_headers", {})
