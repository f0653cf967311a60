"""The site: `make site` builds it from the saved notebooks. Nothing is executed, and the pages ask for nothing from the network."""
import configparser
import sys
from pathlib import Path

here = Path(__file__).parent
sys.path.insert(0, str(here))
settings = configparser.ConfigParser(delimiters=['='])
settings.read(here.parent / 'settings.ini', encoding='utf-8')

project = settings['DEFAULT']['lib_name']
copyright = settings['DEFAULT']['copyright']
release = settings['DEFAULT']['version']
extensions = ['myst_nb', 'pages', 'links', 'formulas']
exclude_patterns = ['**/.ipynb_checkpoints', '.ipynb_checkpoints']

nb_execution_mode = 'off'
nb_merge_streams = True
nb_ipywidgets_js = {}
myst_enable_extensions = ['dollarmath', 'amsmath']
nb_render_markdown_format = 'myst'  # tables in outputs too; CommonMark has none
myst_heading_anchors = 3

html_theme = 'furo'
html_title = f'{project} {release}'
html_static_path = ['static']
html_css_files = ['site.css']
html_math_renderer = 'mathml'
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_search_summary = False  # a page opened as a file may not read another one
pygments_style = 'default'
pygments_dark_style = 'github-dark'

# caption -> pages in their order; what a pattern finds beyond those that are named follows in the order of the alphabet
contents = {
    'Tutorials': ['tutorials/own_photographs', 'tutorials/tags_you_have', 'tutorials/a_few_outlines', 'tutorials/use_as_a_library', 'tutorials/read_a_run', 'tutorials/add_a_method', 'papers/conformity', 'tutorials/*', 'glossary'],
    'The five papers': ['papers/sipe', 'papers/svm', 'papers/icd', 'papers/ecsnet', 'papers/seam', 'papers/ccmr', 'papers/[!b]*'],
    'Results': ['results/drawings', 'results/several_parts', 'results/photographs', 'results/few_outlines', 'results/grids', 'results/noise'],
    'Foundations': ['api', 'base/basics', 'base/tell', 'base/core', 'base/calls', 'base/plugs', 'base/workers', 'base/ahead', 'base/until', 'base/processes', 'metrics', 'base/pictures', 'base/show', 'base/page', 'base/rounding', 'base/timing'],
    'Data': ['data/catalog', 'data/folder', 'data/sources', 'data/keywords', 'data/exports', 'data/words', 'data/corrections', 'data/synthetic', 'data/parts', 'data/voc', 'data/coco', 'data/sample', 'data/*'],
    'Networks': ['nets/zoo', 'nets/backbone', 'nets/weights', 'nets/vgg', 'nets/resnet', 'nets/resnet38', 'nets/mobilenet', 'nets/tiny', 'nets/*'],
    'Score maps and training': ['cams', 'engine/batches', 'engine/rates', 'engine/train', 'engine/beside', 'engine/checkpoint', 'engine/evaluate'],
    'Refinement': ['refine/masks', 'refine/chain', 'refine/compare', 'refine/crf', 'refine/pamr', 'refine/batched', 'refine/superpixels', 'refine/psa', 'refine/irn', 'refine/[!b]*'],
    'Recipes and runs': ['engine/methods', 'engine/domains', 'engine/parameters', 'engine/options', 'engine/recipes', 'engine/record', 'engine/execute', 'engine/key', 'engine/stage', 'engine/run', 'engine/plan', 'engine/sheet', 'engine/scale', 'engine/*', 'cli', 'base/arguments', 'verbs/*'],
    'Pages and tables': ['results/report', 'results/predict', 'results/table_recipes', 'results/tables', 'results/grid_cells', 'results/grid', 'results/*'],
    'Stages': ['run/train', 'run/masks', 'run/affinity', 'run/segment', 'run/evaluate', 'run/report', 'run/*'],
    'How fast': ['*/benchmark*'],
    'The project': ['CONTRIBUTING', 'CHANGELOG', 'cite', 'genindex'],
}
