"""The site has the layout of the repository, so that a link from file to file works in both."""

import logging
import re
from pathlib import Path

from mkdocs.structure.files import File

# What other folders say of themselves; everything in docs/ is a page as well.
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "bench/README.md", "csrc/kernels/README.md")
ELSEWHERE = re.compile(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="?(?:https?:)?//[^>]*>')

log = logging.getLogger("mkdocs.hooks.pyce")


def on_files(files, config):
    root = Path(config.config_file_path).parent
    inside = [file for file in files if file.src_dir == config.docs_dir]
    paths = [f"docs/{file.src_uri}" for file in inside]
    for file in inside:
        files.remove(file)
    for path in (*paths, *PAGES):
        target = "index.html" if path == "docs/index.md" else None
        files.append(File(path, str(root), config.site_dir, False, dest_uri=target))
    return files


def on_post_page(output, page, config):
    """A page that fetches something from elsewhere is not read without a network."""
    for tag in ELSEWHERE.findall(output):
        log.warning("%s is not offline: %s", page.file.src_uri, tag)
    return output
