"""Pages that are made while the site is built: from files beside docs/, from the configs, from the docstrings."""

import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import reference  # noqa: E402  (needs the paths above)

#: Files outside docs/ -> their pages.
BESIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security_policy.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/results/h200_mix_pool/table.md": "kernel_table.md",
}


def on_config(config):
    """The API's pages join the navigation."""
    for section in config.nav:
        for item in next(iter(section.values())) if isinstance(section, dict) else []:
            if isinstance(item, dict) and item.get("API") == "reference/api/":
                item["API"] = [f"reference/api/{room}.md" for room in reference.rooms()]
    return config


def on_files(files, config):
    pages = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in BESIDE.items()}
    pages |= {"reference/commands.md": reference.commands(), "reference/settings.md": reference.settings()}
    pages["reference/verified.md"] = reference.verified()
    pages |= {f"reference/api/{room}.md": reference.api(room) for room in reference.rooms()}
    for notebook in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        pages[f"notebooks/{notebook.stem}.md"] = reference.notebook(notebook)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links between pages, from where their files lie to where their pages are."""
    source = {page: source for source, page in BESIDE.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    depth = page.file.src_uri.count("/")

    def moved(match):
        target, hash_, anchor = match[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = ((ROOT / source).parent / target).resolve()
        inside = path.relative_to(ROOT).as_posix()
        if inside in BESIDE:
            page = BESIDE[inside]
        elif inside.startswith("docs/") and path.is_file():
            page = re.sub(r"\.ipynb$", ".md", inside.removeprefix("docs/"))
        else:
            return match[1]  # a file of the repository that is no page
        return f"[{match[1]}]({'../' * depth}{page}{hash_}{anchor})"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", moved, markdown)
