"Everything public in one import: `from picie_nb.all import *`"
from .labels import *
from .data import *
from .datasets import *
from .transforms import *
from .backbone import *
from .fpn import *
from .clustering import *
from .merging import *
from .refine import *
from .losses import *
from .metrics import *
from .protocols import *
from .evaluation import *
from .probes import *
from .selection import *
from .borders import *
from .distributed import *
from .callback import *
from .variants import *
from .teachers import *
from .checkpoint import *
from .health import *
from .learner import *
from .segmenter import *
from .gallery import *
from .widgets import *
from .cli import picie_demo, picie_train, picie_segment, picie_evaluate, picie_check, picie_gallery, picie_export
