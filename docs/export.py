"""`make export`: nbs/ -> wsss_nb/. One notebook after the other, so that nbdev writes the modules and nothing beside them.
What stands behind the colon of a notebook's heading says what lives there, and becomes the first line of its module."""
import json, re
from pathlib import Path

from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.export import nb_export


def sentence(cells):
    "What a notebook's heading says behind its name, as a sentence"
    said = re.match(r'# [^\n:]+: ([^\n]+)', cells[0])
    return said and said[1][0].upper() + said[1][1:]


def begin(module, first):
    "The module with this line first, before what nbdev took from the notebook: the paper's citation"
    text = module.read_text(encoding='utf-8')
    cited = re.match(r'"""(.*?)"""\n\n', text, re.S)
    more = f'\n\n{cited[1]}' if cited else ''
    module.write_text(f'"""{first}{more}"""\n\n' + text[cited.end() if cited else 0:], encoding='utf-8')


for path in nbglob(as_path=True).sorted('name'):
    nb_export(path)
    cells = [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]
    name = next((m[1] for m in (re.match(r'#\| *default_exp ([\w.]+)', c) for c in cells) if m), '')
    if name and name != '__init__': begin(get_config().lib_path / f'{name.replace(".", "/")}.py', sentence(cells))
