"""LaTeX to MathML when the site is built; browsers draw MathML by themselves, with the font that is put beside the pages."""
import importlib.resources
import re

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging
from sphinx.util.fileutil import copy_asset_file

CONVERTER = LatexToMathML(fancy_error=False)
FONT = importlib.resources.files('ziamath') / 'fonts/STIXTwoMath-Regular.ttf'
log = logging.getLogger(__name__)


def mathml(node, display):
    "A formula as MathML; one that cannot be read is a warning of the build (and so an error of `make site`)"
    try: return CONVERTER.convert_with_local_state(node.astext(), displaystyle=display)
    except LatexError as e: log.warning('formula %r: %s', node.astext(), e, location=node)
    return ''


def inline(self, node):
    self.body.append(mathml(node, False))
    raise nodes.SkipNode


def display(self, node):
    "A formula on its own line, with its number at the right"
    tag = re.search(r'\\tag\{([^{}]*)\}\s*$', node.astext())
    formula = nodes.math_block('', node.astext()[:tag.start()] if tag else node.astext())
    formula.source, formula.line = node.source, node.line
    number = f'<span class="eqno">({tag[1]})</span>' if tag else ''
    self.body.append(self.starttag(node, 'div', CLASS='math', role='math') + mathml(formula, True) + number + '</div>\n')
    raise nodes.SkipNode


def put_font(app, error):
    if not error: copy_asset_file(str(FONT), app.outdir / '_static')


def setup(app):
    app.add_html_math_renderer('mathml', (inline, None), (display, None))
    app.connect('build-finished', put_font)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
