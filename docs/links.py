"""Code in prose that names a notebook, a module or an exported name leads there; an ordinary word does not."""
import ast
import json
import re
from collections import defaultdict
from pathlib import Path

from docutils import nodes

from pages import DIRECTIVES, arranged, defined


def parsed(cell):
    "The syntax tree of a code cell, or None (a shell command, a magic)"
    try: return ast.parse(''.join(cell['source']))
    except SyntaxError: return None


def words(tree):
    "Names of the arguments of all functions in it, of all arguments given by name, and texts: what such a word means in prose is open"
    names = {n.arg for n in ast.walk(tree) if isinstance(n, (ast.arg, ast.keyword)) and n.arg}
    return names | {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


class Symbols:
    "Who defines what: read from the notebooks themselves"
    def __init__(self, srcdir, contents):
        self.modules, self.modules_of, self.where, self.docs = {}, {}, defaultdict(dict), set()
        self.imports, self.words = defaultdict(dict), defaultdict(set)
        for path in sorted(p for p in Path(srcdir).rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts):
            self.read(path.relative_to(srcdir).with_suffix('').as_posix(), json.loads(path.read_text(encoding='utf-8'))['cells'])
        self.docs |= {p.stem for p in Path(srcdir).glob('*.md')}
        self.ambiguous = set().union(*self.words.values(), (d.split('/')[-1] for d in self.docs))
        pages = [d for group in arranged(contents, self.docs).values() for d in group]
        self.folders = {d.split('/')[0] + '/': d for d in reversed(pages) if '/' in d}

    def read(self, doc, cells):
        self.docs.add(doc)
        code = [c for c in cells if c['cell_type'] == 'code']
        for c in code:
            text = ''.join(c['source'])
            name = re.match(r'#\| default_exp ([\w.]+)', text)
            if name: self.modules[name[1]], self.modules_of[doc] = doc, name[1]
            if text.startswith('#| export'):
                for symbol in defined(text): self.where[symbol][doc] = f'wsss_nb.{self.modules_of[doc]}.{symbol}'
        for tree in filter(None, map(parsed, code)):
            self.words[doc] |= words(tree)
            for n in ast.walk(tree):
                if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('wsss_nb.'): self.imports[doc].update({a.asname or a.name: (n.module[8:], a.name) for a in n.names})

    def page(self, text):
        "The notebook or other page that the text names: papers/sipe, cams, nbs/run/train.ipynb, CONTRIBUTING.md, papers/"
        if text == 'README.md': return 'index'
        doc = re.sub(r'^nbs/|\.(ipynb|md)$', '', text)
        if doc in self.docs and (re.search('[/.]', text) or text[0].isdigit()): return doc
        return self.folders.get(doc)

    def symbol(self, name, doc):
        "Document and anchor of the one thing that this name can mean on this page"
        places, word = self.where.get(name, {}), name in self.words[doc]
        if name in self.imports[doc] and not word: module, name = self.imports[doc][name]; return self.qualified(module, name)
        if doc in places and not word: return doc, places[doc]
        return next(iter(places.items())) if len(places) == 1 and name not in self.ambiguous else None

    def qualified(self, prefix, name):
        "module.name with the whole module or its last part"
        docs = {d for m, d in self.modules.items() if prefix == m} or {d for m, d in self.modules.items() if m.endswith('.' + prefix)}
        places = self.where.get(name, {})
        hits = [(d, places[d]) for d in docs if d in places]
        return hits[0] if len(hits) == 1 else None

    def means_module(self, name, text, doc):
        "A dotted name always does, an ordinary word where the page imports from the module or where no notebook uses it otherwise"
        imported = any(module == name for module, _ in self.imports[doc].values())
        return '.' in text or (name not in self.words[doc] if imported else name not in self.ambiguous)

    def find(self, text, doc):
        "(document, anchor) for a piece of code in the prose of a page, or None"
        if self.page(text): return self.page(text), ''
        match = re.fullmatch(r'([A-Za-z_][\w.]*)(\(.*\))?', text)
        if not match: return None
        name, call = re.sub(r'^wsss_nb\.', '', match[1]), match[2]
        if name in self.modules and not call and self.means_module(name, text, doc): return self.modules[name], ''
        return self.symbol(name, doc) or ('.' in name and self.qualified(*name.rsplit('.', 1))) or None


def link(app, doctree, docname):
    "Wrap what is found in links"
    for node in [n for n in doctree.findall(nodes.literal) if not in_link(n)]:
        target = app.config.symbols.find(node.astext(), docname)
        if not target or target == (docname, ''): continue
        uri = (app.builder.get_relative_uri(docname, target[0]) if target[0] != docname else '') + ('#' + target[1] if target[1] else '')
        node.replace_self(nodes.reference('', '', node.deepcopy(), internal=True, refuri=uri))


def in_link(node):
    "Inside a link or a heading (which is a link in the sidebar)"
    while node := node.parent:
        if isinstance(node, (nodes.reference, nodes.title)): return True


def setup(app):
    app.add_config_value('symbols', None, '')
    app.connect('config-inited', lambda app, config: setattr(config, 'symbols', Symbols(app.srcdir, config.contents)))
    app.connect('doctree-resolved', link)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
