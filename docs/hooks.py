"""What MkDocs does with these pages beside turning them into HTML.

The pages read the same on a disk, in the repository and in the site. So a link to a file outside
of docs/ brings that file into the site, and ``::: jaxrnn.name`` stands for what
``jaxrnn/__init__.py`` imports under that name, though a module may be called the same. A block of
``math`` becomes MathML, which browsers read without a script. The site has the library's version,
and a link to the repository that the clone came from.
"""

import ast
import posixpath
import re
import subprocess
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()[^)#:\s]+(?=[)#])")
NAME = re.compile(r"^::: jaxrnn\.(\w+)$", re.MULTILINE)
MENDED = (  # of what latex2mathml writes
    (r"\\_", "_"),
    (r"<mo>([A-Za-z]\w+)</mo>", r"<mi>\1</mi>"),  # a name is no sign: nothing sets it apart
    (r"(&#x00028;|&#x0003D;)</mo><mo>(&#x02212;)", r'\1</mo><mo form="prefix">\2'),
    (r"<mo>(&#x0007C;)", r'<mo lspace="0" rspace="0">\1'),
)


def on_config(config):
    fence = {"name": "math", "class": "math", "format": _math}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    init = (ROOT / "jaxrnn" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"', init, re.MULTILINE)[1]
    config.site_name += f" {version}"
    if repository := _repository():
        config.nav.append({"Repository": repository})


def _math(source, *_, **__):
    mathml = convert(source)
    for found, wanted in MENDED:
        mathml = re.sub(found, wanted, mathml)
    return f'<div class="math">{mathml}</div>'


def _repository():
    """The web page of where the clone came from; None if it has none."""
    git = ("git", "-C", str(ROOT), "config", "remote.origin.url")
    url = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    found = re.fullmatch(r"(?:git@|https://(?:[^@/]*@)?)([\w.-]+)[:/](.+?)(?:\.git)?/?", url)
    return found and f"https://{found[1]}/{found[2]}"


def on_files(files, config):
    for page in list(files.documentation_pages()):
        for link in LINK.findall(page.content_string):
            path = _outside(page.src_uri, link)
            if path and not files.get_file_from_path(path):
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, **_):
    here = page.file.src_uri

    def moved(link):
        path = _outside(here, link[0])
        return posixpath.relpath(path, posixpath.dirname(here) or ".") if path else link[0]

    return NAME.sub(_whole, LINK.sub(moved, markdown))


def _outside(page, link):
    """Where a page's link leads from the root of the repository, None if to another page."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") or not (ROOT / path).is_file() else path


def _whole(match):
    heading = f"    options: {{heading: jaxrnn.{match[1]}, toc_label: {match[1]}}}"
    return f"::: {PUBLIC[match[1]]}.{match[1]}\n{heading}"


def _public():
    tree = ast.parse((ROOT / "jaxrnn" / "__init__.py").read_text(encoding="utf-8"))
    nodes = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return {name.name: node.module for node in nodes for name in node.names}


PUBLIC = _public()
