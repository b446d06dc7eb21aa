"""Give the site the repository's layout: relative links work in both."""

import logging
import re
from pathlib import Path

from mkdocs.structure.files import File

# Pages outside docs/, and programs that pages link to.
PAGES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    "csrc/kernels/README.md",
    "examples/byte_pairs.py",
    "examples/ddp.py",
    "examples/language_model.py",
    "examples/perplexity.py",
)
ELSEWHERE = re.compile(
    r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="?(?:https?:)?//[^>]*>'
)

log = logging.getLogger("mkdocs.hooks.pyce")


def on_files(files, config):
    root = Path(config.config_file_path).parent

    def add(path, **options):
        files.append(File(path, str(root), config.site_dir, False, **options))

    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
        path = f"docs/{file.src_uri}"
        home = {"dest_uri": "index.html"} if path == "docs/index.md" else {}
        add(path, inclusion=file.inclusion, **home)
    for path in PAGES:
        add(path)
    return files


def on_post_page(output, page, config):
    """Warn of tags that load from another site: they fail without a network."""
    for tag in ELSEWHERE.findall(output):
        log.warning("%s is not offline: %s", page.file.src_uri, tag)
    return output
