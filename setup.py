"""Reads everything it needs from settings.ini, the one place for version and dependencies."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here / 'settings.ini', encoding='utf-8')
s = config['DEFAULT']
extras = {name: s[f'{name}_requirements'].split() for name in ('crf', 'notebooks', 'onnx', 'timm', 'weights', 'log', 'sam', 'look', 'scale', 'site', 'browser', 'dev')}
extras['dev'] = extras['notebooks'] + extras['onnx'] + extras['scale'] + extras['timm'] + extras['weights'] + extras['dev']

# The stage notebooks, the recipes and the papers' tables live beside the package and travel inside it: wsss_nb/stages, wsss_nb/recipe_files and wsss_nb/table_files.
packages = ['wsss_nb'] + ['.'.join(p.parent.relative_to(here).parts) for p in sorted((here / 'wsss_nb').glob('*/__init__.py'))]
setup(
    name=s['lib_name'], version=s['version'], description=s['description'], license='Apache-2.0',
    author=s['author'], author_email=s['author_email'], url=s['git_url'], keywords=s['keywords'].split(),
    classifiers=['Intended Audience :: Science/Research', 'Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Image Recognition'],
    python_requires='>=' + s['min_python'], install_requires=s['requirements'].split(), extras_require=extras,
    packages=packages + ['wsss_nb.stages', 'wsss_nb.recipe_files', 'wsss_nb.recipe_files.tables', 'wsss_nb.table_files'],
    package_dir={'wsss_nb.stages': 'nbs/run', 'wsss_nb.recipe_files': 'runs/recipes', 'wsss_nb.recipe_files.tables': 'runs/recipes/tables', 'wsss_nb.table_files': 'runs'},
    package_data={'wsss_nb.stages': ['*.ipynb'], 'wsss_nb.recipe_files': ['*.yaml'], 'wsss_nb.recipe_files.tables': ['*.yaml'], 'wsss_nb.table_files': ['*.yaml']},
    entry_points={'console_scripts': s['console_scripts'].split(), 'papermill.engine': ['wsss=wsss_nb.engine.warm:Engine']},
    long_description=(here / 'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown', zip_safe=False,
)
