"The commands as processes, on a small world on disk."
import json, os, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from conftest import ROOT
from picie_nb.data import ToyScenes

SMALL = ["--no-pretrained", "--clusters", "8", "--epochs", "1", "--size", "32", "--bs", "4", "--draws", "2"]


def run(*args):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(Path(sys.executable).parent/args[0]), *map(str, args[1:])], capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Photos and masks; the masks of the training photos are garbage, so that nobody can open them unnoticed"
    root = tmp_path_factory.mktemp("a world with spaces and ünicode")
    ToyScenes(n=8, size=48, seed=0).save(root/"train")
    ToyScenes(n=4, size=48, seed=1).save(root/"test")
    for f in (root/"train"/"masks").iterdir(): f.write_bytes(b"not a mask")
    return root


@pytest.fixture(scope="module")
def trained(world):
    res = run("picie-train", world/"train"/"images", "--valid", world/"test"/"images", "--masks", world/"test"/"masks", "--labels", "toyscenes",
              "--out", world/"m.safetensors", "--json", world/"r.json", *SMALL)
    assert res.returncode == 0, res.stderr
    return world, res.stdout


def test_train_reports(trained):
    world, out = trained
    r = json.loads((world/"r.json").read_text())
    for when in ("before", "after"): assert 0 < r[when]["acc"] < 1 and 0 < r[when]["miou"] < 1 and len(r[when]["draws"]) == 2
    assert len(r["history"]) == r["epochs"] == 1 and {"within", "cross", "accuracy", "miou"} <= set(r["history"][0])
    assert r["protocol"]["matching"] == "hungarian" and r["config"]["n_clusters"] == 8 and r["seed"] == 0
    assert "untrained" in out and str(world/"m.safetensors") in out


def test_same_seed_same_numbers(trained, tmp_path):
    world, _ = trained
    res = run("picie-train", world/"train"/"images", "--valid", world/"test"/"images", "--masks", world/"test"/"masks", "--labels", "toyscenes",
              "--out", tmp_path/"m.safetensors", "--json", tmp_path/"r.json", *SMALL)
    assert res.returncode == 0, res.stderr
    a, b = (json.loads((d/"r.json").read_text()) for d in (world, tmp_path))
    assert (a["before"], a["after"]) == (b["before"], b["after"])
    assert (tmp_path/"m.safetensors").read_bytes() == (world/"m.safetensors").read_bytes()


def test_segment_folder(trained, tmp_path):
    world, _ = trained
    mixed = tmp_path/"mixed"/"deep"
    mixed.mkdir(parents=True)
    Image.fromarray(ToyScenes(n=1, size=60)[0][0]).convert("L").resize((90, 30)).save(mixed/"wide.jpg")
    (mixed/"broken.png").write_bytes(b"")
    res = run("picie-segment", world/"m.safetensors", tmp_path/"mixed", "--out", tmp_path/"out", "--overlay")
    assert res.returncode == 1 and "broken.png" in res.stderr and "Traceback" not in res.stderr
    png = Image.open(tmp_path/"out"/"deep"/"wide.png")
    assert png.size == (90, 30) and png.mode == "P" and np.asarray(png).max() < 8
    assert (tmp_path/"out"/"deep"/"wide.overlay.jpg").exists()
    assert [o["cluster"] for o in json.loads((tmp_path/"out"/"legend.json").read_text())] == list(range(8))


@pytest.mark.parametrize("args, says", [
    (["picie-train", "/nowhere"], "/nowhere"),
    (["picie-train", "{w}/train/images", "--masks", "{w}/test/masks"], "--labels"),
    (["picie-train", "{w}/train/images", "--valid", "{w}/test/images", "--masks", "{w}/test/masks", "--labels", "camvid12"], "camvid11"),
    (["picie-train", "{w}/train/images", "--preset", "best"], "'improved'"),
    (["picie-train", "{w}/train/images", "--weights", "{w}/none.pt"], "none.pt"),
    (["picie-train", "{w}/train/images", "--no-pretrained", "--size", "32", "--clusters", "99999", "--out", "{w}/big.safetensors"], "99999"),
    (["picie-train", "{w}/train/images/00000.png", "--no-pretrained", "--size", "32"], "one image is too few"),
    (["picie-segment", "{w}/none.safetensors", "{w}/test/images"], "none.safetensors"),
    (["picie-segment", "{w}/train/masks/00000.png", "{w}/test/images"], "not a complete safetensors"),
])
def test_a_mistake_is_one_line(world, args, says):
    res = run(*(a.format(w=world) for a in args))
    last = res.stderr.strip().splitlines()[-1:]
    assert res.returncode == 1 and says in last[0] and "Traceback" not in res.stderr, res.stderr
    assert not (world/"big.safetensors").exists()
