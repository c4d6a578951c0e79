import os
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent/"shared"  # real images and weights, on the project's own machines only
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1") # several workers share the cores
os.environ.setdefault("MPLBACKEND", "agg")


def notebooks():
    "All notebooks of the project, slowest first, so that two workers finish together"
    found = [p for p in (ROOT/"nbs").rglob("*.ipynb") if not any(q.startswith((".", "_")) for q in p.relative_to(ROOT/"nbs").parts)]
    return sorted(found, key=lambda p: (-p.stat().st_size, p.name))


@pytest.fixture(scope="session")
def shared():
    "The folder with real data, or a skip that says why"
    if not (SHARED/"data").exists(): pytest.skip(f"no real data at {SHARED}")
    return SHARED


@pytest.fixture
def photos(world, tmp_path):
    "A folder with copies of the photos of a module's `world`: 0.png, 1.png and so on"
    (tmp_path/"photos").mkdir()
    for i, f in enumerate(sorted((world/"images").iterdir())): (tmp_path/"photos"/f"{i}.png").write_bytes(f.read_bytes())
    return tmp_path/"photos"
