"""Build the documentation site into _docs/, without Quarto.

nbdev processes the notebooks (links, API tables, hidden cells) into _proc/; smalldocs renders them.
The same nbs/_quarto.yml serves `quarto render _proc` where Quarto is installed.
"""
import os, shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    os.chdir(ROOT)
    from nbdev.doclinks import _build_modidx
    from nbdev.serve import proc_nbs
    _build_modidx()
    shutil.rmtree("_proc", ignore_errors=True)
    shutil.rmtree("_docs", ignore_errors=True)
    proc_nbs(n_workers=2)
    smalldocs = Path(sys.executable).parent/"smalldocs"
    subprocess.run([str(smalldocs), "render", "_proc"], check=True)
    shutil.move("_proc/_docs", "_docs")
    pages = len(list(Path("_docs").rglob("*.html")))
    print(f"{pages} pages in _docs/; look at them with: python -m http.server -d _docs")


if __name__ == "__main__": main()
