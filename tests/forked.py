"Fresh processes that need not load torch and fastai: each is a fork of one that has done only that"
import multiprocessing, os, runpy, sys, tempfile, traceback
from multiprocessing.connection import wait
from pathlib import Path
from subprocess import CompletedProcess

HEAVY = ["torch", "torchvision", "timm", "fastai.vision.all", "matplotlib.pyplot", "sklearn.metrics", "scipy.cluster.hierarchy", "nbdev.test", "execnb.shell"]
CTX = multiprocessing.get_context("forkserver")
CTX.set_forkserver_preload(HEAVY)


def _begin(f, args, out, err, cwd, env):
    for fd, path in ((1, out), (2, err)): os.dup2(os.open(path, os.O_WRONLY|os.O_APPEND), fd)
    import torch
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork" if sys.platform == "linux" else "spawn", force=True) # as in any other process
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    try: f(*args)
    except SystemExit as e:
        if isinstance(e.code, str): print(e.code, file=sys.stderr)
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException: code = traceback.print_exc() or 1
    else: code = 0
    sys.stdout.flush(); sys.stderr.flush()
    sys.exit(code)


def forked(f, *args, cwd=None, timeout=900, **env):
    "Run `f(*args)`, a function that a module defines, in a process of its own; as `subprocess.run` tells what came of it"
    with tempfile.TemporaryDirectory() as d:
        out, err = Path(d)/"out", Path(d)/"err"
        out.touch(); err.touch()
        p = CTX.Process(target=_begin, args=(f, args, str(out), str(err), str(cwd or Path.cwd()), {**os.environ, "OMP_NUM_THREADS": "1", **env}))
        p.start()
        p.join(timeout)
        if p.exitcode is None: p.kill(); p.join()
        return CompletedProcess(args, p.exitcode, out.read_text(), err.read_text())


def together(f, argss, envs, timeout=600):
    "Run `f(*args)` in several processes at once, each with its own changes of the environment; their exit codes, and what all wrote"
    with tempfile.TemporaryDirectory() as d:
        (out := Path(d)/"out").touch()
        ps = [CTX.Process(target=_begin, args=(f, a, str(out), str(out), str(Path.cwd()), {**os.environ, "OMP_NUM_THREADS": "1", **e})) for a, e in zip(argss, envs)]
        for p in ps: p.start()
        left = {p.sentinel: p for p in ps}
        while left and (ended := wait(list(left), timeout)):
            if any([left.pop(o).exitcode for o in ended]): timeout = 10 # the others wait for it in vain
        for p in left.values(): p.kill()
        for p in ps: p.join()
        return [p.exitcode for p in ps], out.read_text()


def _command(name, *args):
    script = Path(sys.executable).parent/name
    sys.argv = [str(script), *args]
    runpy.run_path(str(script), run_name="__main__")


def command(name, *args, **kw):
    "Run a console script of the package, as the shell does"
    return forked(_command, name, *map(str, args), **kw)


def _notebook(path, root):
    from nbdev.config import get_config
    from nbdev.test import test_nb
    os.chdir(Path(root)/"nbs")
    flags = get_config(Path(path)).tst_flags
    if not test_nb(Path(path), skip_flags=flags.split() if isinstance(flags, str) else flags, basepath=root)[0]: sys.exit(1)


def notebook(path, root):
    "Run a notebook from top to bottom, as `nbdev-test` does"
    return forked(_notebook, str(path), str(root), cwd=root)
