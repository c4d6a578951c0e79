"Everything public in one import: `from picie_nb.all import *`"
from .labels import *
from .data import *
from .transforms import *
from .backbone import *
from .fpn import *
from .clustering import *
from .losses import *
from .metrics import *
from .callback import *
from .learner import *
from .segmenter import *
from .cli import picie_demo, picie_train, picie_segment
