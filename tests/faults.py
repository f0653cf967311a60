"""A disk that fails and a machine that dies: the n-th write, read, rename or fsync of a run, in a process that is forked for it.

`python faults.py STAGE [--share K]` runs the stage through every n (every K-th) of a tiny set, and prints what it counted as JSON.
What cannot differ is done once: a kill at one of several reads between which nothing is written leaves the same disk; an error at one of several reads of the same file by the same lines meets the same code."""
import argparse
import builtins
import contextlib
import errno
import importlib
import io
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from hashlib import sha256
from pathlib import Path

from PIL import Image

KINDS = dict(write=('full', 'error', 'readonly', 'kill'), read=('error', 'kill'), rename=('full', 'error', 'readonly', 'kill'), fsync=('full', 'error', 'kill'))
STAY = dict(full=(errno.ENOSPC, 'No space left on device'), readonly=(errno.EROFS, 'Read-only file system'))  # errors that stay once they are there
OPEN, REPLACE, FSYNC, OS_OPEN = builtins.open, os.replace, os.fsync, os.open
CHANGES = {k: getattr(os, k) for k in ('unlink', 'remove', 'mkdir', 'rmdir')}
STAGES = ('train', 'psa', 'irn', 'masks', 'segment', 'evaluate')
RECIPE = dict(
    limit=2, workers=0, device='cpu', seed=0, epochs=2, crop=32, batch_size=2, save_seconds=0., scales=[1.], flip=False, splits=['train'],
    train=dict(method='cam', backbone='tiny', long_side=[32, 64]), masks=dict(refine=['crf'], crf_iters=1), segment=dict(backbone='tiny'))


def called_by(frame):
    "Where in the code one is: the lines of all that called, and the file that is read, as a short text"
    lines = [str(getattr(frame.f_locals.get('self'), 'name', ''))]
    while frame: lines.append(f'{frame.f_code.co_filename}:{frame.f_lineno}'); frame = frame.f_back
    return sha256(repr(lines).encode()).hexdigest()[:12]


def first_of(keys):
    "The places, from 1, at which a key stands for the first time"
    seen = {}
    for n, key in enumerate(keys, 1): seen.setdefault(key, n)
    return sorted(seen.values())


