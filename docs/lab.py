"""`make lab`: JupyterLab on a copy of the notebooks, so that opening and running a page changes no source; with EDIT=1 on the notebooks themselves."""
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = 'Pages opened with `make lab` are copies in lab/: run and change them as you like; what you change is kept. `make lab EDIT=1` opens the pages of nbs/ themselves.'


def sha(path): return hashlib.sha256(path.read_bytes()).hexdigest()


def copy(source, target):
    "Bring a copy of the notebooks up to date; pages that the reader changed stay, and those of which there is a newer version are returned"
    note, kept = target / '.copied.json', []
    copied = json.loads(note.read_text()) if note.exists() else {}
    files = {p.relative_to(source).as_posix(): p for p in sorted(source.rglob('*')) if p.is_file() and '.ipynb_checkpoints' not in p.parts and p.suffix in ('.ipynb', '.png', '.py')}
    for name, path in files.items():
        ours, new = target / name, sha(path)
        if ours.exists() and sha(ours) not in (copied.get(name), new):  # the reader's
            if copied.get(name) != new: kept.append(name)
            continue
        if not ours.exists() or sha(ours) != new:
            ours.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, ours)
        copied[name] = new
    for name in [n for n in copied if n not in files]:  # a page that is no more
        if (target / name).exists() and sha(target / name) == copied[name]: (target / name).unlink()
        copied.pop(name)
    note.write_text(json.dumps(copied, indent=1))
    return kept


def command(folder, options, root):
    "The command line; as root, as in a container, JupyterLab starts only when told so, which is safe where it listens to this machine alone"
    elsewhere = any(o.lstrip('-').startswith(('ip', 'ServerApp.ip', 'allow-root')) for o in options)
    start = [f'--ServerApp.root_dir={folder.parent}', f'--LabApp.default_url=/lab/tree/{folder.name}/index.ipynb']  # so that links out of the pages open
    return [sys.executable, '-m', 'jupyterlab', *start, *(['--allow-root', '--ip=127.0.0.1'] if root and not elsewhere else []), *options]


def main(options):
    edit = '--edit' in options
    options, folder = [o for o in options if o != '--edit'], ROOT / ('nbs' if edit else 'lab')
    if edit: print('These are the pages of nbs/ themselves: the package is exported from them (CONTRIBUTING.md).', flush=True)
    else:
        for name in copy(ROOT / 'nbs', folder): print(f'kept as you changed it, although there is a newer version: lab/{name} (delete it to have that)', flush=True)
        print(NOTE, flush=True)
    os.execv(sys.executable, command(folder, options, hasattr(os, 'geteuid') and os.geteuid() == 0))


if __name__ == '__main__': main(sys.argv[1:])
