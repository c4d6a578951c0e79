"A folder of photos in other people's hands: names, headers and disks that are not as they should be end in a picture or in one sentence, and no result is replaced by that of another photo"
import io, json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from picie_nb.backbone import create_backbone
from picie_nb.cli import picie_check, picie_gallery, picie_segment, picie_train
from picie_nb.data.folders import ToyScenes, image_files, open_image, readable
from picie_nb.fpn import PiCIENet
from picie_nb.learner import picie_config
from picie_nb.segmenter import Segmenter
import picie_nb.all

ROOT = Path(__file__).parent.parent
SMALL = dict(backbone="test_efficientnet", pretrained=False, clusters=3, epochs=2, size=32, bs=4, draws=1, quiet=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Six photos and a model"
    root = tmp_path_factory.mktemp("use")
    ToyScenes(n=6, size=48, seed=0).save(root)
    torch.manual_seed(0)
    net = PiCIENet(create_backbone("test_efficientnet", pretrained=False), 16).eval()
    Segmenter(net, torch.randn(4, 16), size=32).save(root/"m.safetensors")
    return root


def latin(folder):
    "A name as an old Windows wrote it"
    return folder/os.fsdecode(b"red\xe9.png")

def small_disk(code, *args, **env):
    "Run Python where no file may have more than 100 kB"
    begin = "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    return subprocess.run([sys.executable, "-c", begin+code, *map(str, args)], capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT), **env})


def test_training_on_a_photo_whose_name_is_not_utf8(photos, tmp_path):
    "Its checkpoints are written, and a resumed training knows it again"
    try: (photos/"0.png").rename(latin(photos))
    except OSError: pytest.skip("this disk takes names in UTF-8 only")
    assert len(picie_train(str(photos), out=str(tmp_path/"t.safetensors"), **SMALL)["history"]) == 2


def damaged_notes():
    "A JPEG that is stored sideways, and what it shows; in its EXIF data a text stands where the height should be"
    exif = Image.Exif()
    exif[0x112], exif[0x132] = 6, "2020:01:01 00:00:00"
    im = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)).resize((60, 40), Image.BICUBIC)
    im.save(data := io.BytesIO(), "JPEG", exif=exif, quality=95)
    data = data.getvalue()
    assert b"\x01\x32\0\x02" in data
    return data.replace(b"\x01\x32\0\x02", b"\x01\x01\0\x02"), im.transpose(Image.Transpose.ROTATE_270)

def test_photo_with_damaged_notes(photos, tmp_path):
    "The picture is whole, so it is used, and upright"
    data, im = damaged_notes()
    (photos/"6.jpg").write_bytes(data)
    got = open_image(photos/"6.jpg")
    assert got.size == (40, 60) and np.abs(np.asarray(got).astype(int)-np.asarray(im)).mean() < 9
    assert not readable(image_files(photos))[1] and len(picie_train(str(photos), out=str(tmp_path/"t.safetensors"), **SMALL)["history"]) == 2


def broken_avif(data):
    "With one byte changed, so that the decoder stops with an error of its own"
    for i in range(len(data)-200, len(data)):
        broken = data[:i]+bytes([data[i]^255])+data[i+1:]
        try: Image.open(io.BytesIO(broken)).load()
        except RuntimeError: return broken
        except Exception: pass
    pytest.skip("this Pillow has no such errors")

def test_photo_that_its_decoder_refuses(world, photos, tmp_path):
    "It is skipped, whatever kind of error there is, and the others are segmented"
    Image.init()
    if "AVIF" not in Image.SAVE: pytest.skip("this Pillow writes no AVIF")
    Image.open(photos/"0.png").save(photos/"a.avif")
    (photos/"a.avif").write_bytes(broken_avif((photos/"a.avif").read_bytes()))
    assert list(readable(image_files(photos))[1]) == [photos/"a.avif"]
    assert picie_segment(str(world/"m.safetensors"), str(photos), out=str(tmp_path/"out"), quiet=True) == 1
    assert len(json.loads((tmp_path/"out"/"manifest.json").read_text())) == 6
    with pytest.raises(ValueError, match="a.avif cannot be read: .*Replace or remove it"): open_image(photos/"a.avif")


SAVED = { # what is written: code
    "segmenter": "seg.save(out/'x.safetensors')", "onnx": "seg.to_onnx(out/'x.onnx')", "torch": "seg.to_torch(out/'x.pt2', 32, 32)",
}

