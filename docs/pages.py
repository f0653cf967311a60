"""What happens to a notebook on its way to a page: the start page gets the table of contents, nbdev's comments go, and each cell that exports gets an anchor."""
import ast
import json
import re
from fnmatch import fnmatch

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

DIRECTIVES = re.compile(r'(#\|.*(\n|$))+')
BESIDE = r'(?:README|CONTRIBUTING|CHANGELOG|cite)\.md|CITATION\.cff|LICENSE'  # files of the repository that lie beside the notebooks in the site


def arranged(contents, docs):
    "Caption -> the pages that exist, each once"
    left, out = {*docs} - {'index'}, {}
    for caption, patterns in contents.items():
        found = [d for p in patterns for d in sorted(left) if fnmatch(d, p)]
        out[caption] = [d for d in dict.fromkeys(found) if d in left]
        left -= set(found)
    return {k: v for k, v in out.items() if v}


def toctree(caption, docs):
    "In the words of MyST"
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *docs, '```'])


def on_read(app, docname, source):
    "Links as GitHub and JupyterLab understand them also lead to pages of the site; the start page gets the table of contents"
    text = re.sub(r'\]\(nbs/', '](', source[0])
    text = re.sub(rf'\]\((?:\.\./)?((?:\.\./)*)(?:docs/)?({BESIDE})', lambda m: f']({m[1]}{m[2].replace("README.md", "index.ipynb")}', text)
    if docname == 'index':
        nb = json.loads(text)
        trees = '\n\n'.join(toctree(*item) for item in arranged(app.config.contents, app.env.found_docs | {'genindex'}).items())
        nb['cells'].append(dict(cell_type='markdown', id='contents', metadata={}, source=trees))
        text = json.dumps(nb)
    source[0] = text


def defined(code):
    "Top-level functions, classes and constants of a cell, and the methods of its classes as Class.method"
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield node.name
        if isinstance(node, ast.ClassDef): yield from (f'{node.name}.{f.name}' for f in node.body if isinstance(f, ast.FunctionDef))
        if isinstance(node, ast.Assign): yield from (t.id for t in node.targets if isinstance(t, ast.Name) and t.id.isupper())


class Cells(SphinxTransform):
    "Cells without nbdev's comments; an anchor and an entry of the index for each exported name"
    default_priority = 300

    def apply(self):
        module = self.env.config.symbols.modules_of.get(self.env.docname)
        for cell in [c for c in self.document.findall(nodes.container) if c.get('nb_element') == 'cell_code']:
            block = next(cell.findall(nodes.literal_block), None)
            head = DIRECTIVES.match(block.astext()) if block else None
            if not head: continue
            code = block.astext()[head.end():].strip('\n')
            if not code or '#| hide' in head[0]: cell.parent.remove(cell); continue
            block.rawsource, block.children = code, [nodes.Text(code)]
            if '#| export' in head[0]: self.anchor(cell, module, list(defined(code)))

    def anchor(self, cell, module, names):
        "Every name of the cell leads to the cell"
        for name in names:
            full = f'wsss_nb.{module}.{name}'
            cell['ids'].append(full)
            if '.' in name: continue
            cell.insert(0, addnodes.index(entries=[('single', f'{name} ({module})', full, '', None)]))
            self.env.domains['py'].note_object(full, 'function' if name.islower() else 'class', full, location=cell)


def setup(app):
    app.add_config_value('contents', {}, 'env')
    app.connect('source-read', on_read)
    app.add_transform(Cells)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
