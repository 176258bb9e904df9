"""The documents as a site: built without a warning, every link inside leads to a page and a place on it."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

for package in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(package, reason="docs/requirements.txt is not installed")

DOCS = Path(__file__).resolve().parents[2] / "docs"


class Page(HTMLParser):
    """The anchors of a page, and what it links to."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        self.links += [values["href"]] if tag == "a" and values.get("href") else []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(folder / "trees"), str(DOCS)]
    built = subprocess.run([*line, str(folder / "html")], capture_output=True, text=True, cwd=folder)
    assert built.returncode == 0, built.stderr
    return folder / "html"


def test_every_document_is_a_page_with_the_readme_first(site):
    assert {path.stem for path in DOCS.glob("*.md")} <= {path.stem for path in site.glob("*.html")}
    assert "scripts/quickstart.sh" in (site / "index.html").read_text(encoding="utf-8")


def test_links_lead_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.name} links to {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.name} links to {link}"
            checked += 1
    assert checked > 500


def test_the_classes_that_others_extend_have_entries(site):
    page = Page(site / "genindex.html")
    for name in ("dassl.engine.trainer.TrainerX", "adaptation.method.Method", "clip.backbone.Backbone"):
        assert any(link.endswith(f"#{name}") for link in page.links), name


def test_nothing_is_loaded_from_elsewhere(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert 'src="http' not in text
        assert '<link rel="stylesheet" type="text/css" href="http' not in text