@pytest.mark.parametrize("kind", SAVED)
def test_full_disk(kind, world, tmp_path):
    "An error of the disk, not of the network, and not the end of Python; nothing is left"
    code = f"import warnings; warnings.simplefilter('ignore')\nfrom pathlib import Path\nfrom picie_nb.all import *\nseg, out = Segmenter.load(sys.argv[1]), Path(sys.argv[2])\ntry: {SAVED[kind]}\nexcept OSError as e: print('told', e)"
    res = small_disk(code, world/"m.safetensors", tmp_path)
    assert res.returncode == 0 and res.stdout.startswith("told") and "backbone" not in res.stdout and not list(tmp_path.iterdir()), res.stderr[-1000:]


def test_a_model_is_for_whom_other_files_are(world, tmp_path):
    "Others may read a segmenter that may read what else is written beside it"
    (tmp_path/"x").write_text("")
    assert Segmenter.load(world/"m.safetensors").save(tmp_path/"m.safetensors").stat().st_mode == (tmp_path/"x").stat().st_mode


def shell(*args, **env): return subprocess.run([str(Path(sys.executable).parent/args[0]), *map(str, args[1:])], capture_output=True, text=True, errors="backslashreplace", timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT), **env})


def test_names_that_are_no_text_are_printed(world, photos, tmp_path):
    "A terminal of UTF-8 has no room for them; what was done is done, and said"
    try: (photos/"0.png").rename(latin(photos))
    except OSError: pytest.skip("this disk takes names in UTF-8 only")
    res = shell("picie-segment", world/"m.safetensors", photos, "--out", tmp_path/os.fsdecode(b"mai\xe9"), "--json", tmp_path/"r.json", PYTHONIOENCODING="utf-8:strict")
    assert res.returncode == 0 and r"mai\udce9" in res.stdout and json.loads((tmp_path/"r.json").read_text())["images"] == 6, res.stderr


def test_a_pipe_is_not_replaced(world, photos, tmp_path):
    "Nor a device: for root, /dev/null would be a file from then on"
    os.mkfifo(tmp_path/"pipe")
    model = str(world/"m.safetensors")
    for f in (lambda: picie_segment(model, str(photos), out=str(tmp_path/"out"), json=str(tmp_path/"pipe")), lambda: picie_gallery(model, str(photos), out=str(tmp_path/"pipe")),
              lambda: picie_train(str(photos), out=str(tmp_path/"t.safetensors"), json=str(tmp_path/"pipe"), **SMALL)):
        with pytest.raises(ValueError, match="pipe is a device or a pipe"): f()
    assert [f.name for f in tmp_path.iterdir() if f.is_fifo()] == ["pipe"] and len(list(tmp_path.iterdir())) == 2


def test_reports_are_refused_before_the_work(world, photos, tmp_path, capsys):
    "Not after hours of films, maps or looking at masks"
    (tmp_path/"film.mp4").write_bytes(b"no film")
    model, kw = str(world/"m.safetensors"), dict(json=str(photos))
    for f in (lambda: picie_segment(model, str(tmp_path/"film.mp4"), out=str(tmp_path/"out"), **kw), lambda: picie_segment(model, str(photos), geo=True, out=str(tmp_path/"out"), **kw), lambda: picie_check(str(photos), **kw)):
        with pytest.raises(ValueError, match="photos is a folder: give the name of a file"): f()
    assert not (tmp_path/"out").exists() and not capsys.readouterr().out


def test_photos_of_one_name_in_two_folders(world, photos, tmp_path):
    "As two cameras number them: the map of one does not take the place of the other's; a folder that was moved, or linked, is the same"
    model, out, other, link = str(world/"m.safetensors"), tmp_path/"out", tmp_path/"other", tmp_path/"link"
    def segment(*paths): return picie_segment(model, *map(str, paths), out=str(out), quiet=True)
    segment(photos)
    other.mkdir()
    Image.new("RGB", (60, 40)).save(other/"1.png")
    was = (out/"1.png").read_bytes()
    with pytest.raises(ValueError, match="holds 1.png, the map of another photo, .*photos/1.png"): segment(other)
    assert (out/"1.png").read_bytes() == was
    link.symlink_to(photos)
    assert segment(link) == 0
    photos.rename(tmp_path/"moved")
    link.unlink()
    assert segment(tmp_path/"moved") == 0
    assert json.loads((out/"manifest.json").read_text())["1.png"] == str(tmp_path/"moved"/"1.png")