class Faults:
    "Counts what a process does to files below `root`, and lets the `n`-th of a kind fail"
    def __init__(self, root, kind='', n=0, how=''): self.root, self.kind, self.n, self.how, self.counts, self.stays, self.reads = str(root), kind, n, how, Counter(), '', []

    def ours(self, path): return not isinstance(path, int) and os.path.abspath(os.fspath(path)).startswith(self.root)

    def tick(self, kind, half=lambda: None):
        "Count one; at the n-th do half of it, and fail"
        self.counts[kind] += 1
        if kind == 'read': self.reads.append((sum(v for k, v in self.counts.items() if k != 'read'), called_by(sys._getframe(1))))
        if self.stays and kind in ('write', 'fsync', *(('rename',) if self.stays == 'readonly' else ())): raise OSError(*STAY[self.stays])
        if (kind, self.counts[kind]) != (self.kind, self.n): return
        half()
        if self.how == 'kill': os._exit(99)
        if self.how in STAY: self.stays = self.how
        raise OSError(*STAY.get(self.how, (errno.EIO, 'Input/output error')))

    def refuse(self, path):
        "Nothing is made and nothing taken away below a folder that has become read-only"
        if self.stays == 'readonly' and self.ours(path): raise OSError(*STAY['readonly'], str(path))

    def open(self, file, mode='r', buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if not self.ours(file): return OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if mode.strip('bt') != 'r': self.refuse(file)
        faults = self

        class Raw(io.FileIO):
            def write(self, b):
                faults.tick('write', lambda: super(Raw, self).write(bytes(b)[:len(b) // 2]))
                return super().write(b)
            def readinto(self, b): faults.tick('read'); return super().readinto(b)
            def readall(self): faults.tick('read'); return super().readall()

        raw = Raw(file, mode.replace('b', '').replace('t', ''))
        if buffering == 0: return raw
        buffered = (io.BufferedRandom if '+' in mode else io.BufferedReader if 'r' in mode else io.BufferedWriter)(raw, 1 << 20)
        return buffered if 'b' in mode else io.TextIOWrapper(buffered, encoding or 'utf-8', errors, newline)

    def replace(self, a, b):
        if self.ours(b): self.tick('rename')
        return REPLACE(a, b)

    def fsync(self, f): self.tick('fsync'); return FSYNC(f)

    def os_open(self, path, flags, *a, **k):
        if flags & (os.O_WRONLY | os.O_RDWR): self.refuse(path)
        return OS_OPEN(path, flags, *a, **k)

    def changing(self, name):
        def change(path, *a, **k):
            self.refuse(path)
            return CHANGES[name](path, *a, **k)
        return change

    def __enter__(self):
        builtins.open = io.open = self.open
        os.replace = os.rename = self.replace
        os.fsync, os.open = self.fsync, self.os_open
        for name in CHANGES: setattr(os, name, self.changing(name))
        return self

    def __exit__(self, *_):
        builtins.open = io.open = OPEN
        os.replace = os.rename = REPLACE
        os.fsync, os.open = FSYNC, OS_OPEN
        for name, real in CHANGES.items(): setattr(os, name, real)


def fork_of(f):
    "A fork of this process that calls f(): its number, and the end of a pipe where it says what came of it"
    r, w = os.pipe()
    pid = os.fork()
    if pid: os.close(w); return pid, r
    os.close(r)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try: out = dict(made=f())
        except BaseException as e: out = dict(error=type(e).__name__, text=str(e), where=traceback.format_exc())
    with OPEN(w, 'w') as p: json.dump(out, p)
    os._exit(0)


def forked_at_once(*fs):
    "What each f() returns, or how it ended, all in forks of this process at the same time: dicts"
    def ended(pid, r):
        with OPEN(r) as p: text = p.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return json.loads(text) if text else dict(killed=code)
    return [ended(*fork) for fork in [fork_of(f) for f in fs]]


def forked(f):
    "What f() returns, or how it ended, from a fork of this process: a dict"
    return forked_at_once(f)[0]


def digest(x):
    "A fingerprint of nested plain values and tensors, to the bit"
    if isinstance(x, dict): return digest([[str(k), digest(v)] for k, v in x.items()])
    if isinstance(x, (list, tuple)): return sha256(repr([v if isinstance(v, str) else digest(v) for v in x]).encode()).hexdigest()
    return sha256(x.numpy().tobytes() if hasattr(x, 'numpy') else repr(x).encode()).hexdigest()


def whole(file, store):
    "The content of a file that a run left under its own name, without times; raises at half a file"
    if file.suffix == '.png' or file.suffix == '.jpg':
        with Image.open(file) as im: im.load()
    if file.suffix == '.npz':
        from wsss_nb.data.maps import load_maps
        load_maps(file)
    if file.suffix == '.pt':
        from wsss_nb.engine.checkpoint import read_checkpoint
        return digest(read_checkpoint(file))
    if file.suffix not in ('.json', '.ipynb'): return sha256(file.read_bytes()).hexdigest()
    said = json.loads(file.read_text(encoding='utf-8').replace(str(store), ''))
    if file.suffix == '.ipynb': return 'a notebook'
    def timeless(x): return {k: timeless(v) for k, v in x.items() if k not in ('started', 'seconds', 'written', 'runs')} if isinstance(x, dict) else x
    return sha256(json.dumps(timeless(said), sort_keys=True).encode()).hexdigest()


def content(store): return {str(f.relative_to(store)): whole(f, store) for f in sorted(store.rglob('*')) if f.is_file() and not f.name.startswith('.')}


def recipe_of(stage):
    "A recipe whose last stage this is"
    steps = dict(psa=['psa', 'crf'], irn=['irn', 'crf']).get(stage, ['crf'])
    stages = dict(train=['train'], masks=['train', 'masks'], segment=['train', 'masks', 'segment']).get(stage, ['train', 'masks', 'evaluate'] if stage == 'evaluate' else ['train', 'masks'])
    own = dict(RECIPE, stages=stages, masks=dict(RECIPE['masks'], refine=steps))
    return {**own, **({stage: dict(batch_size=2)} if stage in ('psa', 'irn') else {})}


def found_before(f):
    "f, whose answers are kept; they are the same in each fork"
    answers = {}
    def ask(*a, **k):
        if (at := repr((a, k))) not in answers: answers[at] = f(*a, **k)
        return answers[at]
    return ask


def quiet():
    "No pictures on pages: they are not the point"
    from wsss_nb.base import show
    import IPython.display
    from wsss_nb.base import core
    from wsss_nb.engine import record, stage
    for name in show.__all__:
        if callable(getattr(show, name)): setattr(show, name, lambda *a, **k: None)
    IPython.display.display = lambda *a, **k: None
    found, code = core.versions(), record.code_version()  # asked of the system once
    record.versions = stage.versions = lambda: found
    record.code_version = lambda: code


def run(runs, recipe):
    from inside import inside
    from wsss_nb.engine.run import make_run
    with inside(): make_run('r', recipe, runs, lambda text: None)


def prepared(stage, folder):
    "A store with what comes before the stage, the same with the stage, and the recipe"
    recipe, before, after = recipe_of(stage), folder / 'before', folder / 'after'
    before.mkdir()
    for s in STAGES[:STAGES.index(stage)] if stage in ('psa', 'irn', 'masks') else ['masks'] if stage != 'train' else []:
        if s in ('train', 'masks'): ended(forked(lambda: run(before, recipe_of(s))))
    shutil.copytree(before, after)
    ended(forked(lambda: run(after, recipe)))
    return before, after, recipe


def ended(out):
    if 'made' not in out: raise AssertionError(out)
    return out['made']


def resumed(runs, recipe):
    "Go on, without faults: by `resume` where this recipe is on record, else with the same command"
    from inside import inside
    from wsss_nb.engine.record import Run
    from wsss_nb.engine.run import resume_run
    if Run(runs / 'r').recipe != recipe: return run(runs, recipe)
    with inside(): resume_run('r', runs)


def left_locked(runs):
    from wsss_nb.engine.execute import is_locked
    return [str(f.parent) for f in runs.rglob('.lock') if is_locked(f.parent)]


def one_fault(before, after, recipe, work, kind, n, how):
    "Fail once, look, go on, compare; returns what is wrong, in words"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(before, work)
    def fails():
        with Faults(work, kind, n, how): run(work, recipe)
    out, wrong = forked(fails), []
    if how == 'kill' and out != dict(killed=99): wrong.append(f'was to be killed: {out}')
    if 'error' in out and out['error'] not in ('UserError', 'StageFailed'): wrong.append(f'{out["error"]}: {out["text"]}\n{out["where"]}')
    try: there = content(work)
    except Exception as e: return [*wrong, f'half a file: {e}']
    wrong += [f'{f} is left half made' for f, v in there.items() if f.startswith('stages/') and not f.endswith(('.pt', '.ipynb')) and after.get(f) != v]
    if left_locked(work): wrong.append(f'locked: {left_locked(work)}')
    again = forked(lambda: resumed(work, recipe))
    if 'made' not in again: return [*wrong, f'does not go on: {again.get("error")}: {again.get("text", again)}\n{again.get("where", "")}']
    there = content(work)
    wrong += [f'{f} differs' for f in sorted({*there, *after}) if there.get(f) != after.get(f)]
    return wrong + [f'{p.relative_to(work)} is left' for p in work.rglob('*.part')] + [f'{f} is locked' for f in left_locked(work)]


def sweep(stage, share=1, say=lambda text: None, skip=0):
    "Every fault of a stage (or every share-th): the counts of what was done to files, of faults, and what is wrong"
    sys.path.insert(0, str(Path(__file__).parent))
    quiet()
    with tempfile.TemporaryDirectory() as d:
        folder, wrong, tried = Path(d).resolve(), [], Counter()
        before, made, recipe = prepared(stage, folder)
        for module in ended(forked(lambda: run(folder / 'modules', recipe) or sorted(sys.modules))):  # imported once, not in each fork
            with contextlib.suppress(Exception): importlib.import_module(module)
        from wsss_nb.engine.run import looked_at
        looked_at(recipe, before)  # code that was read for the keys is not read again in each fork
        from wsss_nb.engine import key, splits
        for where, name in ((key, 'code_modules'), (splits, 'open_data')): setattr(where, name, found_before(getattr(where, name)))
        after, work = content(made), folder / 'work'
        shutil.copytree(before, work)
        def counted():
            with Faults(work) as f: run(work, recipe)
            return dict(f.counts), f.reads
        counts, reads = ended(forked(counted))
        there = content(work)
        assert there == after, [k for k in {*there, *after} if there.get(k) != after.get(k)]
        own = dict(error=first_of(map(tuple, reads)), kill=first_of(written for written, _ in reads))
        which = lambda kind, how: own[how] if kind == 'read' else range(1, counts.get(kind, 0) + 1)
        every = [(kind, n, how) for kind, hows in KINDS.items() for n in range(1, counts.get(kind, 0) + 1) for how in hows if n in which(kind, how)]
        for kind, n, how in every[share // 2 + skip::share]:
            tried[f'{kind} {how}'] += 1
            if not sum(tried.values()) % 50: say(f'{stage}: {sum(tried.values())} of {len(every) // share}')
            bad = one_fault(before, after, recipe, work, kind, n, how)
            for text in bad: say(f'{stage} {kind} {n} {how}: {text}')
            wrong += [f'{stage} {kind} {n} {how}: {text}' for text in bad]
        every = {kind: counts.get(kind, 0) * len(hows) for kind, hows in KINDS.items()}
        return dict(stage=stage, counts=counts, every=every, faults=dict(tried), wrong=wrong)


if __name__ == '__main__':
    a = argparse.ArgumentParser()
    a.add_argument('stage', choices=STAGES)
    a.add_argument('--share', type=int, default=1)
    a.add_argument('--loud', action='store_true')
    a.add_argument('--skip', type=int, default=0, help='so many that were tried already')
    a = a.parse_args()
    os.environ['WSSS_PROGRESS'] = 'off'
    import torch
    torch.set_num_threads(1)
    os.environ.update(OMP_NUM_THREADS='1')
    import wsss_nb.engine.stage, wsss_nb.engine.run, wsss_nb.engine.evaluate, wsss_nb.engine.refining  # noqa: E401, F401
    from wsss_nb.base.tell import Progress  # noqa: F401
    print(json.dumps(sweep(a.stage, a.share, lambda text: print(text, file=sys.stderr, flush=True) if a.loud else None, a.skip)))
