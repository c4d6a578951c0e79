"Package and README are what the notebooks say, and the notebooks are clean."
import shutil, subprocess, sys
from pathlib import Path
from conftest import ROOT

BIN = Path(sys.executable).parent


def test_export_clean_readme(tmp_path):
    "In a copy of the project: export, clean and rebuild the README; nothing changes"
    for d in ("nbs", "picie_nb", "tools"):
        shutil.copytree(ROOT/d, tmp_path/d, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_proc"))
    for f in ("pyproject.toml", "settings.ini", "setup.py", "README.md"): shutil.copy(ROOT/f, tmp_path/f)
    for cmd in (["nbdev-export"], ["nbdev-clean"]):
        res = subprocess.run([str(BIN/cmd[0]), *cmd[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert res.returncode == 0, res.stderr
    subprocess.run([sys.executable, "tools/readme.py"], cwd=tmp_path, check=True)
    stale = [str(f.relative_to(tmp_path)) for d in ("nbs", "picie_nb", "README.md") for f in ([tmp_path/d] if (tmp_path/d).is_file() else (tmp_path/d).rglob("*"))
             if f.is_file() and "__pycache__" not in f.parts and not _same(f, ROOT/f.relative_to(tmp_path))]
    assert stale == [], "run `make sync` and commit"


def _same(a, b): return b.exists() and a.read_bytes() == b.read_bytes()