@pytest.mark.parametrize("config, says", {"mdc=false": "mdc='false': give True or False", "mdc=no": "mdc='no': give True or False", "lr=fast": "lr='fast': give a number", "view_scale=(1,2)": "view_scale=\\(1, 2\\): give a number"}.items())
def test_values_of_another_kind(config, says, photos, tmp_path):
    "The text false is true for Python: such a training was of MDC, not of PiCIE"
    with pytest.raises(ValueError, match=says): picie_train(str(photos), config=config, out=str(tmp_path/"t.safetensors"), **SMALL)
    assert picie_config("improved", mdc=0, lr=np.float32(1e-3), colour=1).mdc == 0


def test_a_folder_that_is_closed(photos, monkeypatch):
    "For lack of permission: it is named, not passed over in silence; if it is all there is, it is the reason"
    (photos/"private").mkdir()
    Image.new("RGB", (8, 8)).save(photos/"private"/"p.png")
    look = os.scandir
    def scandir(path):
        if Path(path).name == "private": raise PermissionError(13, "Permission denied", str(path))
        return look(path)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(UserWarning, match="left out: .*private cannot be looked into .Permission denied"): assert len(image_files(photos)) == 6
    with pytest.raises(PermissionError, match="private"): image_files(photos/"private")


def test_numbers_that_no_machine_has(world, photos, tmp_path):
    with pytest.raises(ValueError, match="num_workers=-1"): picie_train(str(photos), out=str(tmp_path/"t.safetensors"), num_workers=-1, **SMALL)
    app = pytest.importorskip("picie_nb.use.app")
    for port in (-1, 70000):
        with pytest.raises(ValueError, match=f"port {port}: from 1 to 65535"), app._serving(photos, port=port): pass


def test_two_pages_train(photos, monkeypatch):
    "The second neither removes the checkpoints of the first nor writes down other settings as those of its training"
    app = pytest.importorskip("picie_nb.use.app")
    run = photos.with_name("photos-picie")/"training"
    run.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", "import sys, pathlib\nfrom picie_nb.training.checkpoint import _lock\n_lock(pathlib.Path(sys.argv[1])); print(1, flush=True); sys.stdin.read()", str(run)],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    other.stdout.readline()
    monkeypatch.setattr(app, "_photo_learner", None)
    with pytest.raises(ValueError, match="in use by another process that trains"): app.PhotoProject(photos).train(2, 1, 32, tell=lambda *_: None)
    assert run.exists() and not (run.parent/"training.json").exists()
    other.communicate()


@pytest.mark.parametrize("kw, says", [(dict(polygons=9), "--polygons is not for photos and videos: add --geo"), (dict(polygons=0), "--polygons"), (dict(scale=2.), "--scale"), (dict(bands="3,2,1"), "--bands"),
                                      (dict(geo=True, polygons=9, leave_out="0"), "--leave-out is not for --geo"), (dict(geo=True, min_area=50), "--min-area is not for --geo")])
def test_options_of_other_work(kw, says, world, photos, tmp_path):
    "They are not passed over in silence: what they leave out would be there"
    with pytest.raises(ValueError, match=says): picie_segment(str(world/"m.safetensors"), str(photos), out=str(tmp_path/"out"), **kw)
    assert not (tmp_path/"out").exists()


def test_a_model_that_is_replaced_meanwhile(world, photos, tmp_path, monkeypatch):
    "As by the next training: the legend says which one has made the maps, and the maps are in the manifest"
    from picie_nb import segmenter
    from picie_nb.use.stream import _digest
    model, out, save = tmp_path/"m.safetensors", tmp_path/"out", segmenter.Segmentation.save
    model.write_bytes((world/"m.safetensors").read_bytes())
    was = _digest(model)
    def gone(self, path): model.unlink(missing_ok=True); return save(self, path)
    monkeypatch.setattr(segmenter.Segmentation, "save", gone)
    assert picie_segment(str(model), str(photos), out=str(out), quiet=True) == 0
    assert {o["model"] for o in json.loads((out/"legend.json").read_text())} == {was} and len(json.loads((out/"manifest.json").read_text())) == 6


@pytest.mark.parametrize("ext", ("jpg", "png", "webp", "tif"))
def test_a_photo_is_turned_once(tmp_path, ext):
    "What `open_image` gives is upright, and says so"
    im = Image.new("RGB", (60, 40), "red")
    exif = im.getexif()
    exif[0x112] = 6
    im.save(f := tmp_path/f"a.{ext}", exif=exif)
    once = open_image(f)
    assert once.size == open_image(once).size == (40, 60) and once.getexif().get(0x112, 1) == 1
