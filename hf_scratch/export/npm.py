"""The JavaScript that the page in the browser is served with: packages of npm, pinned by version and hash, and cached.

Nothing of them is part of this repository. What does not have the hash that is written here is not used.
"""

import base64
import hashlib
import io
import os
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

REGISTRY = "https://registry.npmjs.org"
SECONDS = 60  # that the registry may take for a package


@dataclass(frozen=True)
class Package:
    """A version of a package and its tarball's SHA-512, as `npm view PACKAGE dist` gives it."""

    name: str
    version: str
    integrity: str
    files: dict[str, str] = field(hash=False)  # path in the package: path in the page's folder `vendor`

    @property
    def path(self) -> str:
        """Where its tarball lies in a registry."""
        return f"{self.name}/-/{self.name.split('/')[-1]}-{self.version}.tgz"


PACKAGES = (
    Package(  # MIT: llama.cpp as WebAssembly
        "@wllama/wllama",
        "3.13.0",
        "sha512-ZvoRdQAn+E+18EvQ9qS036gudiI9rbZRBJgG/qNICPPwrA0Y6SMMdbziz/j7K/0WxcbJlhaRraVIYsnEy732NA==",
        {"esm/index.js": "wllama/index.js", "esm/wasm/wllama.wasm": "wllama/wllama.wasm", "LICENCE": "wllama/LICENCE"},
    ),
    Package(  # MIT: the same for browsers without stack switching or 64-bit memory, such as Safari
        "@wllama/wllama-compat",
        "3.13.0",
        "sha512-MSWwyzVXpwkstvIGzOsQ9jlRm8kY5S5J0Gdw4E6M9mXqhgO/5tj+YNfxSoqN1GvsAOwui95JPtwX3hO6VZkbzg==",
        {"wasm/wllama.js": "wllama-compat/wllama.js", "wasm/wllama.wasm": "wllama-compat/wllama.wasm"},
    ),
    Package(  # Apache-2.0
        "@huggingface/tokenizers",
        "0.2.0",
        "sha512-LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        {"dist/tokenizers.min.mjs": "tokenizers/index.js", "LICENSE": "tokenizers/LICENSE"},
    ),
    Package(  # MIT
        "@huggingface/jinja",
        "0.5.11",
        "sha512-YzEzwM5oQf4r0vs7ifWQ+yuVR1YkAHrjERQ+a8WRsStHHp4NRBg+NesjiFc+X2AFUpRvvrIeHDS1xFy9jY/IjQ==",
        {"dist/index.js": "jinja/index.js", "LICENSE": "jinja/LICENSE"},
    ),
)


def write_vendor(folder: Path) -> None:
    """Write the files of all packages into a folder.

    Raises:
        ValueError: A package cannot be fetched, or is not the one that was pinned.
    """
    for package in PACKAGES:
        with tarfile.open(fileobj=io.BytesIO(fetch(package)), mode="r:gz") as archive:
            for inside, place in package.files.items():
                content = archive.extractfile(f"package/{inside}")
                assert content is not None, "the hash is that of a package with this file"
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                (folder / place).write_bytes(content.read())


def fetch(package: Package) -> bytes:
    """Return a package's tarball, from the cache if it is there."""
    kept = cache() / package.path.replace("/", "_")
    if kept.is_file() and integrity(content := kept.read_bytes()) == package.integrity:
        return content
    url = f"{os.environ.get('npm_config_registry', REGISTRY).rstrip('/')}/{package.path}"
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            content = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(
            f"{package.name} {package.version}, which the page in the browser needs, cannot be fetched from {url} "
            f"({getattr(error, 'reason', error)}); look to the connection, name a mirror in npm_config_registry, or "
            "take --space-kind gradio."
        ) from None
    if integrity(content) != package.integrity:
        raise ValueError(f"{url} is not the package that was pinned (its SHA-512 is another one); it is not used.")
    kept.parent.mkdir(parents=True, exist_ok=True)
    beside = kept.with_name(f"{kept.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(kept)
    return content


def integrity(content: bytes) -> str:
    """Return npm's name of a content."""
    return f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"


def cache() -> Path:
    """Return the folder in which tarballs are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_scratch" / "npm"
