"The commands as processes, on a small world on disk."
import json, os, shutil, signal, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from forked import command
from picie_nb.data.folders import ToyScenes
from picie_nb.segmenter import Segmenter

SMALL = ["--backbone", "test_efficientnet", "--no-pretrained", "--clusters", "8", "--epochs", "1", "--size", "32", "--bs", "4", "--draws", "2"]


run = command


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


def test_train_skips_broken(world, tmp_path):
    "A photo that is cut short is named and left out; it does not end a training"
    shutil.copytree(world/"train"/"images", tmp_path/"photos")
    (tmp_path/"photos"/"cut.png").write_bytes((tmp_path/"photos"/"00000.png").read_bytes()[:200])
    res = run("picie-train", tmp_path/"photos", "--out", tmp_path/"m.safetensors", *SMALL)
    assert res.returncode == 0 and "skipped" in res.stderr and "cut.png" in res.stderr and (tmp_path/"m.safetensors").exists(), res.stderr


def interrupted(how, until, *args):
    "Send a signal to a training as soon as it has printed the row of an epoch"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    usual = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) # what runs in the background of a shell is born deaf to Ctrl-C
    p = subprocess.Popen([str(Path(sys.executable).parent/args[0]), *map(str, args[1:])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=usual)
    for line in p.stdout:
        if line.split()[:1] == [str(until)]: p.send_signal(how); break
    _, err = p.communicate(timeout=300)
    return p.returncode, err


def test_stop_and_resume(world, tmp_path):
    "Ctrl-C after one epoch, a scheduler's SIGTERM after the next, then SIGKILL: what is resumed ends with the bytes of a run that nobody stopped"
    args = ["picie-train", world/"train"/"images", "--valid", world/"test"/"images", *SMALL, "--epochs", "6"]
    out = tmp_path/"m.safetensors"
    for how, until, more in ((signal.SIGINT, 1, ()), (signal.SIGTERM, 2, ["--resume"])):
        code, err = interrupted(how, until, *args, "--out", out, *more)
        assert code == 130 and "--resume" in err.strip().splitlines()[-1] and "Traceback" not in err, err
        assert out.exists() and (tmp_path/"m.run").is_dir()
        res = run(*args, "--out", out)
        assert res.returncode == 1 and "go on with --resume" in res.stderr, res.stderr
        out.unlink() # the next shall write it anew
    code, err = interrupted(signal.SIGKILL, 4, *args, "--out", out, "--resume")
    assert code == -signal.SIGKILL, err
    res = run(*args, "--out", out, "--resume", "--json", "-")
    assert res.returncode == 0 and not (tmp_path/"m.run").exists(), res.stderr
    whole = run(*args, "--out", tmp_path/"whole.safetensors", "--json", tmp_path/"whole.json", "--quiet")
    assert whole.returncode == 0 and whole.stdout == "", whole.stderr
    a, b = ([{k: v for k, v in o.items() if k != "seconds"} for o in json.loads(o)["history"]] for o in (res.stdout, (tmp_path/"whole.json").read_text()))
    assert a == b and [o["epoch"] for o in a] == [1, 2, 3, 4, 5, 6]
    assert out.read_bytes() == (tmp_path/"whole.safetensors").read_bytes()
    assert Image.open(tmp_path/"m.sheet.png").width > 300


def test_json_is_all_there_is(trained, tmp_path):
    "With --json - the output is one JSON document, for each command"
    world, _ = trained
    images, model = world/"test"/"images", world/"m.safetensors"
    for args, key in ((["picie-segment", model, images, "--out", tmp_path/"a"], "legend"), (["picie-segment", model, images, "--out", tmp_path/"b", "--onnx"], "legend"),
                      (["picie-gallery", model, images, "--out", tmp_path/"g.html"], "clusters"), (["picie-export", model, tmp_path/"m.pt2", "--size", "32x48"], "names"),
                      (["picie-check", world/"test", "--labels", "toyscenes"], "problems"), (["picie-evaluate", tmp_path/"a", world/"test"/"masks", "--labels", "toyscenes"], "score")):
        res = run(*args, "--json", "-")
        assert res.returncode == 0 and json.loads(res.stdout)[key] is not None, (args, res.stderr)
    a, b = (np.stack([np.asarray(Image.open(f)) for f in sorted((tmp_path/d).glob("*.png"))]) for d in "ab")
    assert a.shape == b.shape and (a == b).mean() > .99
    res = run("picie-segment", model, images, "--out", tmp_path/"c", "--quiet")
    assert (res.returncode, res.stdout) == (0, ""), res.stderr


def test_gallery_and_export(trained, tmp_path):
    world, _ = trained
    res = run("picie-gallery", world/"m.safetensors", world/"test"/"images", "--out", tmp_path/"g.html", "--patches", "2")
    page = (tmp_path/"g.html").read_text()
    assert res.returncode == 0 and page.count("<section") == 8 and "<script" not in page, res.stderr
    res = run("picie-export", world/"m.safetensors", tmp_path/"named.safetensors", "--names", "0=road,3=sky,5=road")
    assert res.returncode == 0 and "road" in res.stdout, res.stderr
    res = run("picie-segment", tmp_path/"named.safetensors", world/"test"/"images", "--out", tmp_path/"out")
    assert res.returncode == 0 and [o["name"] for o in json.loads((tmp_path/"out"/"legend.json").read_text())][0] == "road", res.stderr


def test_what_was_made_by_hand_is_not_replaced(trained, tmp_path):
    "Names of clusters, which no training makes again, and files of others; a model as it was trained may go"
    world, _ = trained
    named, other, plain = (tmp_path/f"{o}.safetensors" for o in ("named", "other", "plain"))
    shutil.copy(world/"m.safetensors", plain)
    Segmenter.load(plain).named({3: "sky"}).save(named)
    other.write_bytes(b"weights")
    for out, says in ((named, "holds names that somebody gave"), (other, "is no segmenter"), (plain, None)):
        was = out.read_bytes()
        res = run("picie-train", world/"train"/"images", "--out", out, "--seed", "1", *SMALL)
        assert res.returncode == bool(says) and (out.read_bytes() == was) == bool(says), res.stderr
        if says: assert says in res.stderr and len(res.stderr.strip().splitlines()) == 1, res.stderr


def test_evaluate(world, tmp_path):
    "Predictions that nobody here made: a shifted copy of the truth, 16 bits, against the masks; and a worse one"
    rng = np.random.default_rng(0)
    for i in range(4):
        true = np.asarray(Image.open(world/"test"/"masks"/f"{i:05}.png")).astype(np.uint16)
        pred = np.where(true == 255, 0, (true+3) % 8).astype(np.uint16)
        worse = np.where(rng.random(pred.shape) < .3, rng.integers(0, 8, pred.shape), pred).astype(np.uint16)
        for d, a in (("pred", pred), ("worse", worse), ("small", worse[::2, ::2])):
            (tmp_path/d).mkdir(exist_ok=True)
            Image.fromarray(a).save(tmp_path/d/f"{i:05}.png")
    (tmp_path/"pred"/"00000.overlay.jpg").write_bytes(b"JPEGs are not looked at")
    args = [world/"test"/"masks", "--labels", "toyscenes"]
    res = run("picie-evaluate", tmp_path/"worse", *args, "--versus", tmp_path/"pred", "--bootstrap", "100", "--json", tmp_path/"r.json", "--confusion", tmp_path/"c.png")
    assert res.returncode == 0, res.stderr
    assert f"wrote {tmp_path/'r.json'}" in res.stdout and f"wrote {tmp_path/'c.png'}" in res.stdout and "A - B" in res.stdout and "precision" in res.stdout
    r = json.loads((tmp_path/"r.json").read_text())
    assert .6 < r["score"]["acc"] < .9 and r["n_images"] == 4 and r["score"]["protocol"]["matching"] == "hungarian"
    assert r["intervals"]["acc"]["low"] < r["score"]["acc"] < r["intervals"]["acc"]["high"]
    assert r["versus"]["miou"]["better"] == 0 and r["versus"]["miou"]["high"] < 0
    assert np.array(r["confusion"]).shape == (8, 8) and {o["name"] for o in r["per_class"]} == set(r["score"]["iou"])
    assert Image.open(tmp_path/"c.png").width > 400
    res = run("picie-evaluate", tmp_path/"small", *args, "--resize", "--clusters", "8", "--bootstrap", "0", "--matching", "many-to-one", "--json", tmp_path/"m.json")
    r = json.loads((tmp_path/"m.json").read_text())
    assert res.returncode == 0 and r["intervals"] is None and r["score"]["protocol"]["matching"] == "many_to_one" and r["score"]["acc"] > .5
    res = run("picie-evaluate", tmp_path/"small", *args)
    assert res.returncode == 1 and "24 x 24 pixels, its truth 48 x 48" in res.stderr and len(res.stderr.strip().splitlines()) == 1


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
    (["picie-gallery", "{w}/none.safetensors", "{w}/test/images"], "none.safetensors"),
    (["picie-export", "{w}/none.safetensors", "{w}/m.onnx"], "none.safetensors"),
    (["picie-evaluate", "{w}/test/masks", "{w}/test/masks"], "which classes?"),
    (["picie-evaluate", "{w}/test/masks", "{w}/test/masks", "--protocol", "coco"], "picie-coco27-320"),
    (["picie-evaluate", "{w}/test/masks", "{w}/train/masks", "--labels", "toyscenes"], "4 of 8 truths have no prediction"),
    (["picie-evaluate", "{w}/test/images", "{w}/test/masks", "--labels", "toyscenes"], "holds colours"),
    (["picie-evaluate", "{w}/test/masks", "{w}/test/masks", "--labels", "toyscenes", "--json", "{w}/test"], "is a folder"),
])
def test_a_mistake_is_one_line(world, args, says):
    res = run(*(a.format(w=world) for a in args))
    last = res.stderr.strip().splitlines()[-1:]
    assert res.returncode == 1 and says in last[0] and "Traceback" not in res.stderr, res.stderr
    assert not (world/"big.safetensors").exists()


