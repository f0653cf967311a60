"""The three verdicts of `wsss verify`, each produced on purpose: python docs/verdicts.py same default other wrong --torch FOLDER --runs RUNS

`same`: this environment; `default`: kernels for another processor; `other`: another version of torch, from a FOLDER that
`pip install --no-deps --target FOLDER torch==2.13.0 torchvision==0.28.0` filled; `wrong`: a CAM with its sign turned; `judge`: the same run again, beside what is published by now.
What was typed, printed and returned goes to runs/measured/verdicts.json, and nbs/engine/verify.ipynb shows it."""
import argparse, json, os, re, subprocess, sys, time
from pathlib import Path

from wsss_nb.base.core import load_json, save_json
from wsss_nb.engine.record import Run
from wsss_nb.engine.spread import held_against, ranged

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / 'runs/measured/verdicts.json'
KEPT = re.compile(r'differs |\d+ |verdict|\w+ +(tag AP|pixel mAP|score maps|masks|network)/')
WRONG = '''from wsss_nb.cams import CamNet

class Turned(CamNet):
    "A CAM whose maps come out with their sign turned: high where the class is not"
    def score_maps(self, images, labels, scales=(1., .5, 1.5, 2.), flip=True, max_side=1024, **reading):
        found = super().score_maps(images, labels, scales, flip, max_side, **reading)
        return [type(m)(m.keys, 1 - m.maps) for m in found]
'''
HERE = '''import json
from wsss_nb.base.core import versions
from wsss_nb.base.rounding import rounding
print(json.dumps({k: versions()[k] for k in ("torch", "torchvision")} | rounding()))'''
WSSS = 'from wsss_nb.cli import main; raise SystemExit(main())'


def python(code, *args, env=(), cwd=ROOT):
    "A piece of Python in this environment, changed so"
    path = os.pathsep.join(p for p in (dict(env).get('PYTHONPATH'), str(ROOT)) if p)
    given = {**os.environ, 'WSSS_PROGRESS': 'off', **dict(env), 'PYTHONPATH': path}
    return subprocess.run([sys.executable, '-c', code, *args], env=given, cwd=cwd, capture_output=True, text=True)


def told(typed, args, runs, env=()):
    "What a command printed and returned, and where"
    where = json.loads(python(HERE, env=env).stdout)
    began = time.time()
    done = python(WSSS, *args, '--runs', str(runs), env=env)
    lines = [line for line in done.stdout.splitlines() if KEPT.match(line)] or done.stderr.splitlines()[-1:]
    return dict(typed=typed, where=where, lines=lines, code=done.returncode, seconds=round(time.time() - began))


def wrong(runs):
    "A method with a mistake in it: the command's verdict, and what the report says"
    (runs / 'turned.py').parent.mkdir(parents=True, exist_ok=True)
    (runs / 'turned.py').write_text(WRONG)
    asked = ['-p', 'seed=1', '-p', 'stages=[train, masks, evaluate]', '-p', f'train.method={runs / "turned.py"}:Turned']
    done = python(WSSS, 'run', 'cam_synthetic', *asked, '--name', 'turned', '--no-report', '--runs', str(runs))
    if done.returncode: raise SystemExit(done.stderr)
    return judged(runs)


def judged(runs):
    "The run with the mistake, as it is on record, beside what is published now"
    found = told('wsss run cam_synthetic -p seed=1 -p train.method=turned.py:Turned --name turned\nwsss verify turned --as-recorded', ['verify', 'turned', '--as-recorded'], runs)
    rows = held_against(Run(runs / 'turned'))[1]
    first = next(r for r in rows if not r['inside'])
    return dict(found, report=f'The first number outside the spread: {ranged(first)}, in {first["stage"]}.', rows=rows)


def main():
    "Produce the verdicts that were asked for, and put them beside those that are there"
    p = argparse.ArgumentParser()
    p.add_argument('names', nargs='+', choices=('same', 'default', 'other', 'wrong', 'judge'))
    p.add_argument('--torch', default='')
    p.add_argument('--run', default='cam_synthetic_seed_3', help='a published run that was made in this environment')
    p.add_argument('--runs', type=Path, required=True)
    a = p.parse_args()
    made = load_json(FILE) if FILE.is_file() else dict(what='verdicts', data='synthetic', rows={})
    verify = ['verify', f'runs/published/{a.run}']
    ways = dict(
        same=lambda: told(f'wsss {" ".join(verify)}', verify, a.runs),
        default=lambda: told(f'ATEN_CPU_CAPABILITY=default wsss {" ".join(verify)}', verify, a.runs, dict(ATEN_CPU_CAPABILITY='default').items()),
        other=lambda: told(f'wsss {" ".join(verify)}', verify, a.runs, dict(PYTHONPATH=str(Path(a.torch).resolve())).items()),
        wrong=lambda: wrong(a.runs.resolve()),
        judge=lambda: judged(a.runs.resolve()))
    for asked in a.names:
        name = asked.replace('judge', 'wrong')
        made['rows'][name] = ways[asked]()
        print(name, made['rows'][name]['code'], made['rows'][name]['lines'][-1], flush=True)
        here = made['rows'][name]['where']
        if name == 'same': made |= dict(versions={k: here[k] for k in ('torch', 'torchvision')}, device=f'cpu, {here["threads"]} thread')
        save_json(FILE, made)


if __name__ == '__main__': main()
