"A folder of photos in other people's hands: names, headers and disks that are not as they should be end in a picture or in one sentence, and no result is replaced by that of another photo"
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from picie_nb.backbone import create_backbone
from picie_nb.cli import picie_check, picie_export, picie_gallery, picie_segment, picie_train
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


@pytest.fixture
def photos(world, tmp_path):
    "A folder with copies of the six photos: 0.png to 5.png"
    (tmp_path/"photos").mkdir()
    for i, f in enumerate(sorted((world/"images").iterdir())): (tmp_path/"photos"/f"{i}.png").write_bytes(f.read_bytes())
    return tmp_path/"photos"


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
