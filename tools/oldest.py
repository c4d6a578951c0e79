"Print the oldest versions that settings.ini allows, as a pip constraints file."
import re
from configparser import ConfigParser
from pathlib import Path

cfg = ConfigParser(delimiters=["="], interpolation=None)
cfg.read(Path(__file__).resolve().parent.parent/"settings.ini", encoding="utf-8")
for line in cfg["DEFAULT"]["requirements"].splitlines():
    if found := re.match(r"([\w-]+)>=([\w.]+)(.*)", line.strip()): print("{0}=={1}{2}".format(*found.groups()))
