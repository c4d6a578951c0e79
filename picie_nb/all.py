"Everything public in one import: `from picie_nb.all import *`"
from .transforms import *
from .backbone import *
from .fpn import *
from .clustering import *
from .regions import *
from .losses import *
from .callback import *
from .learner import *
from .segmenter import *
from .published import *
from .data.labels import *
from .data.scenes import ToyScenes
from .data.folders import *
from .data.catalog import *
from .evaluate.metrics import *
from .evaluate.borders import *
from .evaluate.protocols import *
from .evaluate.report import *
from .evaluate.probes import *
from .training.distributed import *
from .training.checkpoint import *
from .training.health import *
from .use.stream import *
from .use.large import *
from .use.tree import *
from .use.annotations import *
from .use.deploy import *
from .use.gallery import *
from .use.names import *
from .use.widgets import *
from .use.app import PhotoProject, picie_app, serve_app
from .cli import picie_demo, picie_train, picie_segment, picie_evaluate, picie_check, picie_gallery, picie_export