def test_maps_of_two_models_in_one_folder(trained, tmp_path):
    "A legend would name the maps of the first by the clusters of the second"
    from picie_nb.segmenter import Segmenter
    world, _ = trained
    other = Segmenter.load(world/"m.safetensors").named({0: "sky"}).save(tmp_path/"other.safetensors")
    first, second = world/"test"/"images", world/"train"/"images"
    assert run("picie-segment", world/"m.safetensors", first, "--out", tmp_path/"out").returncode == 0
    legend = (tmp_path/"out"/"legend.json").read_bytes()
    for f in second.iterdir(): shutil.copy(f, tmp_path/f"second-{f.name}")
    twin = Segmenter.load(world/"m.safetensors")
    twin.centroids = twin.centroids.flip(0) # other clusters of the same names and colours
    for o in other, twin.save(tmp_path/"twin.safetensors"):
        res = run("picie-segment", o, *tmp_path.glob("second-*"), "--out", tmp_path/"out")
        assert res.returncode == 1 and "holds maps that another model has made, such as 00000.png" in res.stderr and "Traceback" not in res.stderr
    assert (tmp_path/"out"/"legend.json").read_bytes() == legend and not list((tmp_path/"out").glob("second-*"))
    assert run("picie-segment", other, first, "--out", tmp_path/"out").returncode == 0 # the same photos again: nothing of the first stays
