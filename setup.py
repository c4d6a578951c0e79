"Hand the metadata in settings.ini to setuptools."
import warnings
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_namespace_packages, setup

warnings.filterwarnings("ignore", message="Editable installation") # says only that the folder is used as it is, which is what -e is for

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="], interpolation=None)
cfg.read(here/"settings.ini", encoding="utf-8")
meta = cfg["DEFAULT"]

def lines(key):
    "The non-empty lines of a multi-line setting"
    return [o.strip() for o in meta[key].splitlines() if o.strip()]

setup(
    description=meta["description"],
    long_description=(here/"README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=meta["author"],
    author_email=meta["author_email"],
    license=meta["license"],
    keywords=meta["keywords"].split(),
    python_requires=f">={meta['min_python']}",
    install_requires=lines("requirements"),
    extras_require={k.removesuffix("_requirements"): lines(k) for k in meta if k.endswith("_requirements")},
    entry_points={"console_scripts": lines("console_scripts"), "nbdev": ["picie_nb = picie_nb._modidx:d"]},
    packages=find_namespace_packages(include=["picie_nb*"]),
    package_data={"picie_nb": ["tables/*.json", "segmenters/*.safetensors", "*.mplstyle"]},
    include_package_data=True,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Education",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
